"""IAS and GAS over the life of the ledger, with the changes of stage and name, in bounded space.

A sample is an event behind which IAS or GAS reads otherwise than before. The samples of each `stride` event ids make
one point; when there are more than `HISTORY_POINTS_MAX` points, the stride doubles until there are not. So the curve is
exact as long as it is short; when it is long, it keeps the first, last, lowest and highest value of each point. The
scores are those of the log, computed by the steps of `metrics`; what ticks say of themselves (their telemetry) decides
the stage alone, by the steps of `stage`.

What is bounded are the points and the changes. The steps of `metrics` also remember every violation that was seen, here
as there.

State, beside the cells and tables of these steps and of the name's (see `metrics`, `stage`, `self_model`):
    cells `point` (the newest point, which still grows), `stride`, `points` (how many are full), `now` (the stage),
    `stages` and `names` (how many changes there were);
    tables `points` (number to a full point), `stages` and `names` (ordinal to (event id, value), the newest ones).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.metrics import METRICS_STEPS, scores_read
from pmm_shm.folds.self_model import IDENTITY_STEPS
from pmm_shm.folds.stage import StageFold, note_telemetry, stage_of
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


_BEFORE: tuple[Any, ...] = (0, 0, 0, FIRST_STAGE, *[0.0] * 8)
"""In place of a point, before the first sample."""
_Step = Callable[[Event, State], None]


class HistoryFold(Fold):
    """Computes `HistoryView`."""

    name = "history"
    version = 1
    checks_values = False
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

    def __init__(self) -> None:
        self._steps = {kind: _steps(kind) for kind in self.kinds}

    def apply(self, event: Event, state: State) -> None:
        for step in self._steps[event.kind]:
            step(event, state)

    def view(self, state: State) -> HistoryView:
        return _view(state, _full_points(state), (), 0, (), 0)

    def patch(self, view: HistoryView, state: State, touched: Touched) -> HistoryView:
        full = view.points[:-1]
        if state.get("stride", 1) == view.stride:
            # A full point never changes before the stride does.
            table = state.table("points")
            full += tuple(Point(*table[number]) for number in range(len(full), state.get("points", 0)))
        else:
            full = _full_points(state)
        return _view(state, full, view.stages, view.stage_count, view.names, view.name_count)


def _steps(kind: str) -> tuple[_Step, ...]:
    """What an event of this kind goes through, in order; the sample comes last, for it notes the stage."""
    steps: list[_Step] = []
    if kind in IDENTITY_STEPS:
        steps += [IDENTITY_STEPS[kind], _note_name]
    if kind in StageFold.kinds:
        steps.append(_note_stage)
    if kind in METRICS_STEPS:
        steps += [METRICS_STEPS[kind], _sample]
    return tuple(steps)


def _note_name(event: Event, state: State) -> None:
    name = state.get("name")
    label = None if name is None else name[: limits.HISTORY_NAME_CHARS_MAX] if isinstance(name, str) else NOT_TEXT
    count = state.get("names", 0)
    if label != (state.table("names")[count - 1][1] if count else None):
        _push(state, "names", (event.id, label))


def _note_stage(event: Event, state: State) -> None:
    if note_telemetry(event, state):
        stage = stage_of(state)
        if stage != state.get("now", FIRST_STAGE):
            state["now"] = stage
            _push(state, "stages", (event.id, stage))


def _push(state: State, ring: str, change: tuple[Any, ...]) -> None:
    count = state.get(ring, 0)
    table = state.table(ring)
    table[count] = change
    if count >= limits.HISTORY_CHANGES_MAX:
        del table[count - limits.HISTORY_CHANGES_MAX]
    state[ring] = count + 1


def _sample(event: Event, state: State) -> None:
    ias, gas = scores_read(state)
    row = state.get("point", _BEFORE)
    if ias == row[5] and gas == row[9]:
        return
    sample = (event.id, event.id, 1, state.get("now", FIRST_STAGE), ias, ias, ias, ias, gas, gas, gas, gas)
    if row is _BEFORE:
        state["point"] = sample
    elif event.id // state.get("stride", 1) == row[0] // state.get("stride", 1):
        state["point"] = _joined(row, sample)
    else:
        _begin_point(row, sample, state)


def _begin_point(row: tuple[Any, ...], sample: tuple[Any, ...], state: State) -> None:
    """The newest point joins the full ones; where there are too many, they are thinned out."""
    table, count = state.table("points"), state.get("points", 0)
    if count + 1 < limits.HISTORY_POINTS_MAX:
        table[count] = row
        state["points"] = count + 1
        state["point"] = sample
        return
    rows = [*(table[number] for number in range(count)), row, sample]
    stride = state.get("stride", 1)
    while len(rows) > limits.HISTORY_POINTS_MAX:
        # Ids may be as far apart as they like, so this may take several steps; over the life of a log, at most 64.
        stride *= 2
        rows = _thinned(rows, stride)
    state["stride"] = stride
    state["point"] = rows.pop()
    state["points"] = len(rows)
    for number, one in enumerate(rows):
        table[number] = one
    for number in range(len(rows), count):
        del table[number]


def _thinned(rows: list[tuple[Any, ...]], stride: int) -> list[tuple[Any, ...]]:
    """Neighbours that lie within the same `stride` ids become one."""
    thinned = rows[:1]
    for row in rows[1:]:
        if row[0] // stride == thinned[-1][0] // stride:
            thinned[-1] = _joined(thinned[-1], row)
        else:
            thinned.append(row)
    return thinned


def _joined(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    first, _, samples, _, ias_first, _, ias_min, ias_max, gas_first, _, gas_min, gas_max = left
    _, last, more, stage, _, ias_last, ias_low, ias_high, _, gas_last, gas_low, gas_high = right
    return (
        *(first, last, samples + more, stage),
        *(ias_first, ias_last, min(ias_min, ias_low), max(ias_max, ias_high)),
        *(gas_first, gas_last, min(gas_min, gas_low), max(gas_max, gas_high)),
    )


def _full_points(state: State) -> tuple[Point, ...]:
    rows = dict(state.table("points").items())
    return tuple(Point(*rows[number]) for number in range(state.get("points", 0)))


def _view(
    state: State,
    full: tuple[Point, ...],
    stages: tuple[StageChange, ...],
    stage_count: int,
    names: tuple[NameChange, ...],
    name_count: int,
) -> HistoryView:
    """The view, given the full points, and the changes up to some counts, which are not decoded again."""
    newest = state.get("point")
    stages += tuple(StageChange(*row) for row in _changes_since(state, "stages", stage_count))
    names += tuple(NameChange(*row) for row in _changes_since(state, "names", name_count))
    return HistoryView(
        full if newest is None else (*full, Point(*newest)),
        state.get("stride", 1),
        stages[-limits.HISTORY_CHANGES_MAX :],
        state.get("stages", 0),
        names[-limits.HISTORY_CHANGES_MAX :],
        state.get("names", 0),
    )


def _changes_since(state: State, ring: str, count: int) -> list[Any]:
    table, total = state.table(ring), state.get(ring, 0)
    return [table[ordinal] for ordinal in range(max(count, total - limits.HISTORY_CHANGES_MAX), total)]
