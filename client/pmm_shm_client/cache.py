"""`Cache`: one ledger's shared state, as a chat worker sees it.

Reads are exact unless asked otherwise, with or without a daemon; commands go to the daemon. A read that finds nothing
new costs a comparison of 48 bytes.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Literal, NamedTuple, TypeVar

from pmm_shm import flags, limits, protocol
from pmm_shm.errors import (
    ClosedError,
    ConfigError,
    DaemonAbsentError,
    DaemonError,
    DaemonTimeoutError,
    SnapshotUnavailableError,
)
from pmm_shm.flags import Flag
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.registry import find_fold
from pmm_shm.folds.self_model import MAX_TRAIT_DELTA, SelfModel, SelfModelFold
from pmm_shm.folds.state import State
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.freshness import Choice
from pmm_shm.paths import Instance
from pmm_shm.replay import replay
from pmm_shm.verify import VerifyReport, copy_published, verify
from pmm_shm_client import commands
from pmm_shm_client.frame import RESULTS, Frame, SourceFor
from pmm_shm_client.reader import Reader, Reading
from pmm_shm_client.results import Commitments, Identity, Metrics, Recent, Stage, self_model_dict
from pmm_shm_client.warnings_log import OnWarn, Warning, WarningsLog, warn

Consistency = Literal["exact", "snapshot", "wait"]
_CONSISTENCIES = ("exact", "snapshot", "wait")
_REPLAY = "replay"
_METRICS_GROUP = frozenset({"metrics", "stage"})
_T = TypeVar("_T")


class ReplayReading:
    """Views of a full replay; what `Reading` is for the shared state."""

    def __init__(self, folds: list[Fold], states: Mapping[str, State], as_of: int) -> None:
        self._folds = {fold.name: fold for fold in folds}
        self._states = states
        self.as_of = as_of

    def view(self, name: str) -> Any:
        return self._folds[name].view(self._states[name])

    def state(self, name: str) -> State:
        return self._states[name]


class _Counter:
    """Reads of one group, as this process sees them."""

    __slots__ = ("hits", "last_id", "misses", "recomputations")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.recomputations = 0
        self.last_id = 0

    def as_dict(self) -> dict[str, Any]:
        total = self.hits + self.misses
        return {
            "cache_hits": self.hits,
            "cache_misses": self.misses,
            "hit_rate": self.hits / total if total else 0.0,
        }


class _Memo(NamedTuple):
    """An answer and the mark it stands for; swapped whole, never changed."""

    header: Any
    mark: Any
    value: Any
    counter: _Counter


class _Built(NamedTuple):
    """The last answer of a method, to be handed out again while view and position are the same."""

    view: Any
    as_of: int
    value: Any


class Cache:
    """The shared state of one ledger. Made by `connect`; thread-safe; usable on both sides of a fork.

    Parameters:
        path: the ledger; it must exist.
        consistency: `"exact"`: every append committed before the read began is in it; `"snapshot"`: whatever the daemon
            has published; `"wait"`: wait until the daemon has published what the ledger's head was at the call.
        timeout: seconds to wait for a busy ledger, and for the daemon where consistency is `"wait"`.
        freshness: `"auto"`, or `"data_version"` to do without the wal-index mark.

    Every read raises `LedgerError` in one of its kinds where the ledger cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        consistency: Consistency = "exact",
        timeout: float = limits.LEDGER_TIMEOUT_S,
        freshness: Choice = "auto",
    ) -> None:
        if freshness not in ("auto", "data_version"):
            raise ConfigError(f"freshness: expected auto or data_version, got {freshness!r}")
        self._consistency = _checked(consistency)
        self._timeout_s = timeout
        self._projection_off = flags.projection_cache() is Flag.OFF
        self._metrics_off = flags.metrics_cache() is Flag.OFF
        self._memos: dict[str, _Memo] = {}
        self._built: dict[str, _Built] = {}
        self._counters = {"projection": _Counter(), "metrics": _Counter()}
        self._warnings = WarningsLog()
        self._verifications = {True: 0, False: 0}
        self._is_closed = False
        self._log = EventLog(path, timeout=timeout, create=False)
        self.path = self._log.path
        self._instance = Instance.of(self.path)
        self._reader = Reader(self.path, timeout, freshness, self._log.recover, self._memos.clear)
        self._freshness = self._reader.freshness
        self._reader.with_ledger(self._freshness.take)
        _caches.add(self)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A later call of another method raises `ClosedError`."""
        self._is_closed = True
        self._reader.close()
        self._log.close()

    # Reads.

    def self_model(
        self,
        strict: bool = False,
        max_trait_delta: float = MAX_TRAIT_DELTA,
        on_warn: OnWarn | None = None,
        *,
        consistency: Consistency | None = None,
    ) -> dict[str, Any]:
        """Identity, traits and commitments as a fresh dict.

        Parameters:
            strict: limit each trait delta to `max_trait_delta`, and raise where an invariant is violated.
            max_trait_delta: any other limit than 0.05 is a full replay; without `strict` it has no effect.
            on_warn: gets a dict for each close without evidence that this cache has not reported yet.

        Raises:
            ProjectionInvariantError: `strict`, and the state violates an invariant.
        """
        if strict and max_trait_delta != MAX_TRAIT_DELTA:
            return self._replayed_model(max_trait_delta, on_warn)
        model: SelfModel = self._get("self_model", consistency)
        if on_warn is not None and model.warning_count:
            model, fresh = self._run(self._mode("self_model", consistency), self._with_warnings, ("self_model",))
            self._warnings.report(fresh, on_warn)
        return self_model_dict(model, strict=strict)

    def identity(self, *, consistency: Consistency | None = None) -> Identity:
        """The adopted name and the five traits."""
        return self._get("identity", consistency)  # type: ignore[no-any-return]

    def commitments(self, *, consistency: Consistency | None = None) -> Commitments:
        """Open and expired commitments, read-only and in order."""
        return self._get("commitments", consistency)  # type: ignore[no-any-return]

    def metrics(self, *, consistency: Consistency | None = None) -> Metrics:
        """IAS and GAS."""
        return self._get("metrics", consistency)  # type: ignore[no-any-return]

    def stage(self, *, consistency: Consistency | None = None) -> Stage:
        """The developmental stage and its snapshot."""
        return self._get("stage", consistency)  # type: ignore[no-any-return]

    def directives(self, *, consistency: Consistency | None = None) -> list[dict[str, Any]]:
        """All directives, as fresh dicts."""
        return self._get("directives", consistency).rows()  # type: ignore[no-any-return]

    def active_directives(self, *, consistency: Consistency | None = None) -> list[dict[str, Any]]:
        """The active set of directives, best first, as fresh dicts."""
        return self._get("directives", consistency).active()  # type: ignore[no-any-return]

    def recent(self, *, consistency: Consistency | None = None) -> Recent:
        """The newest reflections, messages and telemetry."""
        return self._get("recent", consistency)  # type: ignore[no-any-return]

    def fold(self, name: str, *, consistency: Consistency | None = None) -> Any:
        """The view of any fold, built in or registered.

        Raises:
            UnknownFoldError: there is none of this name.
        """
        self._know(name)
        return self._get("fold:" + name, consistency)

    def frame(self, *, consistency: Consistency | None = None) -> Frame:
        """All answers at one position, immutable, built now."""
        names = self._reader.fold_names()
        if not (self._projection_off or self._metrics_off):
            mode = self._mode("self_model", consistency)
            return self._run(mode, lambda reading: self._make_frame(reading, names), names)
        return self._run(_REPLAY, lambda reading: self._make_frame(reading, names), names)

    # Writing, and commands to the daemon.

    def append(self, kind: str, content: str = "", meta: Mapping[str, Any] | None = None) -> int:
        """Append an event; the next read of any worker includes it. Returns its id.

        Raises:
            InvalidEventError: it could not be read back as it is.
            LedgerError: it could not be written; nothing was.
        """
        self._check_open()
        return self._log.append(kind, content, None if meta is None else dict(meta))

    def wait_for(self, event_id: int, timeout: float = limits.COMMAND_TIMEOUT_S) -> int:
        """Wait until the daemon has published `event_id`. Returns the event id up to which is published.

        Raises:
            DaemonAbsentError: no daemon serves this ledger.
            DaemonTimeoutError: not within `timeout` seconds.
        """
        self._check_open()
        published = self._published_as_of()
        if published is not None and published >= event_id:
            return published
        return checked_wait(
            self._call(protocol.WAIT, wait_args(event_id, timeout), timeout), self.path, event_id, timeout
        )

    def verify(self, fold: str | None = None, timeout: float = limits.LONG_COMMAND_TIMEOUT_S) -> VerifyReport:
        """Compare what is published (all folds, or one) with a full replay; true when they are equal.

        The daemon does it; without one, this process does, with the snapshot at rest. Where nothing is published there
        is nothing to be wrong, and `folds` is empty.

        Raises:
            UnknownFoldError: there is no such fold.
            DaemonTimeoutError: not within `timeout` seconds.
        """
        self._check_open()
        if fold is not None:
            self._know(fold)
        try:
            report = report_of(self._call(protocol.VERIFY, {"fold": fold}, timeout))
        except DaemonAbsentError:
            report = self._verify_here(fold)
        self._verifications[report.ok] += 1
        return report

    def invalidate(self, fold: str | None = None, timeout: float = limits.LONG_COMMAND_TIMEOUT_S) -> int:
        """Have the daemon rebuild all folds, or one, from the ledger. Returns the event id it stands at afterwards.

        Raises:
            DaemonAbsentError: no daemon serves this ledger.
            CommandError: the daemon does not know the fold.
            DaemonTimeoutError: not within `timeout` seconds.
        """
        self._check_open()
        return int(self._call(protocol.INVALIDATE, {"fold": fold}, timeout)["as_of"])

    def stats(self) -> dict[str, Any]:
        """Numbers of this process (`projection`, `metrics`) and of the daemon (`daemon`, None without one)."""
        self._check_open()
        try:
            daemon = self._call(protocol.STATS, {}, 1.0)
        except DaemonError:
            daemon = None
        projection, metrics = self._counters["projection"], self._counters["metrics"]
        last = self._built.get("metrics")
        events = self._reader.events_folded
        return {
            "projection": {
                **projection.as_dict(),
                "events_processed": events,
                "last_id": projection.last_id,
                "verifications_passed": self._verifications[True],
                "verifications_failed": self._verifications[False],
                "cached": "self_model" in self._built,
            },
            "metrics": {
                **metrics.as_dict(),
                "recomputations": metrics.recomputations,
                "events_processed": events,
                "last_id": metrics.last_id,
                "ias": last.value.ias if last else 0.0,
                "gas": last.value.gas if last else 0.0,
            },
            "daemon": daemon,
        }

    # How a read is made.

    def _get(self, name: str, consistency: Consistency | None) -> Any:
        memo = self._memos.get(name)
        if (
            memo is not None
            and consistency is None
            and (
                (monotonic() < self._freshness.trusted_until and memo.header.raw == memo.mark)
                if memo.header is not None
                else self._reader.is_unchanged(memo.mark)
            )
        ):
            memo.counter.hits += 1
            return memo.value
        return self._read(name, consistency)

    def _read(self, name: str, consistency: Consistency | None) -> Any:
        self._check_open()
        source = SourceFor.get(name, name.removeprefix("fold:"))
        mode = self._mode(source, consistency)
        counter = self._counters["metrics" if source in _METRICS_GROUP else "projection"]
        if mode != "exact":
            return self._run(mode, lambda reading: self._build(name, source, reading, counter), (source,))
        return self._reader.exact(lambda reading: self._build_and_memoise(name, source, reading, counter))

    def _build_and_memoise(self, name: str, source: str, reading: Reading, counter: _Counter) -> Any:
        """Runs with the reader's lock held, so that no memo of a closed connection is left behind."""
        value = self._build(name, source, reading, counter)
        if self._consistency == "exact":
            self._memos[name] = _Memo(self._freshness.header, reading.mark, value, counter)
        return value

    def _build(self, name: str, source: str, reading: Reading | ReplayReading, counter: _Counter) -> Any:
        view = reading.view(source)
        before = self._built.get(name)
        counter.last_id = reading.as_of
        if before is not None and before.view is view:
            if before.as_of == reading.as_of:
                counter.hits += 1
                return before.value
        else:
            counter.recomputations += 1
        counter.misses += 1
        value = RESULTS[name](view, reading.as_of) if name in RESULTS else view
        self._built[name] = _Built(view, reading.as_of, value)
        return value

    def _mode(self, source: str, consistency: Consistency | None) -> str:
        if self._metrics_off if source in _METRICS_GROUP else self._projection_off:
            return _REPLAY
        return self._consistency if consistency is None else _checked(consistency)

    def _run(self, mode: str, make: Callable[[Any], _T], names: tuple[str, ...]) -> _T:
        self._check_open()
        if mode == "exact":
            return self._reader.exact(make)
        if mode == _REPLAY:
            return make(self._replayed([self._reader.fold_named(name) for name in names]))
        if mode == "snapshot":
            return self._reader.published(make, names)
        head = self._head()
        self._wait_until_published(head)
        return self._reader.published(make, names, head)

    def _replayed(self, folds: list[Fold], until_id: int | None = None) -> ReplayReading:
        self._reader.with_ledger(self._freshness.take)
        position, states = replay(self._reader.connection, folds, until_id=until_id)
        return ReplayReading(folds, states, position.as_of)

    def _replayed_model(self, limit: float, on_warn: OnWarn | None, until_id: int | None = None) -> dict[str, Any]:
        self._check_open()
        model, fresh = self._with_warnings(self._replayed([SelfModelFold(float(limit))], until_id))
        if on_warn is not None:
            self._warnings.report(fresh, on_warn)
        return self_model_dict(model, strict=True)

    def _with_warnings(self, reading: Reading | ReplayReading) -> tuple[SelfModel, list[Warning]]:
        return reading.view("self_model"), self._warnings.unreported(reading.state("self_model"))

    def _make_frame(self, reading: Reading | ReplayReading, names: tuple[str, ...]) -> Frame:
        views = {name: reading.view(name) for name in names}
        fresh = self._warnings.unreported(reading.state("self_model"))
        return Frame(self, views, tuple(fresh), reading.as_of)

    def _frame_fold(self, name: str, as_of: int) -> Any:
        """A fold that the frame was made without: replayed up to the frame's position."""
        fold = find_fold(name)
        return self._replayed([fold], as_of).view(name)

    def _know(self, name: str) -> None:
        if not self._reader.knows(name):
            self._reader.add_fold(find_fold(name))

    def _head(self) -> int:
        def read() -> int:
            self._freshness.take()
            handle = self._reader.connection.handle()
            rows = self._reader.connection.retry(lambda: handle.execute("SELECT max(id) FROM events").fetchall())
            return rows[0][0] or 0

        return self._reader.with_ledger(read)

    def _published_as_of(self) -> int | None:
        with self._reader.transaction() as snapshot:
            if snapshot is None or snapshot.header.is_void or not snapshot.header.folds:
                return None
            return snapshot.header.position.as_of

    def _wait_until_published(self, event_id: int) -> None:
        self.wait_for(event_id, self._timeout_s)

    def _verify_here(self, fold: str | None) -> VerifyReport:
        names = (fold,) if fold is not None else self._reader.fold_names()
        with self._reader.transaction() as snapshot:
            folds = [self._reader.fold_named(name) for name in names]
            if snapshot is not None:
                folds = [one for one in folds if snapshot.header.generation_of(one) is not None]
            copy = copy_published(snapshot, folds) if snapshot is not None and folds else None
        if copy is None:
            return VerifyReport(True, 0, (), 0, 0, None)
        self._reader.with_ledger(self._freshness.take)
        return verify(self._reader.connection, copy).report

    def _call(self, command: str, args: Mapping[str, Any], timeout_s: float) -> Any:
        return commands.call(self._instance, command, args, timeout_s)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self.path}: the cache was closed")


