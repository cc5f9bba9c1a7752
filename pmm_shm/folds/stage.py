"""The developmental stage: from the telemetry of the newest ticks and, if these are fewer than ten, of reflections.

State: cell `pairs`, two lists: IAS, GAS, IAS, GAS, ... of the newest ten ticks with telemetry, oldest first, and the
same of reflections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

from pmm_shm.folds.contract import BatchFold, Column
from pmm_shm.folds.fields import score_pair, to_float
from pmm_shm.folds.state import State
from pmm_shm.frozen import FrozenDict
from pmm_shm.ledger.rows import Event
from pmm_shm.typed import Any, NamedTuple, TypedDict

WINDOW = 10
_CELL = "pairs"
_NONE: tuple[Any, ...] = ((), ())
_VALUES_MAX = 2 * WINDOW


class StageSnapshot(TypedDict):
    """The means of IAS and GAS over the newest `count` pairs, at most `window`."""

    IAS_mean: float
    GAS_mean: float
    count: int
    window: int


class StageView(NamedTuple):
    """`stage` is "S0" to "S4"; `snapshot` is {"IAS_mean", "GAS_mean", "count", "window"}."""

    stage: str
    snapshot: StageSnapshot


class Window:
    """The newest pairs within a batch: the cell, unpacked, until `store` writes it back."""

    __slots__ = ("_is_changed", "_reflections", "_state", "_ticks")

    def __init__(self, state: State) -> None:
        ticks, reflections = state.get(_CELL, _NONE)
        self._state = state
        self._ticks = deque(ticks, _VALUES_MAX)
        self._reflections = deque(reflections, _VALUES_MAX)
        self._is_changed = False

    def note(self, event: Event) -> bool:
        """Add the telemetry of a tick or a reflection; returns whether it had any."""
        pair = score_pair(event.meta)
        if pair is None:
            return False
        ias, gas = pair
        if ias.__class__ is not float or gas.__class__ is not float:
            ias, gas = to_float(ias), to_float(gas)
            if ias is None or gas is None:
                return False
        (self._ticks if event.kind == "autonomy_tick" else self._reflections).extend((ias, gas))
        self._is_changed = True
        return True

    def stage(self) -> str:
        """The stage, "S0" to "S4"."""
        ias_mean, gas_mean, _ = _means(self._ticks, self._reflections)
        return _stage(ias_mean, gas_mean)

    def store(self) -> None:
        """Write the cell back, if an event has changed it."""
        if self._is_changed:
            self._state[_CELL] = [list(self._ticks), list(self._reflections)]


class StageFold(BatchFold):
    """Computes `StageView`."""

    name = "stage"
    version = 2
    checks_values = False
    shares_events = True
    has_small_view = True
    kinds: Mapping[str, tuple[Column, ...]] = {"autonomy_tick": ("meta",), "reflection": ("meta",)}

    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        window = Window(state)
        for event in events:
            window.note(event)
        window.store()

    def view(self, state: State) -> StageView:
        ias_mean, gas_mean, count = _means(*state.get(_CELL, _NONE))
        snapshot: Any = FrozenDict({"IAS_mean": ias_mean, "GAS_mean": gas_mean, "count": count, "window": WINDOW})
        return StageView(_stage(ias_mean, gas_mean), snapshot)


def _means(ticks: Collection[float], reflections: Collection[float]) -> tuple[float, float, int]:
    """(mean of IAS, mean of GAS, number of pairs)."""
    if len(ticks) == _VALUES_MAX:
        # The sums of the loop below, in a third of the time: the history needs them at each tick.
        i0, g0, i1, g1, i2, g2, i3, g3, i4, g4, i5, g5, i6, g6, i7, g7, i8, g8, i9, g9 = ticks
        ias_total = 0.0 + i0 + i1 + i2 + i3 + i4 + i5 + i6 + i7 + i8 + i9
        gas_total = 0.0 + g0 + g1 + g2 + g3 + g4 + g5 + g6 + g7 + g8 + g9
        return ias_total / 10.0, gas_total / 10.0, WINDOW
    missing = _VALUES_MAX - len(ticks)
    values = ticks if not missing else [*ticks, *list(reflections)[-missing:]]
    if not values:
        return 0.0, 0.0, 0
    # Not `sum`: since Python 3.12 it compensates rounding errors, and the last bit differs.
    ias_total = gas_total = 0.0
    alternating = iter(values)
    for ias, gas in zip(alternating, alternating, strict=True):
        ias_total = ias_total + ias
        gas_total = gas_total + gas
    count = len(values) // 2
    return ias_total / float(count), gas_total / float(count), count


def _stage(ias: float, gas: float) -> str:
    if ias >= 0.85 and gas >= 0.75:
        return "S4"
    if 0.70 <= ias < 0.85 and 0.55 <= gas < 0.75:
        return "S3"
    if 0.50 <= ias < 0.70 and 0.35 <= gas < 0.55:
        return "S2"
    if 0.35 <= ias < 0.50 and 0.20 <= gas < 0.35:
        return "S1"
    return "S0"
