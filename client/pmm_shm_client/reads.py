"""The read methods: which answer, by which way, and the memos that make a repeated read a comparison of 48 bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar

from pmm_shm import flags, limits
from pmm_shm.errors import ClosedError, ConfigError
from pmm_shm.flags import Flag
from pmm_shm.folds.registry import checked_fold_name, find_fold
from pmm_shm.folds.self_model import MAX_TRAIT_DELTA, SelfModel, SelfModelFold, warning_count_in, warnings_since
from pmm_shm.instance.paths import Instance
from pmm_shm.late import late_imports
from pmm_shm.ledger.tail import head_of
from pmm_shm_client.frame import FOLD_BEHIND, RESULTS, CloseWithoutEvidence, Frame, OnWarn, Replays, Warnings, warn
from pmm_shm_client.reader import Reader, Reading
from pmm_shm_client.reporting import Reporter
from pmm_shm_client.results import (
    Commitments,
    History,
    Identity,
    Metrics,
    Recent,
    SelfModelDict,
    Stage,
    self_model_dict,
)

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm.folds.directives import ActiveDirective, Directive
    from pmm_shm.folds.state import State
    from pmm_shm_client.replaying import ReplayReading

Consistency = Literal["exact", "snapshot", "wait", "global"]
_CONSISTENCIES = ("exact", "snapshot", "wait", "global")
_REPLAY = "replay"
_METRICS_GROUP = frozenset({"metrics", "stage", "history"})
_T = TypeVar("_T")


class WarningsLog:
    """The closes without evidence that were seen and reported; starts again when the ledger is replaced.

    It keeps what it has seen, so that each read decodes only newer ones.
    """

    def __init__(self) -> None:
        self._closes: list[CloseWithoutEvidence] = []
        self._reported = 0

    def of(self, state: State) -> Warnings:
        """The closes without evidence in a state of the self-model, at any position."""
        count = warning_count_in(state)
        known = min(len(self._closes), count)
        if known and tuple(state.table("warnings")[known - 1]) != self._closes[known - 1]:
            # Another history. (A state with fewer closes is only an older one.) Holders of the old list keep it.
            self._closes, self._reported = [], 0
        if len(self._closes) < count:
            self._closes += [(cid, event_id) for cid, event_id in warnings_since(state, len(self._closes))]
        return Warnings(self._closes, count)

    def report(self, warnings: Warnings, on_warn: OnWarn) -> None:
        """Pass each new warning to `on_warn`; its exceptions never reach the reader."""
        if warnings.closes is not self._closes:
            return
        fresh = warnings.closes[self._reported : warnings.total]
        self._reported += len(fresh)
        for cid, event_id in fresh:
            warn(cid, event_id, on_warn)


class _ReadNumbers(TypedDict):
    cache_hits: int
    cache_misses: int
    hit_rate: float
    caught_up: int
    replayed: int


class ReadCounter:
    """Reads of one group of methods, or look-ups of vectors, as this process sees them.

    Attributes:
        hits: nothing was new: the last answer was returned again.
        misses: the answer was made anew; of reads, `caught_up` and `replayed` together.
        caught_up: made of the published state and the events after it.
        replayed: made without a published state, by a replay in this process.
        recomputations: misses for which the view was another, too.
    """

    __slots__ = ("caught_up", "hits", "last_id", "misses", "recomputations", "replayed")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.caught_up = 0
        self.replayed = 0
        self.recomputations = 0
        self.last_id = 0

    def missed(self, *, is_published: bool, is_recomputed: bool) -> None:
        """Count a read that was no hit."""
        self.misses += 1
        self.recomputations += is_recomputed
        if is_published:
            self.caught_up += 1
        else:
            self.replayed += 1

    @property
    def hit_rate(self) -> float:
        """The hits among all reads, 0.0 to 1.0."""
        return self.hits / ((self.hits + self.misses) or 1)

    def as_dict(self) -> _ReadNumbers:
        return {
            "cache_hits": self.hits,
            "cache_misses": self.misses,
            "hit_rate": self.hit_rate,
            "caught_up": self.caught_up,
            "replayed": self.replayed,
        }


class Memo(NamedTuple):
    """The last answer of a method; swapped whole, never changed.

    Attributes:
        header: the mapped wal-index header that is compared with `mark`; None where the mark is another.
        mark: as of which mark of the ledger the answer is exact; None where it is not known to be.
        view, as_of: the source of the answer; the answer is reused while they are the same.
        value: the answer.
        counter: counts the hits.
    """

    header: Any
    mark: Any
    view: Any
    as_of: int
    value: Any
    counter: ReadCounter


class Memos(dict[str | tuple[str, str], Memo]):
    """Method to the memo of its exact reads; (mode, method) to that of its other reads, which have no mark."""

    def expire(self) -> None:
        """The marks count for nothing any more."""
        for name, memo in list(self.items()):
            self[name] = memo._replace(header=None, mark=None)


class Reads(ABC):
    """The read methods of `Cache`, over a `Reader`.

    Parameters:
        reader: makes the readings; it expires `memos` whenever their marks count for nothing any more.
        memos: where the answers of repeated reads are kept.
        consistency: of reads that do not say otherwise.
        timeout_s: how long a read with consistency `"wait"` waits.
    """

    def __init__(self, reader: Reader, memos: Memos, consistency: Consistency, timeout_s: float) -> None:
        self.path = reader.connection.path
        self._reader = reader
        self._freshness = reader.freshness
        self._memos = memos
        self._consistency = consistency
        self._timeout_s = timeout_s
        self._projection_off = flags.projection_cache() is Flag.OFF
        self._metrics_off = flags.metrics_cache() is Flag.OFF
        self._counters = {"projection": ReadCounter(), "metrics": ReadCounter(), "embedding": ReadCounter()}
        self._warnings = WarningsLog()
        self._last_frame: tuple[int, Mapping[str, Any]] = (-1, {})
        self._is_closed = False
        self._reporter = Reporter(Instance.of(self.path), self._counted)
        reader.snapshots.locator.on_pid_collision = self._reporter.hurry

    @abstractmethod
    def _counted(self) -> dict[str, int]:
        """The counters to report of this cache, by the names in `protocol.COUNTERS`."""

    @abstractmethod
    def wait_for(self, event_id: int, timeout: float = limits.COMMAND_TIMEOUT_S) -> int:
        """Wait until the daemon has published `event_id`."""

    @abstractmethod
    def _wait_for_source(self) -> None:
        """On a replica, wait until it has all that PostgreSQL has now."""

    def self_model(
        self,
        strict: bool = False,
        max_trait_delta: float = MAX_TRAIT_DELTA,
        on_warn: OnWarn | None = None,
        *,
        consistency: Consistency | None = None,
    ) -> SelfModelDict:
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

    def directives(self, *, consistency: Consistency | None = None) -> list[Directive]:
        """All directives, as fresh dicts."""
        return self._get("directives", consistency).rows()  # type: ignore[no-any-return]

    def active_directives(self, *, consistency: Consistency | None = None) -> list[ActiveDirective]:
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
            UnknownFoldError: no fold has this name.
        """
        self._know(name)
        return self._get("fold:" + name, consistency)

    def frame(self, *, consistency: Consistency | None = None) -> Frame:
        """All answers at one position, immutable, built now."""
        names = tuple(self._reader.folds)
        is_off = self._projection_off or self._metrics_off
        mode = _REPLAY if is_off else self._mode("self_model", consistency)
        frame = self._run(mode, lambda reading: self._make_frame(reading, names), names)
        if monotonic() >= self._reporter.due:
            self._reporter.report()
        return frame

    # How a read is made.

    def _get(self, name: str, consistency: Consistency | None) -> Any:
        memo = self._memos.get(name)
        if (
            memo is not None
            and consistency is None
            and (
                (monotonic() < self._freshness.trusted_until and memo.header.raw == memo.mark)
                if memo.header is not None
                else memo.mark is not None and self._reader.is_unchanged(memo.mark)
            )
        ):
            memo.counter.hits += 1
            return memo.value
        return self._read(name, consistency)

    def _read(self, name: str, consistency: Consistency | None) -> Any:
        self._check_open()
        source = name[5:] if name.startswith("fold:") else FOLD_BEHIND.get(name, name)
        mode = self._mode(source, consistency)
        counter = self._counters["metrics" if source in _METRICS_GROUP else "projection"]

        def build(reading: Reading | ReplayReading) -> Any:
            return self._build(name, source, mode, reading, counter)

        value = self._reader.exact(build) if mode == "exact" else self._run(mode, build, (source,))
        if monotonic() >= self._reporter.due:
            self._reporter.report()
        return value

    def _build(self, name: str, source: str, mode: str, reading: Reading | ReplayReading, counter: ReadCounter) -> Any:
        """The answer, memoised. An exact read runs it with the reader's lock held, so that no memo of a closed
        connection is left behind.
        """
        view, as_of = reading.view(source), reading.as_of
        header = mark = None
        key: str | tuple[str, str] = (mode, name)
        if mode == "exact" == self._consistency:
            key, header, mark = name, self._freshness.header, reading.mark
        before = self._memos.get(key)
        counter.last_id = as_of
        if before is not None and before.view is view and before.as_of == as_of:
            counter.hits += 1
            value = before.value
        else:
            is_other = before is None or before.view is not view
            counter.missed(is_published=reading.is_published(source), is_recomputed=is_other)
            value = RESULTS[name](view, as_of) if name in RESULTS else view
        self._memos[key] = Memo(header, mark, view, as_of, value, counter)
        return value

    def _last_memo(self, name: str) -> Memo | None:
        """The memo of a method, whichever way it was read."""
        keys: list[str | tuple[str, str]] = [name, *((mode, name) for mode in (*_CONSISTENCIES, _REPLAY))]
        return next((self._memos[key] for key in keys if key in self._memos), None)

    def _mode(self, source: str, consistency: Consistency | None) -> str:
        if self._metrics_off if source in _METRICS_GROUP else self._projection_off:
            return _REPLAY
        return self._consistency if consistency is None else checked_consistency(consistency)

    def _run(self, mode: str, make: Callable[[Any], _T], names: tuple[str, ...]) -> _T:
        self._check_open()
        if mode == "exact":
            return self._reader.exact(make)
        if mode == _REPLAY:
            return make(self._replayed([self._reader.folds[name] for name in names]))
        if mode == "snapshot":
            return self._reader.published(make, names)
        if mode == "global":
            self._wait_for_source()
            return self._reader.exact(make)
        deadline = monotonic() + self._timeout_s
        head = self._head()
        self.wait_for(head, max(0.0, deadline - monotonic()))
        return self._reader.published(make, names, head)

    def _replayed_model(self, limit: float, on_warn: OnWarn | None, until_id: int | None = None) -> SelfModelDict:
        self._check_open()
        model, closes = self._with_warnings(self._replayed([SelfModelFold(checked_trait_delta(limit))], until_id))
        if on_warn is not None:
            self._warnings.report(closes, on_warn)
        return self_model_dict(model, strict=True)

    def _with_warnings(self, reading: Reading | ReplayReading) -> tuple[SelfModel, Warnings]:
        return reading.view("self_model"), self._warnings.of(reading.state("self_model"))

    def _make_frame(self, reading: Reading | ReplayReading, names: tuple[str, ...]) -> Frame:
        views = {name: reading.view(name) for name in names}
        self._count_frame(reading, views)
        # Made here, and not kept: a cache that refers to itself would not be freed with its last reference.
        replays = Replays(self._replayed_model, self._replayed_view, self._warnings.report)
        return Frame(replays, views, self._warnings.of(reading.state("self_model")), reading.position)

    def _count_frame(self, reading: Reading | ReplayReading, views: Mapping[str, Any]) -> None:
        """A frame is one read, a hit if all of it is what the last frame had."""
        before, counter = self._last_frame, self._counters["projection"]
        self._last_frame = (reading.as_of, views)
        is_same = before[1].keys() == views.keys() and all(before[1][name] is view for name, view in views.items())
        if is_same and before[0] == reading.as_of:
            counter.hits += 1
        else:
            counter.missed(is_published=reading.is_published("self_model"), is_recomputed=not is_same)
        counter.last_id = reading.as_of

    def _replayed_view(self, name: str, as_of: int) -> Any:
        return self._replayed([find_fold(name)], as_of).view(name)

    def _replayed(self, folds: list[Fold], until_id: int | None = None) -> ReplayReading:
        with late_imports:
            from pmm_shm_client.replaying import replayed

        self._reader.with_ledger(self._freshness.take)
        return replayed(self._reader.connection, folds, until_id)

    def _know(self, name: str) -> None:
        checked_fold_name(name)
        if name not in self._reader.folds:
            self._reader.add_fold(find_fold(name))

    def _head(self) -> int:
        def read() -> int:
            self._freshness.take()
            return head_of(self._reader.connection)

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
