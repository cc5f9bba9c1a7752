"""The read methods: which answer, by which way, and the memos that make a repeated read a comparison of 48 bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Any, Literal, NamedTuple, TypeVar

from pmm_shm import flags, limits
from pmm_shm.errors import ClosedError, ConfigError
from pmm_shm.flags import Flag
from pmm_shm.folds.registry import find_fold
from pmm_shm.folds.self_model import MAX_TRAIT_DELTA, SelfModel, SelfModelFold
from pmm_shm.instance.paths import Instance
from pmm_shm.names import checked_fold_name
from pmm_shm_client.counters import ReadCounter
from pmm_shm_client.frame import RESULTS, Frame, SourceFor
from pmm_shm_client.reader import Reader, Reading
from pmm_shm_client.replaying import ReplayReading, replayed
from pmm_shm_client.reporting import Reporter
from pmm_shm_client.results import Commitments, History, Identity, Metrics, Recent, Stage, self_model_dict
from pmm_shm_client.warnings_log import OnWarn, Warnings, WarningsLog

Consistency = Literal["exact", "snapshot", "wait"]
_CONSISTENCIES = ("exact", "snapshot", "wait")
_REPLAY = "replay"
_METRICS_GROUP = frozenset({"metrics", "stage", "history"})
_T = TypeVar("_T")


class Memo(NamedTuple):
    """An answer and the mark it stands for; swapped whole, never changed."""

    header: Any
    mark: Any
    value: Any
    counter: ReadCounter


class _Built(NamedTuple):
    """The last answer of a method, to be handed out again while view and position are the same."""

    view: Any
    as_of: int
    value: Any


class Reads(ABC):
    """The read methods of `Cache`, over a `Reader`.

    Parameters:
        reader: makes the readings; it clears `memos` whenever they count for nothing any more.
        memos: where the answers of repeated reads are kept.
        consistency: of reads that do not say otherwise.
        timeout_s: how long a read with consistency `"wait"` waits.
    """

    def __init__(self, reader: Reader, memos: dict[str, Memo], consistency: Consistency, timeout_s: float) -> None:
        self.path = reader.connection.path
        self._reader = reader
        self._freshness = reader.freshness
        self._memos = memos
        self._consistency = consistency
        self._timeout_s = timeout_s
        self._projection_off = flags.projection_cache() is Flag.OFF
        self._metrics_off = flags.metrics_cache() is Flag.OFF
        self._built: dict[str, _Built] = {}
        self._counters = {"projection": ReadCounter(), "metrics": ReadCounter()}
        self._warnings = WarningsLog()
        self._is_closed = False
        self._reporter = Reporter(Instance.of(self.path), self._counted)

    @abstractmethod
    def _counted(self) -> dict[str, int]:
        """What is reported of this cache, by the names in `protocol.COUNTERS`."""

    @abstractmethod
    def wait_for(self, event_id: int, timeout: float = limits.COMMAND_TIMEOUT_S) -> int:
        """Wait until the daemon has published `event_id`."""

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
            ConfigError: `strict`, and `max_trait_delta` is not a number.
            ProjectionInvariantError: `strict`, and the state violates an invariant.
        """
        if strict and max_trait_delta != MAX_TRAIT_DELTA:
            return self._replayed_model(max_trait_delta, on_warn)
        model: SelfModel = self._get("self_model", consistency)
        if on_warn is not None and model.warning_count:
            model, closes = self._run(self._mode("self_model", consistency), self._with_warnings, ("self_model",))
            self._warnings.report(closes, on_warn)
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

    def history(self, *, consistency: Consistency | None = None) -> History:
        """IAS and GAS over the life of the ledger, and the changes of stage and name, in bounded space."""
        return self._get("history", consistency)  # type: ignore[no-any-return]

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
            value = self._run(mode, lambda reading: self._build(name, source, reading, counter), (source,))
        else:
            value = self._reader.exact(lambda reading: self._build_and_memoise(name, source, reading, counter))
        if monotonic() >= self._reporter.due:
            self._reporter.report()
        return value

    def _build_and_memoise(self, name: str, source: str, reading: Reading, counter: ReadCounter) -> Any:
        """Runs with the reader's lock held, so that no memo of a closed connection is left behind."""
        value = self._build(name, source, reading, counter)
        if self._consistency == "exact":
            self._memos[name] = Memo(self._freshness.header, reading.mark, value, counter)
        return value

    def _build(self, name: str, source: str, reading: Reading | ReplayReading, counter: ReadCounter) -> Any:
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
        return self._consistency if consistency is None else checked_consistency(consistency)

    def _run(self, mode: str, make: Callable[[Any], _T], names: tuple[str, ...]) -> _T:
        self._check_open()
        if mode == "exact":
            return self._reader.exact(make)
        if mode == _REPLAY:
            return make(replayed(self._reader, [self._reader.fold_named(name) for name in names]))
        if mode == "snapshot":
            return self._reader.published(make, names)
        head = self._head()
        self.wait_for(head, self._timeout_s)
        return self._reader.published(make, names, head)

    def _replayed_model(self, limit: float, on_warn: OnWarn | None, until_id: int | None = None) -> dict[str, Any]:
        self._check_open()
        model, closes = self._with_warnings(
            replayed(self._reader, [SelfModelFold(checked_trait_delta(limit))], until_id)
        )
        if on_warn is not None:
            self._warnings.report(closes, on_warn)
        return self_model_dict(model, strict=True)

    def _with_warnings(self, reading: Reading | ReplayReading) -> tuple[SelfModel, Warnings]:
        return reading.view("self_model"), self._warnings.of(reading.state("self_model"))

    def _make_frame(self, reading: Reading | ReplayReading, names: tuple[str, ...]) -> Frame:
        views = {name: reading.view(name) for name in names}
        return Frame(self, views, self._warnings.of(reading.state("self_model")), reading.as_of)

    def _frame_fold(self, name: str, as_of: int) -> Any:
        """A fold that the frame was made without: replayed up to the frame's position."""
        fold = find_fold(name)
        return replayed(self._reader, [fold], as_of).view(name)

    def _know(self, name: str) -> None:
        checked_fold_name(name)
        if not self._reader.knows(name):
            self._reader.add_fold(find_fold(name))

    def _head(self) -> int:
        def read() -> int:
            self._freshness.take()
            handle = self._reader.connection.handle()
            rows = self._reader.connection.retry(lambda: handle.execute("SELECT max(id) FROM events").fetchall())
            return rows[0][0] or 0

        return self._reader.with_ledger(read)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self.path}: the cache was closed")


def checked_consistency(consistency: Consistency) -> Consistency:
    if consistency not in _CONSISTENCIES:
        raise ConfigError(f"consistency: expected one of {', '.join(_CONSISTENCIES)}, got {consistency!r}")
    return consistency


def checked_trait_delta(limit: float) -> float:
    """`max_trait_delta` of a strict read.

    Raises:
        ConfigError: not a number.
    """
    try:
        return float(limit)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"max_trait_delta: {limit!r:.80} is not a number") from None
