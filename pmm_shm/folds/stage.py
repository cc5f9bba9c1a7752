"""The developmental stage, from the last telemetry pairs of ticks, filled up from reflections.

State: cells `ticks` and `reflections`, tuples of the last ten (IAS, GAS) pairs each, oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.fields import score_pair, to_float
from pmm_shm.folds.state import State
from pmm_shm.frozen import FrozenDict
from pmm_shm.ledger.rows import Event
from pmm_shm.record import record

WINDOW = 10
_CELLS = {"autonomy_tick": "ticks", "reflection": "reflections"}


@record(frozen=True)
class StageView:
    """`stage` is "S0" to "S4"; `snapshot` is {"IAS_mean", "GAS_mean", "count", "window"}."""

    stage: str
    snapshot: Mapping[str, Any]


class StageFold(Fold):
    """Computes `StageView`."""

    name = "stage"
    version = 1
    checks_values = False
    kinds: Mapping[str, tuple[Column, ...]] = {"autonomy_tick": ("meta",), "reflection": ("meta",)}

    def apply(self, event: Event, state: State) -> None:
        note_telemetry(event, state)

    def view(self, state: State) -> StageView:
        ias_mean, gas_mean, count = _means(state)
        snapshot = FrozenDict({"IAS_mean": ias_mean, "GAS_mean": gas_mean, "count": count, "window": WINDOW})
        return StageView(_stage(ias_mean, gas_mean), snapshot)


def note_telemetry(event: Event, state: State) -> bool:
    """Take in the telemetry of a tick or a reflection; returns whether it had any."""
    pair = score_pair(event.meta)
    if pair is None:
        return False
    ias, gas = to_float(pair[0]), to_float(pair[1])
    if ias is None or gas is None:
        return False
    cell = _CELLS[event.kind]
    before: tuple[Any, ...] = state.get(cell, ())
    state[cell] = (*before[1 - WINDOW :], (ias, gas))
    return True


def stage_of(state: State) -> str:
    """The stage, as a state of `note_telemetry` has it."""
    ias_mean, gas_mean, _ = _means(state)
    return _stage(ias_mean, gas_mean)


def _means(state: State) -> tuple[float, float, int]:
    """(mean of IAS, mean of GAS, number of pairs)."""
    ticks, reflections = state.get("ticks", ()), state.get("reflections", ())
    missing = WINDOW - len(ticks)
    pairs = ticks + (reflections[-missing:] if missing else ())
    if not pairs:
        return 0.0, 0.0, 0
    # Not `sum`: from Python 3.12 on it compensates, and the last bit differs.
    ias_total = gas_total = 0.0
    for ias, gas in pairs:
        ias_total = ias_total + ias
        gas_total = gas_total + gas
    count = float(len(pairs))
    return ias_total / count, gas_total / count, len(pairs)


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
