"""IAS and GAS over the life of the ledger, with the changes of stage and name, in bounded space.

A sample is an event behind which IAS or GAS reads otherwise than before. The samples of each `stride` event ids make
one point; when there are more than `HISTORY_POINTS_MAX` points, the stride doubles until there are not. So the curve is
exact as long as it is short; when it is long, it keeps the first, last, lowest and highest value of each point. The
scores are those of the log, computed by the steps of `metrics`; what ticks say of themselves (their telemetry) decides
the stage alone, by the steps of `stage`.

What is bounded are the points and the changes. The steps of `metrics` also remember every violation that was seen, here
as there.

State, beside the cells and tables of these steps and of the name's (see `metrics`, `stage`, `self_model`):
    cell `course`: [stride, how many points are full, stage, count of changes of the stage, and of the name, the newest
    point, which still grows, or None];
    tables `points` (number to a full point), `stages` and `names` (ordinal to [event id, value], the newest ones).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.folds.contract import BatchFold, Column
from pmm_shm.folds.metrics import METRICS_KINDS, Scoring
from pmm_shm.folds.self_model import IDENTITY_STEPS, name_in
from pmm_shm.folds.stage import StageFold, Window
from pmm_shm.folds.state import State, Touched
from pmm_shm.ledger.rows import Event

FIRST_STAGE = "S0"
NOT_TEXT = "(not text)"
"""How a name appears here that is another JSON value than text."""


class Point(NamedTuple):
    """Successive samples: the ids of the first and the last of them, how many they are, the stage behind the last."""

    first_id: int
    last_id: int
    samples: int
    stage: str
    ias_first: float
    ias_last: float
    ias_min: float
    ias_max: float
    gas_first: float
    gas_last: float
    gas_min: float
    gas_max: float


class StageChange(NamedTuple):
    """The event behind which the stage was another."""

    event_id: int
    stage: str


class NameChange(NamedTuple):
    """The event behind which the name was another; at most 80 characters of it, None for no name."""

    event_id: int
    name: str | None


class HistoryView(NamedTuple):
    """The history at one position.

    Attributes:
        points: oldest first, at most `HISTORY_POINTS_MAX`.
        stride: how many event ids one point may span; a power of two.
        stages, names: the newest changes, oldest first, at most `HISTORY_CHANGES_MAX` of each.
        stage_count, name_count: how many changes there were.
    """

    points: tuple[Point, ...]
    stride: int
    stages: tuple[StageChange, ...]
    stage_count: int
    names: tuple[NameChange, ...]
    name_count: int


_CELL = "course"
_FIRST: list[Any] = [1, 0, FIRST_STAGE, 0, 0, None]


class HistoryFold(BatchFold):
    """Computes `HistoryView`."""

    name = "history"
    version = 2
    checks_values = False
    shares_events = True
    kinds: Mapping[str, tuple[Column, ...]] = {
        "identity_adopt": ("content", "meta"),
        "identity_change": ("content", "meta"),
        "identity_clear": (),
        "commitment_open": ("content",),
        "commitment_close": (),
        "reflection": ("content", "meta"),
        "invariant_violation": ("meta",),
        "autonomy_tick": ("meta",),
    }

    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        course, scoring, window = _Course(state), Scoring(state), Window(state)
        for event in events:
            kind = event.kind
            if kind in IDENTITY_STEPS:
                IDENTITY_STEPS[kind](event, state)
                course.note_name(event.id, name_in(state))
            if kind in StageFold.kinds and window.note(event):
                course.note_stage(event.id, window.stage())
            if kind in METRICS_KINDS:
                # The last one, for the sample notes the stage.
                scoring.apply(event)
                course.sample(event.id, *scoring.read())
        for part in (course, scoring, window):
            part.store()

    def view(self, state: State) -> HistoryView:
        return _view(state, _full_points(state), (), 0, (), 0)

    def patch(self, view: HistoryView, state: State, touched: Touched) -> HistoryView:
        full = view.points[:-1]
        stride, count, *_ = state.get(_CELL, _FIRST)
        if stride == view.stride:
            # A full point never changes before the stride does.
            table = state.table("points")
            full += tuple(Point(*table[number]) for number in range(len(full), count))
        else:
            full = _full_points(state)
        return _view(state, full, view.stages, view.stage_count, view.names, view.name_count)


class _Course:
    """The history in the middle of a batch: what the cell holds, unpacked, until `store` puts it back."""

    __slots__ = ("_count", "_is_changed", "_names", "_newest", "_stage", "_stages", "_state", "_stride")

    def __init__(self, state: State) -> None:
        self._state = state
        self._is_changed = False
        self._newest: list[Any]
        self._stride, self._count, self._stage, self._stages, self._names, newest = state.get(_CELL, _FIRST)
        # In a copy the newest point grows in place; empty before the first sample.
        self._newest = list(newest or ())

    def note_name(self, event_id: int, name: Any) -> None:
        label = None if name is None else name[: limits.HISTORY_NAME_CHARS_MAX] if isinstance(name, str) else NOT_TEXT
        before = self._state.table("names")[self._names - 1][1] if self._names else None
        if label != before:
            self._push("names", self._names, [event_id, label])
            self._names += 1

    def note_stage(self, event_id: int, stage: str) -> None:
        if stage != self._stage:
            self._stage = stage
            self._push("stages", self._stages, [event_id, stage])
            self._stages += 1

    def sample(self, event_id: int, ias: float, gas: float) -> None:
        """Note the scores behind an event, if they are others than before."""
        newest = self._newest
        if not newest:
            if ias == 0.0 == gas:
                return
            self._newest = self._point(event_id, ias, gas)
        elif ias == newest[5] and gas == newest[9]:
            return
        elif event_id // self._stride == newest[0] // self._stride:
            _grow(newest, event_id, 1, self._stage, (ias, ias, ias), (gas, gas, gas))
        else:
            self._begin_point(self._point(event_id, ias, gas))
        self._is_changed = True

    def store(self) -> None:
        """Put the cell back, if an event has changed it."""
        if self._is_changed:
            counts = (self._stride, self._count, self._stage, self._stages, self._names)
            self._state[_CELL] = [*counts, self._newest or None]

    def _push(self, ring: str, count: int, change: list[Any]) -> None:
        table = self._state.table(ring)
        table[count] = change
        if count >= limits.HISTORY_CHANGES_MAX:
            del table[count - limits.HISTORY_CHANGES_MAX]
        self._is_changed = True

    def _point(self, event_id: int, ias: float, gas: float) -> list[Any]:
        return [event_id, event_id, 1, self._stage, ias, ias, ias, ias, gas, gas, gas, gas]

    def _begin_point(self, sample: list[Any]) -> None:
        """The newest point joins the full ones; where there are too many, they are thinned out."""
        table, count = self._state.table("points"), self._count
        if count + 1 < limits.HISTORY_POINTS_MAX:
            table[count] = self._newest
            self._count, self._newest = count + 1, sample
            return
        rows = [*(table[number] for number in range(count)), self._newest, sample]
        while len(rows) > limits.HISTORY_POINTS_MAX:
            # Ids may be as far apart as they like, so this may take several steps; over the life of a log, at most 64.
            self._stride *= 2
            rows = _thinned(rows, self._stride)
        self._newest = rows.pop()
        self._count = len(rows)
        for number, one in enumerate(rows):
            table[number] = one
        for number in range(len(rows), count):
            del table[number]


def _thinned(rows: list[list[Any]], stride: int) -> list[list[Any]]:
    """Neighbours that lie within the same `stride` ids become one."""
    thinned: list[list[Any]] = []
    for row in rows:
        if thinned and row[0] // stride == thinned[-1][0] // stride:
            _grow(thinned[-1], row[1], row[2], row[3], row[5:8], row[9:12])
        else:
            # A copy, for those in the state do not change in place.
            thinned.append(list(row))
    return thinned


def _grow(point: list[Any], last_id: int, samples: int, stage: str, ias: Sequence[float], gas: Sequence[float]) -> None:
    """Let a point take in later samples; of IAS and GAS their last, lowest and highest values."""
    point[1] = last_id
    point[2] += samples
    point[3] = stage
    for place, (last, low, high) in ((5, ias), (9, gas)):
        point[place] = last
        if low < point[place + 1]:
            point[place + 1] = low
        if high > point[place + 2]:
            point[place + 2] = high


def _full_points(state: State) -> tuple[Point, ...]:
    rows, (_, count, *_) = dict(state.table("points").items()), state.get(_CELL, _FIRST)
    return tuple(Point(*rows[number]) for number in range(count))


def _view(
    state: State,
    full: tuple[Point, ...],
    stages: tuple[StageChange, ...],
    stages_known: int,
    names: tuple[NameChange, ...],
    names_known: int,
) -> HistoryView:
    """The view, given the full points, and the changes up to some counts, which are not decoded again."""
    stride, _, _, stage_count, name_count, newest = state.get(_CELL, _FIRST)
    stages += tuple(StageChange(*row) for row in _changes_since(state, "stages", stages_known, stage_count))
    names += tuple(NameChange(*row) for row in _changes_since(state, "names", names_known, name_count))
    return HistoryView(
        full if newest is None else (*full, Point(*newest)),
        stride,
        stages[-limits.HISTORY_CHANGES_MAX :],
        stage_count,
        names[-limits.HISTORY_CHANGES_MAX :],
        name_count,
    )


def _changes_since(state: State, ring: str, known: int, count: int) -> list[Any]:
    table = state.table(ring)
    return [table[ordinal] for ordinal in range(max(known, count - limits.HISTORY_CHANGES_MAX), count)]