def _checked(consistency: Consistency) -> Consistency:
    if consistency not in _CONSISTENCIES:
        raise ConfigError(f"consistency: expected one of {', '.join(_CONSISTENCIES)}, got {consistency!r}")
    return consistency


def wait_args(event_id: int, timeout_s: float) -> dict[str, int]:
    """Arguments of the wait command: the daemon gives up a little before the client does."""
    return {"event_id": event_id, "timeout_ms": max(0, int(timeout_s * 1_000) - 50)}


def checked_wait(result: Mapping[str, Any], path: str, event_id: int, timeout_s: float) -> int:
    """The event id up to which is published, from the daemon's answer.

    Raises:
        DaemonTimeoutError: it did not get there.
    """
    if not result["reached"]:
        raise DaemonTimeoutError(f"{path}: event {event_id} was not published within {timeout_s:g} s")
    return int(result["as_of"])


def report_of(result: Mapping[str, Any]) -> VerifyReport:
    """The report in the daemon's answer to verify."""
    return VerifyReport(
        bool(result["ok"]),
        int(result["as_of"]),
        tuple(result["folds"]),
        int(result["events"]),
        int(result["sealed_blocks"]),
        result["difference"],
    )


def replay_self_model(
    eventlog: EventLog, *, strict: bool, max_trait_delta: float, on_warn: OnWarn | None
) -> dict[str, Any]:
    """The self-model by a plain full replay; every close without evidence is reported."""
    with Cache(eventlog.path, timeout=eventlog.timeout) as cache:
        limit = float(max_trait_delta) if strict else MAX_TRAIT_DELTA
        model, fresh = cache._with_warnings(cache._replayed([SelfModelFold(limit)]))
    if on_warn is not None:
        for _, cid, event_id in fresh:
            warn(cid, event_id, on_warn)
    return self_model_dict(model, strict=strict)


_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for cache in _caches:
        cache._reader.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["Cache", "Consistency", "SnapshotUnavailableError"]
