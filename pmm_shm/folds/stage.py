"""The developmental stage, from the last telemetry pairs of ticks, filled up from reflections.

State: cells `ticks` and `reflections`, tuples of the last ten (IAS, GAS) pairs each, oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.fields import score_pair, to_float
from pmm_shm.folds.state import State
from pmm_shm.frozen import FrozenDict
from pmm_shm.ledger.rows import Event

WINDOW = 10
_CELLS = {"autonomy_tick": "ticks", "reflection": "reflections"}


@dataclass(frozen=True)
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
        pair = score_pair(event.meta)
        if pair is None:
            return
        ias, gas = to_float(pair[0]), to_float(pair[1])
        if ias is not None and gas is not None:
            cell = _CELLS[event.kind]
            before: tuple[Any, ...] = state.get(cell, ())
            state[cell] = (*before[1 - WINDOW :], (ias, gas))

    def view(self, state: State) -> StageView:
        ticks, reflections = state.get("ticks", ()), state.get("reflections", ())
        missing = WINDOW - len(ticks)
        pairs = ticks + (reflections[-missing:] if missing else ())
        ias_mean, gas_mean = _mean([pair[0] for pair in pairs]), _mean([pair[1] for pair in pairs])
        snapshot = FrozenDict({"IAS_mean": ias_mean, "GAS_mean": gas_mean, "count": len(pairs), "window": WINDOW})
        return StageView(_stage(ias_mean, gas_mean), snapshot)


def _mean(values: list[float]) -> float:
    if not values:
        return 0.0
    # Not `sum`: from Python 3.12 on it compensates, and the last bit differs.
    total = 0.0
    for value in values:
        total = total + value
    return total / float(len(values))


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
