"""The read methods: which answer, by which way, and the memos that make a repeated read a comparison of 48 bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial, wraps
from time import monotonic

from pmm_shm import flags, limits
from pmm_shm.errors import ClosedError, ConfigError, FoldError
from pmm_shm.flags import Flag
from pmm_shm.folds.registry import checked_fold_name, is_same_fold, made_fold, name_of_type
from pmm_shm.folds.self_model import MAX_TRAIT_DELTA, SelfModel
from pmm_shm.instance.paths import Instance
from pmm_shm.late import late_imports
from pmm_shm.ledger.rows import ID_MIN
from pmm_shm.ledger.tail import head_of
from pmm_shm.projection.cursor import require_columns
from pmm_shm.typed import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar
from pmm_shm_client.frame import (
    Frame,
    KeptFrames,
    OnWarn,
    Replayer,
    Replays,
    Warnings,
    WarningsLog,
    views_of,
)
from pmm_shm_client.reader import Reader, Reading
from pmm_shm_client.reporting import Reporter
from pmm_shm_client.results import (
    FOLD_BEHIND,
    NOT_IN_PMM2,
    RESULTS,
    Commitments,
    History,
    Identity,
    Metrics,
    Model,
    Recent,
    SelfModelDict,
    Stage,
    self_model_dict,
)

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm.folds.directives import ActiveDirective, Directive
    from pmm_shm.ledger.opening import Schema
    from pmm_shm.projection.replay import Progress
    from pmm_shm_client.replaying import ReplayReading

Consistency = Literal["exact", "snapshot", "wait", "global"]
_CONSISTENCIES = ("exact", "snapshot", "wait", "global")
_REPLAY = "replay"
_FRAME = "frame"
_METRICS_GROUP = frozenset({"metrics", "stage", "history"})
_T = TypeVar("_T")
_ReadMethod = TypeVar("_ReadMethod", bound=Callable[..., Any])
_new_tuple = tuple.__new__


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


def _remembered(read: _ReadMethod) -> _ReadMethod:
    """The read method of one answer, which gives what it gave last while nothing is new.

    It does what `_get` does, in one call: a second one would take a fifth of the time.
    """
    name = read.__name__

    @wraps(read)
    def remembering(self: Reads, *, consistency: Consistency | None = None) -> Any:
        memo = self._memos.get(name)
        if memo is not None and consistency is None:
            # Unpacked at once: an attribute of a named tuple costs as much as the look-up.
            header, mark, _, _, value, counter = memo
            if (
                (monotonic() < self._freshness.trusted_until and header.raw == mark)
                if header is not None
                else mark is not None and self._reader.is_unchanged(mark)
            ):
                counter.hits += 1
                return value
        return read(self, consistency=consistency)

    return remembering  # type: ignore[return-value]


class Reads(ABC):
    """The read methods of `Cache`, over a `Reader`.

    Parameters:
        reader: makes the readings; it expires `memos` whenever their marks count for nothing any more.
        memos: where the answers of repeated reads are kept.
        consistency: of reads that do not say otherwise.
        timeout_s: how long a read with consistency `"wait"` waits.
        heeds_flags: whether the `PMM_USE_*` variables count.
    """

    def __init__(
        self, reader: Reader, memos: Memos, consistency: Consistency, timeout_s: float, heeds_flags: bool = True
    ) -> None:
        self.path = reader.connection.path
        self._reader = reader
        self._freshness = reader.freshness
        self._memos = memos
        self._consistency = consistency
        self._timeout_s = timeout_s
        self._projection_off = heeds_flags and flags.projection_cache() is Flag.OFF
        self._metrics_off = heeds_flags and flags.metrics_cache() is Flag.OFF
        self._counters = {"projection": ReadCounter(), "metrics": ReadCounter(), "embedding": ReadCounter()}
        self._warnings = WarningsLog()
        self._replayer = Replayer(reader, self._warnings)
        self._replays = Replays(self._replayer.model, self._replayer.view, self._warnings.report)
        # Not in the memos, to which the reader refers, and so each frame.
        self._kept_frames = KeptFrames(0, None, {})
        self._frames: dict[Any, tuple[Mapping[str, Any], Frame]] = {}
        self._added_folds: dict[str, Fold] = {}
        self._is_closed = False
        self._instance = Instance.of(self.path)
        self._reporter = Reporter(self._instance, self._counted)
        reader.snapshots.locator.on_pid_collision = self._reporter.hurry

    @abstractmethod
    def _counted(self) -> dict[str, int]:
        """The counters to report of this cache, by the names in `protocol.COUNTERS`."""

    @abstractmethod
    def wait_for(self, event_id: int, timeout: float = limits.COMMAND_TIMEOUT_S) -> int:
        """Wait until the daemon has published `event_id`."""

    @property
    def is_of_pmm2(self) -> bool:
        """Whether PMM 2 keeps the ledger: only the process that holds its writer lease can append."""
        self._check_open()
        return self._schema().is_of_pmm2

    @property
    def not_applicable(self) -> tuple[str, ...]:
        """The read methods whose answers do not apply to this ledger, otherwise none: `identity`, `metrics`, `stage`
        and `history` where PMM 2 keeps it.

        There they return values without a meaning: no name, traits of 0.5, stage S0, scores of 0.0 or little more. The
        commands, and `to_dict` of a frame or a context, have None in their place.
        """
        return NOT_IN_PMM2 if self.is_of_pmm2 else ()

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
            self._check_open()
            return self._replayer.model(max_trait_delta, on_warn)
        model: SelfModel = self._get("self_model", consistency)
        if on_warn is not None and model.warning_count:
            model, closes = self._run(
                self._mode("self_model", consistency), self._replayer.with_warnings, ("self_model",)
            )
            self._warnings.report(closes, on_warn)
        return self_model_dict(model, strict=strict)

    @_remembered
    def model(self, *, consistency: Consistency | None = None) -> Model:
        """The self-model, read-only at every depth and without a copy, whatever its size."""
        return self._read("model", consistency)  # type: ignore[no-any-return]

    @_remembered
    def identity(self, *, consistency: Consistency | None = None) -> Identity:
        """The adopted name and the five traits."""
        return self._read("identity", consistency)  # type: ignore[no-any-return]

    @_remembered
    def commitments(self, *, consistency: Consistency | None = None) -> Commitments:
        """Open and expired commitments, read-only and in order."""
        return self._read("commitments", consistency)  # type: ignore[no-any-return]

    @_remembered
    def metrics(self, *, consistency: Consistency | None = None) -> Metrics:
        """IAS and GAS."""
        return self._read("metrics", consistency)  # type: ignore[no-any-return]

    @_remembered
    def stage(self, *, consistency: Consistency | None = None) -> Stage:
        """The developmental stage and its snapshot."""
        return self._read("stage", consistency)  # type: ignore[no-any-return]

    def directives(self, *, consistency: Consistency | None = None) -> list[Directive]:
        """All directives, as fresh dicts."""
        return self._get("directives", consistency).rows()  # type: ignore[no-any-return]

    def active_directives(self, *, consistency: Consistency | None = None) -> list[ActiveDirective]:
        """The active set of directives, best first, as fresh dicts."""
        return self._get("directives", consistency).active()  # type: ignore[no-any-return]

    @_remembered
    def recent(self, *, consistency: Consistency | None = None) -> Recent:
        """The newest reflections, messages and telemetry."""
        return self._read("recent", consistency)  # type: ignore[no-any-return]

    @_remembered
    def history(self, *, consistency: Consistency | None = None) -> History:
        """IAS and GAS over the life of the ledger, and the changes of stage and name, in bounded space."""
        return self._read("history", consistency)  # type: ignore[no-any-return]

    def fold(self, name: str, *, consistency: Consistency | None = None) -> Any:
        """The view of any fold, built in or registered.

        Raises:
            UnknownFoldError: no fold has this name.
        """
        self._know(name)
        return self._get("fold:" + name, consistency)

    def frame(self, *, consistency: Consistency | None = None) -> Frame:
        """All answers at one position, immutable. While nothing is new, it is the same object."""
        memo, made = self._memos.get(_FRAME), self._frames.get(_FRAME)
        if (
            memo is not None
            and made is not None
            and memo.view is made[0]
            and consistency is None
            # As in `_get`.
            and (
                (monotonic() < self._freshness.trusted_until and memo.header.raw == memo.mark)
                if memo.header is not None
                else memo.mark is not None and self._reader.is_unchanged(memo.mark)
            )
        ):
            memo.counter.hits += 1
            return made[1]
        self._check_open()
        is_off = self._projection_off or self._metrics_off
        mode = _REPLAY if is_off else self._mode("self_model", consistency)
        names = tuple(self._reader.folds)
        frame = self._run(mode, lambda reading: self._build_frame(names, mode, reading), names)
        if monotonic() >= self._reporter.due:
            self._reporter.report()
        return frame

    def kept_frame(self, event_id: int) -> Frame | None:
        """The exact frame at this event, if it is one of the `limits.FRAMES_KEPT` newest that `frame` has made here.

        It reads nothing, so it costs a look-up. `frame` drops those that are not of the ledger's history: a restored
        ledger has another one.
        """
        self._check_open()
        kept = self._kept_frames
        return kept.frames.get(event_id) if kept.epoch == self._reader.connection.epoch else None

    def frame_at(self, event_id: int, progress: Progress | None = None) -> Frame:
        """All answers as of an event: exact for the log that ends with it.

        A frame that is kept costs nothing. Any other one is a replay in memory, of which later calls use the parts:
        the next event, or one shortly before, costs little.

        Parameters:
            event_id: an event, or an id between two, which stands for the event before it. With one behind the newest,
                the frame is the newest; before the first, it is that of an empty log.
            progress: called with the position of the replay from time to time, if there is one. An exception out of it
                ends the call.

        Raises:
            ConfigError: no event id.
        """
        if type(event_id) is not int:
            raise ConfigError(f"event_id: expected an event id, got {event_id!r:.80}")
        event_id = max(event_id, ID_MIN)
        newest = self._exact_frame()
        if event_id >= newest.as_of:
            return newest
        return self.kept_frame(event_id) or self._past_frame(event_id, progress)

    def _exact_frame(self) -> Frame:
        return self.frame() if self._consistency == "exact" else self.frame(consistency="exact")

    # How a read is made.

    def _get(self, name: str, consistency: Consistency | None) -> Any:
        memo = self._memos.get(name)
        if memo is not None and consistency is None:
            # As in `_remembered`.
            header, mark, _, _, value, counter = memo
            if (
                (monotonic() < self._freshness.trusted_until and header.raw == mark)
                if header is not None
                else mark is not None and self._reader.is_unchanged(mark)
            ):
                counter.hits += 1
                return value
        return self._read(name, consistency)

    def _read(self, name: str, consistency: Consistency | None) -> Any:
        self._check_open()
        reader = self._reader
        source = name[5:] if name.startswith("fold:") else FOLD_BEHIND.get(name, name)
        if source not in reader.folds:
            self._know(source)
        mode = self._mode(source, consistency)
        fold = reader.folds[source]
        if fold.columns and mode == "exact":
            reader.with_ledger(require_columns, (fold,), reader.connection)
        counter = self._counters["metrics" if source in _METRICS_GROUP else "projection"]
        build = partial(self._build, name, source, mode, counter)
        value = reader.exact(build) if mode == "exact" else self._run(mode, build, (source,))
        if monotonic() >= self._reporter.due:
            self._reporter.report()
        return value

    def _build(self, name: str, source: str, mode: str, counter: ReadCounter, reading: Reading | ReplayReading) -> Any:
        """The answer, memoised. An exact read runs it with the reader's lock held, so that no memo of a closed
        connection is left behind.
        """
        view, as_of = reading.view(source), reading.as_of
        key, header, mark = self._memo_key(name, mode, reading)
        before = self._memos.get(key)
        counter.last_id = as_of
        if before is not None and before.view is view and before.as_of == as_of:
            counter.hits += 1
            value = before.value
        else:
            is_other = before is None or not _is_same(source, before.view, view)
            counter.missed(is_published=reading.is_published(source), is_recomputed=is_other)
            value = RESULTS[name](view, as_of) if name in RESULTS else view
        self._memos[key] = _new_tuple(Memo, (header, mark, view, as_of, value, counter))
        return value

    def _memo_key(self, name: str, mode: str, reading: Reading | ReplayReading) -> tuple[Any, Any, Any]:
        """The key of a memo, its mapped header, and its mark."""
        if mode == "exact" == self._consistency:
            return name, self._freshness.header, reading.mark
        return (mode, name), None, None

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
            return make(self._replayer.replayed([self._reader.folds[name] for name in names]))
        if mode == "snapshot":
            return self._reader.published(make, names)
        if mode == "global":
            self._wait_for_source()
            return self._reader.exact(make)
        deadline = monotonic() + self._timeout_s
        head = self._head()
        self.wait_for(head, max(0.0, deadline - monotonic()))
        return self._reader.published(make, names, head)

    def _build_frame(self, names: tuple[str, ...], mode: str, reading: Reading | ReplayReading) -> Frame:
        """The frame, memoised; as `_build`. It is one read, a hit if all of it is what the last frame had."""
        counter = self._counters["projection"]
        key, header, mark = self._memo_key(_FRAME, mode, reading)
        if mode == "exact":
            # With the lock held: no fold that takes part by now is missing.
            names = tuple(self._reader.folds)
        views = views_of(reading, names)
        before = self._memos.get(key)
        is_same = (
            before is not None
            and before.view.keys() == views.keys()
            and all(_is_same(name, before.view[name], view) for name, view in views.items())
        )
        counter.last_id = reading.as_of
        if before is not None and is_same and before.value == reading.position:
            counter.hits += 1
            views = before.view
        else:
            counter.missed(is_published=reading.is_published(names[0]), is_recomputed=not is_same)
        made = self._frames.get(key)
        if made is None or made[0] is not views or made[1].not_applicable is not self._not_applicable_here():
            made = self._frames[key] = views, self._make_frame(views, reading)
        if isinstance(reading, Reading) and mode == "exact":
            self._kept_frames = self._kept_frames.with_frame(made[1], self._reader.connection.epoch, reading)
        self._memos[key] = Memo(header, mark, views, reading.as_of, reading.position, counter)
        return made[1]

    def _make_frame(self, views: Mapping[str, Any], reading: Reading | ReplayReading) -> Frame:
        warnings = self._warnings.of(reading.state("self_model")) if "self_model" in views else Warnings([], 0)
        return Frame(self._replays, views, warnings, reading.position, self._not_applicable_here())

    def _not_applicable_here(self) -> tuple[str, ...]:
        return NOT_IN_PMM2 if self._reader.connection.schema.is_of_pmm2 else ()

    def _schema(self) -> Schema:
        """The table `events`, as it is now."""

        def look() -> Schema:
            self._freshness.take()
            self._reader.connection.follow_schema()
            return self._reader.connection.schema

        return self._reader.with_ledger(look)

    def _past_frame(self, event_id: int, progress: Progress | None) -> Frame:
        names = tuple(self._reader.folds)
        if self._projection_off or self._metrics_off:
            reading: ReplayReading = self._replayer.replayed(list(self._reader.folds.values()), event_id, progress)
            return self._make_frame(views_of(reading, names), reading)
        with late_imports:
            from pmm_shm_client.past import PastReads

        past: PastReads = vars(self).setdefault("_past", PastReads(self._reader))
        return past.at(event_id, lambda reading: self._make_frame(views_of(reading, names), reading), progress)

    def _know(self, name: str) -> None:
        checked_fold_name(name)
        if name not in self._reader.folds:
            self._reader.add_fold(self._reader.find_fold(name))

    def add_fold(self, fold: Fold | type[Fold]) -> None:
        """Let a fold that is not registered take part in reads of this cache, by its name.

        A daemon that this cache starts keeps it, too, if its class can be imported and makes the same fold without
        arguments. Beside a daemon that does not keep it, each process folds it in memory.

        Raises:
            FoldError: it breaks the contract, or another fold has its name.
        """
        self._check_open()
        made = made_fold(fold, "fold")
        known, fitted = self._reader.folds.get(made.name), self._reader.fitted(made)
        if known is not None and not is_same_fold(known, fitted):
            raise FoldError(f"fold {name_of_type(made)!r}: the name {made.name!r} is taken")
        self._added_folds[made.name] = made
        if known is None:
            self._reader.add_fold(fitted)

    def _head(self) -> int:
        def read() -> int:
            self._freshness.take()
            return head_of(self._reader.connection)

        return self._reader.with_ledger(read)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self.path}: the cache was closed")


def _is_same(fold: str, before: Any, view: Any) -> bool:
    """Whether a view counts as the one before. Those of `metrics` and `stage` are new objects behind every event."""
    return before is view or (fold in ("metrics", "stage") and bool(before == view))


def checked_consistency(consistency: Consistency) -> Consistency:
    if consistency not in _CONSISTENCIES:
        raise ConfigError(f"consistency: expected one of {', '.join(_CONSISTENCIES)}, got {consistency!r}")
    return consistency
