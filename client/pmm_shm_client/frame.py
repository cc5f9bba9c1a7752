"""A frame: every answer at one position; and the replays for answers that a frame was made without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pmm_shm import limits
from pmm_shm.errors import ClosedError, ConfigError, FoldError
from pmm_shm.folds.directives import ActiveDirective, Directive, Directives
from pmm_shm.folds.engine import DECODE
from pmm_shm.folds.registry import checked_fold_name
from pmm_shm.folds.self_model import (
    MAX_TRAIT_DELTA,
    Cid,
    SelfModel,
    SelfModelFold,
    warning_count_in,
    warnings_since,
)
from pmm_shm.frozen import json_text, plain
from pmm_shm.late import late_imports
from pmm_shm.ledger.tail import Position
from pmm_shm.typed import TYPE_CHECKING, Any, NamedTuple, NoReturn
from pmm_shm_client.results import (
    FOLD_BEHIND,
    RESULTS,
    Commitments,
    History,
    Identity,
    Metrics,
    Model,
    Recent,
    SelfModelDict,
    Stage,
    applicable,
    self_model_dict,
)

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm.folds.state import State
    from pmm_shm.projection.replay import Progress
    from pmm_shm_client.reader import Reader, Reading
    from pmm_shm_client.replaying import ReplayReading

OnWarn = Callable[[dict[str, Any]], object]
CloseWithoutEvidence = tuple[Cid, int]
"""(cid, event id)"""


class Warnings(NamedTuple):
    """The closes without evidence up to some position: the first `total` of `closes`, a list that only grows."""

    closes: list[CloseWithoutEvidence]
    total: int


class Replays(NamedTuple):
    """Replays for answers that a frame was made without, all up to its position.

    Attributes:
        model: (trait limit, on_warn, event id) to the strict self-model with this limit.
        view: (fold name, event id) to the view of a fold.
        report: hands warnings that are new to `on_warn`.
    """

    model: Callable[[float, OnWarn | None, int], SelfModelDict]
    view: Callable[[str, int], Any]
    report: Callable[[Warnings, OnWarn], None]


def views_of(reading: Any, names: Iterable[str]) -> dict[str, Any]:
    """Name to view; for a fold whose view cannot be made, the `FoldError` that `Frame.fold` raises."""
    views: dict[str, Any] = {}
    for name in names:
        try:
            views[name] = reading.view(name)
        except FoldError as error:
            # A new one: a traceback would keep the read's transaction.
            views[name] = FoldError(str(error))
    return views


def warn(cid: Cid, event_id: int, on_warn: OnWarn) -> None:
    """Report one close without evidence; the exceptions of `on_warn` never reach the reader."""
    meta = {"cid": cid, "eid": event_id, "reason": "close_without_evidence"}
    content = f"commitment {cid!r} was closed by event {event_id} without prior evidence"
    try:
        on_warn({"kind": "projection_warn", "content": content, "meta": meta})
    except Exception:
        pass


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


class Replayer:
    """Answers by a full replay. Frames refer to it, and so it must not refer to the cache, which keeps frames: a cache
    is freed with its last reference.
    """

    def __init__(self, reader: Reader, warnings: WarningsLog) -> None:
        self._reader = reader
        self._warnings = warnings

    def replayed(
        self, folds: list[Fold], until_id: int | None = None, progress: Progress | None = None
    ) -> ReplayReading:
        """The folds at the head of the log, or at event `until_id`."""
        with late_imports:
            from pmm_shm_client.replaying import replayed

        self._reader.with_ledger(self._reader.freshness.take)
        return replayed(self._reader.connection, folds, until_id, progress)

    def model(self, limit: float, on_warn: OnWarn | None, until_id: int | None = None) -> SelfModelDict:
        """The strict self-model with another limit of trait deltas."""
        fold = SelfModelFold(checked_trait_delta(limit))
        model, closes = self.with_warnings(self.replayed([fold], until_id))
        if on_warn is not None:
            self._warnings.report(closes, on_warn)
        return self_model_dict(model, strict=True)

    def view(self, name: str, until_id: int) -> Any:
        """The view of a fold."""
        checked_fold_name(name)
        return self.replayed([self._reader.find_fold(name)], until_id).view(name)

    def with_warnings(self, reading: Reading | ReplayReading) -> tuple[SelfModel, Warnings]:
        return reading.view("self_model"), self._warnings.of(reading.state("self_model"))


def checked_trait_delta(limit: float) -> float:
    """`max_trait_delta` of a strict read.

    Raises:
        ConfigError: not a number.
    """
    try:
        return float(limit)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"max_trait_delta: {limit!r:.80} is not a number") from None


def _no_replay(*_: object) -> NoReturn:
    raise ClosedError("a copy of a frame has no ledger to replay: ask a cache")


def _report_all(warnings: Warnings, on_warn: OnWarn) -> None:
    for cid, event_id in warnings.closes[: warnings.total]:
        warn(cid, event_id, on_warn)


REPLAYS_OF_A_COPY = Replays(_no_replay, _no_replay, _report_all)


class Frame:
    """Immutable answers, all at `as_of`, made by `Cache.frame`; the methods are those of `Cache`, and read nothing.

    It can be copied and pickled. A copy has no cache: an answer that would need a replay raises `ClosedError`, and
    `on_warn` gets all closes without evidence.
    """

    __slots__ = ("_replays", "_results", "_views", "_warnings", "as_of", "not_applicable", "position")
    _replays: Replays
    _results: dict[str, Any]
    _views: dict[str, Any]
    _warnings: Warnings
    as_of: int
    """The newest event that it includes, an id; 0 before the first event."""
    not_applicable: tuple[str, ...]
    """As `Cache.not_applicable`."""
    position: Position
    """The same event with a digest of its row: what `expected_head=frame` compares."""

    def __init__(
        self,
        replays: Replays,
        views: Mapping[str, Any],
        warnings: Warnings,
        position: Position,
        not_applicable: tuple[str, ...] = (),
    ) -> None:
        for name, value in (
            ("_replays", replays),
            ("_views", dict(views)),
            ("_results", {}),
            ("_warnings", warnings),
            ("as_of", position.as_of),
            ("position", position),
            ("not_applicable", not_applicable),
        ):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Frame, (REPLAYS_OF_A_COPY, self._views, self._warnings, self.position, self.not_applicable)

    def __repr__(self) -> str:
        return f"<Frame as_of={self.as_of}>"

    def to_dict(self) -> dict[str, Any]:
        """All answers as a new dict, by the names of their methods; `fold` and the strict self-model are left out.

        The fields of answers that do not apply to the ledger are None; a key `not_applicable` then lists their names.
        """
        missing = self.not_applicable
        if "self_model" not in self._views:
            # The log of another program.
            return {"as_of": self.as_of, **{name: plain(self.fold(name)) for name in self._views if name != DECODE}}
        return {
            "as_of": self.as_of,
            "self_model": applicable("self_model", {**self.self_model()}, missing),
            **{name: applicable(name, self._result(name).to_dict(), missing) for name in RESULTS if name != "model"},
            "directives": self.directives(),
            "active_directives": self.active_directives(),
            **({"not_applicable": list(missing)} if missing else {}),
        }

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(self.to_dict())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a frame is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a frame is immutable")

    def self_model(
        self, strict: bool = False, max_trait_delta: float = MAX_TRAIT_DELTA, on_warn: OnWarn | None = None
    ) -> SelfModelDict:
        """As `Cache.self_model`; another limit than 0.05 is a full replay up to the frame's position."""
        if strict and max_trait_delta != MAX_TRAIT_DELTA:
            return self._replays.model(max_trait_delta, on_warn, self.as_of)
        if on_warn is not None:
            self._replays.report(self._warnings, on_warn)
        return self_model_dict(self._views["self_model"], strict=strict)

    def model(self) -> Model:
        """As `Cache.model`."""
        return self._result("model")  # type: ignore[no-any-return]

    def identity(self) -> Identity:
        """As `Cache.identity`."""
        return self._result("identity")  # type: ignore[no-any-return]

    def commitments(self) -> Commitments:
        """As `Cache.commitments`."""
        return self._result("commitments")  # type: ignore[no-any-return]

    def metrics(self) -> Metrics:
        """As `Cache.metrics`."""
        return self._result("metrics")  # type: ignore[no-any-return]

    def stage(self) -> Stage:
        """As `Cache.stage`."""
        return self._result("stage")  # type: ignore[no-any-return]

    def recent(self) -> Recent:
        """As `Cache.recent`."""
        return self._result("recent")  # type: ignore[no-any-return]

    def history(self) -> History:
        """As `Cache.history`."""
        return self._result("history")  # type: ignore[no-any-return]

    def directives(self) -> list[Directive]:
        """As `Cache.directives`: fresh dicts."""
        directives: Directives = self.fold("directives")
        return directives.rows()

    def active_directives(self) -> list[ActiveDirective]:
        """As `Cache.active_directives`: fresh dicts, best first."""
        directives: Directives = self.fold("directives")
        return directives.active()

    def _result(self, name: str) -> Any:
        """The result of a method, made of its view when it is first asked for."""
        found = self._results.get(name)
        if found is None:
            made = RESULTS[name](self.fold(FOLD_BEHIND.get(name, name)), self.as_of)
            found = self._results.setdefault(name, made)
        return found

    def fold(self, name: str) -> Any:
        """The view of any fold; one that its cache had not read before is replayed up to the frame's position.

        Raises:
            UnknownFoldError: no fold has this name.
            FoldError: it cannot make its view here. The other folds of the frame can be read all the same.
        """
        if name not in self._views:
            self._views[name] = self._replays.view(name, self.as_of)
        view = self._views[name]
        if view.__class__ is FoldError:
            raise FoldError(str(view))
        return view


class KeptFrames(NamedTuple):
    """The newest exact frames of a cache; all are of one history of the ledger. Swapped whole, never changed.

    Attributes:
        epoch: that of the connection at the newest of them.
        history: the `history` of the reading that the newest was made of.
        frames: `as_of` to frame, oldest first.
    """

    epoch: int
    history: object
    frames: dict[int, Frame]

    def with_frame(self, frame: Frame, epoch: int, reading: Reading) -> KeptFrames:
        """These and a new one, which was made of a reading; those that its log does not continue are dropped."""
        frames, newest = self.frames, next(reversed(self.frames.values()), None)
        if frame is newest and epoch == self.epoch:
            return self
        is_continued = newest is None or reading.history is self.history or newest.position == frame.position
        if newest is not None and not is_continued and not reading.holds(newest.position):
            frames = {}
        kept = [one for one in frames.values() if one.as_of < frame.as_of][1 - limits.FRAMES_KEPT :]
        return KeptFrames(epoch, reading.history, {one.as_of: one for one in (*kept, frame)})
