"""IAS and GAS over the life of the ledger, with the changes of stage and name, in bounded space.

A sample is taken after each event that changes IAS or GAS. The samples of each `stride` event ids form one point; when
there are more than `HISTORY_POINTS_MAX` points, the stride doubles until there are not. So a short curve is exact; a
long one keeps the first, last, lowest and highest value of each point. The scores are computed from the log by the
steps of `metrics`; the telemetry of ticks and reflections decides only the stage, by the steps of `stage`.

Points and changes are bounded. The steps of `metrics` also remember every violation, here as there.

State, besides the cells and tables of these steps and of the name's (see `metrics`, `stage`, `self_model`):
    cell `course`: [stride, number of full points, stage, number of stage changes, number of name changes, the newest
    point, which still grows, or None];
    tables `points` (number to a full point), `stages` and `names` (ordinal to [event id, value], the newest ones).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pmm_shm import limits
from pmm_shm.folds.contract import BatchFold, Column, Fold
from pmm_shm.folds.metrics import SCORING_STEPS, MetricsFold, Scoring, read_scores
from pmm_shm.folds.self_model import IDENTITY_STEPS, name_in
from pmm_shm.folds.stage import StageFold, Window
from pmm_shm.folds.state import State, Touched
from pmm_shm.frozen import json_text, plain, result
from pmm_shm.ledger.rows import Event
from pmm_shm.typed import Any, NamedTuple

FIRST_STAGE = "S0"
NOT_TEXT = "(not text)"
"""The label of a name that is a JSON value other than text."""


@result
class Point(NamedTuple):
    """Successive samples: their first and last event id, their number, the stage after the last one."""

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

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class StageChange(NamedTuple):
    """The event that changed the stage, and the new stage."""

    event_id: int
    stage: str

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class NameChange(NamedTuple):
    """The event that changed the name, and the new name: at most 80 characters of it, None for no name."""

    event_id: int
    name: str | None

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


class HistoryView(NamedTuple):
    """The history at one position.

    Attributes:
        points: oldest first, at most `HISTORY_POINTS_MAX`.
        stride: how many event ids one point may span; a power of two.
        stages, names: the newest changes, oldest first, at most `HISTORY_CHANGES_MAX` of each.
        stage_count, name_count: the number of all changes.
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
        history, scoring, window = _HistoryWriter(state), Scoring(state), Window(state)
        ias, gas = scoring.ias, scoring.gas
        for event in events:
            event_id, _, kind, _, _ = event
            identity_step, has_telemetry, scoring_step = _STEPS[kind]
            if identity_step is not None:
                identity_step(event, state)
                history.note_name(event_id, name_in(state))
            if has_telemetry and window.note(event):
                history.note_stage(event_id, window.stage())
            if scoring_step is not None:
                # Last, because the sample records the stage.
                scoring_step(scoring, event)
                if scoring.gas != gas or scoring.ias != ias:
                    ias, gas = scoring.ias, scoring.gas
                    history.sample(event_id, *read_scores(ias, gas))
        for part in (history, scoring, window):
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


PARTS: Mapping[type[Fold], tuple[Collection[str], Collection[str]]] = {
    MetricsFold: (("scores",), ("penalties", "opened", "opened_queue")),
    StageFold: (("pairs",), ()),
}
"""Folds of which the history takes all events, by the same steps: the cells and the tables that it keeps as they do. An
event in its quarantine may be the exception.
"""
_STEPS = {
    kind: (IDENTITY_STEPS.get(kind), kind in StageFold.kinds, SCORING_STEPS.get(kind)) for kind in HistoryFold.kinds
}
"""Event kind to the step of the name, whether it may have telemetry, and the step of the scores."""


class _HistoryWriter:
    """The history within a batch: the cell, unpacked, until `store` writes it back."""

    __slots__ = ("_count", "_is_changed", "_names", "_newest", "_stage", "_stages", "_state", "_stride")

    def __init__(self, state: State) -> None:
        self._state = state
        self._is_changed = False
        self._newest: list[Any]
        self._stride, self._count, self._stage, self._stages, self._names, newest = state.get(_CELL, _FIRST)
        # A copy, in which the newest point grows in place; empty before the first sample.
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
        """Record the scores after an event, if it changed them."""
        newest = self._newest
        if not newest:
            if ias == 0.0 == gas:
                return
            self._newest = self._point(event_id, ias, gas)
        elif ias == newest[5] and gas == newest[9]:
            return
        elif event_id // self._stride == newest[0] // self._stride:
            # As `_grow`, in a third of the time: most events come here.
            newest[1] = event_id
            newest[2] += 1
            newest[3], newest[5], newest[9] = self._stage, ias, gas
            if ias < newest[6]:
                newest[6] = ias
            elif ias > newest[7]:
                newest[7] = ias
            if gas < newest[10]:
                newest[10] = gas
            elif gas > newest[11]:
                newest[11] = gas
        else:
            self._begin_point(self._point(event_id, ias, gas))
        self._is_changed = True

    def store(self) -> None:
        """Write the cell back, if an event has changed it."""
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
        """Add the newest point to the full ones, and merge points if there are too many."""
        table, count = self._state.table("points"), self._count
        if count + 1 < limits.HISTORY_POINTS_MAX:
            table[count] = self._newest
            self._count, self._newest = count + 1, sample
            return
        rows = [*(table[number] for number in range(count)), self._newest, sample]
        while len(rows) > limits.HISTORY_POINTS_MAX:
            # Ids may have gaps of any size, so this may take several steps; over the life of a log, at most 64.
            self._stride *= 2
            rows = _merged(rows, self._stride)
        self._newest = rows.pop()
        self._count = len(rows)
        for number, one in enumerate(rows):
            table[number] = one
        for number in range(len(rows), count):
            del table[number]


def _merged(rows: list[list[Any]], stride: int) -> list[list[Any]]:
    """Merge neighbours within the same `stride` ids."""
    merged: list[list[Any]] = []
    for row in rows:
        if merged and row[0] // stride == merged[-1][0] // stride:
            _grow(merged[-1], row[1], row[2], row[3], row[5:8], row[9:12])
        else:
            # A copy: values in the state are never changed in place.
            merged.append(list(row))
    return merged


def _grow(point: list[Any], last_id: int, samples: int, stage: str, ias: Sequence[float], gas: Sequence[float]) -> None:
    """Extend a point by later samples, given their last, lowest and highest IAS and GAS."""
    point[1] = last_id
    point[2] += samples
    point[3] = stage
    for index, (last, low, high) in ((5, ias), (9, gas)):
        point[index] = last
        if low < point[index + 1]:
            point[index + 1] = low
        if high > point[index + 2]:
            point[index + 2] = high


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
    """The view, given the full points and the known changes, which are not decoded again."""
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
