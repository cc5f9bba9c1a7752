"""IAS and GAS, incrementally: one event costs the same at event 10 and at event 10,000,000.

State:
    cells `scores` (ias, gas), `tick`, `adoption` (tick and normalised name of the last one), `confident_tick`,
    `opened_head` and `opened_tail` (ordinals of the queue);
    tables `penalties` (keys of violations seen), `opened` (text to the last tick it was opened at), `opened_queue`
    (ordinal to (tick, text), the opens of the last 20 ticks, oldest first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.fields import to_float
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event

_NOVELTY_TICKS = 20
_OPEN_MULTIPLIER = 1.0 + (0.5 - 0.5) * 0.2
_CLOSE_MULTIPLIER = 1.0 + (0.5 - 0.5) * 0.3
_ZERO = (0.0, 0.0)


class Scores(NamedTuple):
    """IAS and GAS as they are read: with feedback, clamped to 0.0 to 1.0."""

    ias: float
    gas: float


class MetricsFold(Fold):
    """Computes `Scores`."""

    name = "metrics"
    version = 1
    checks_values = False
    kinds: Mapping[str, tuple[Column, ...]] = {
        "identity_adopt": ("content", "meta"),
        "commitment_open": ("content",),
        "commitment_close": (),
        "reflection": ("content",),
        "invariant_violation": ("meta",),
        "autonomy_tick": (),
    }

    def apply(self, event: Event, state: State) -> None:
        METRICS_STEPS[event.kind](event, state)

    def view(self, state: State) -> Scores:
        return Scores(*scores_read(state))


def scores_read(state: State) -> tuple[float, float]:
    """(IAS, GAS) as they are read of a state of `METRICS_STEPS`; reading changes nothing."""
    ias, gas = state.get("scores", _ZERO)
    ias_feedback = (ias - 0.5) * 0.1
    gas_feedback = (gas - 0.5) * 0.05
    gas = gas + ias_feedback
    ias = ias + gas_feedback
    return max(0.0, min(ias, 1.0)), max(0.0, min(gas, 1.0))


def _identity_adopt(event: Event, state: State) -> None:
    meta = event.meta
    name = str(meta.get("sanitized") or meta.get("name") or event.content).strip()
    confidence = to_float(meta.get("confidence")) or 0.0
    normal = name.lower()
    tick = state.get("tick", 0)
    if name and confidence >= 0.9:
        state["confident_tick"] = tick
    before = state.get("adoption")
    if before is not None:
        ias, gas = state.get("scores", _ZERO)
        last_tick, last_name = before
        if last_name and name and tick - last_tick <= 5 and last_name != normal:
            ias -= 0.08
        distance = tick - last_tick
        if distance >= 5:
            ias += float(distance // 5) * 0.03
        state["scores"] = (ias, gas)
    state["adoption"] = (tick, normal)


def _commitment_open(event: Event, state: State) -> None:
    text = event.content.strip().lower()
    if not text:
        return
    tick = state.get("tick", 0)
    _forget_old_opens(state, tick)
    opened = state.table("opened")
    if text not in opened:
        ias, gas = state.get("scores", _ZERO)
        gas += 0.07 * _OPEN_MULTIPLIER
        state["scores"] = (ias, gas)
    opened[text] = tick
    tail = state.get("opened_tail", 0)
    state.table("opened_queue")[tail] = (tick, text)
    state["opened_tail"] = tail + 1


def _forget_old_opens(state: State, tick: int) -> None:
    queue, opened = state.table("opened_queue"), state.table("opened")
    head, tail = state.get("opened_head", 0), state.get("opened_tail", 0)
    start = head
    while head < tail:
        then, text = queue[head]
        if tick - then <= _NOVELTY_TICKS:
            break
        del queue[head]
        if opened.get(text) == then:
            del opened[text]
        head += 1
    if head != start:
        state["opened_head"] = head


def _commitment_close(event: Event, state: State) -> None:
    ias, gas = state.get("scores", _ZERO)
    gas += 0.12 * _CLOSE_MULTIPLIER
    state["scores"] = (ias, gas)


def _reflection(event: Event, state: State) -> None:
    text = event.content.strip().lower()
    if ("identity" in text and len(text) > 20) or "my name" in text:
        ias, gas = state.get("scores", _ZERO)
        ias += 0.01
        state["scores"] = (ias, gas)


def _invariant_violation(event: Event, state: State) -> None:
    details: Any = event.meta.get("details")
    commitment = details.get("commitment_id") if isinstance(details, dict) else None
    key = (str(event.meta.get("code") or ""), "" if commitment is None else str(commitment))
    penalties = state.table("penalties")
    if key not in penalties:
        penalties[key] = True
        ias, gas = state.get("scores", _ZERO)
        ias -= 0.005
        gas -= 0.005
        state["scores"] = (ias, gas)


def _autonomy_tick(event: Event, state: State) -> None:
    ias, gas = state.get("scores", _ZERO)
    ias *= 0.9995
    gas *= 0.9995
    tick = state.get("tick", 0) + 1
    state["tick"] = tick
    confident = state.get("confident_tick")
    if confident is not None:
        distance = tick - confident
        if distance > 0 and distance % 5 == 0:
            ias += 0.03
    state["scores"] = (ias, gas)


METRICS_STEPS: Mapping[str, Callable[[Event, State], None]] = {
    "identity_adopt": _identity_adopt,
    "commitment_open": _commitment_open,
    "commitment_close": _commitment_close,
    "reflection": _reflection,
    "invariant_violation": _invariant_violation,
    "autonomy_tick": _autonomy_tick,
}
"""Event kind to what an event of it does to a state; the one implementation, for every fold that needs the scores."""
