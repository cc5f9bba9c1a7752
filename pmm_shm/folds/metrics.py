"""IAS and GAS (Identity Autonomy Score, Goal Achievement Score), in constant time per event.

State:
    cell `scores`, a list: IAS, GAS, tick, tick and normalised name of the last adoption, tick of the last confident
    adoption, head and tail of the queue (ordinals); a missing tick is None;
    tables `penalties` (keys of violations seen), `opened` (text to the last tick at which it was opened),
    `opened_queue` (ordinal to [tick, text]: the opens of the last 20 ticks, oldest first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pmm_shm.folds.contract import BatchFold, Column
from pmm_shm.folds.fields import to_float
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event
from pmm_shm.typed import Any, NamedTuple

_NOVELTY_TICKS = 20
_OPEN_MULTIPLIER = 1.0 + (0.5 - 0.5) * 0.2
_CLOSE_MULTIPLIER = 1.0 + (0.5 - 0.5) * 0.3
_CELL = "scores"
_new_tuple = tuple.__new__
_FIRST: tuple[Any, ...] = (0.0, 0.0, 0, None, "", None, 0, 0)


class Scores(NamedTuple):
    """IAS and GAS as results report them: with feedback, clamped to 0.0 to 1.0."""

    ias: float
    gas: float


class Scoring:
    """The scores within a batch: the cell, unpacked, and new opens, until `store` writes them back.

    Attributes:
        ias, gas: before feedback and clamping.
    """

    __slots__ = (
        "_adopted_name",
        "_adopted_tick",
        "_confident_tick",
        "_head",
        "_is_changed",
        "_oldest_tick",
        "_opened",
        "_queue",
        "_state",
        "_tail",
        "_tick",
        "gas",
        "ias",
    )

    def __init__(self, state: State) -> None:
        self._state = state
        self._is_changed = False
        # Of the opens of this batch: text to tick, or None where it was forgotten, and their part of the queue.
        self._opened: dict[str, int | None] = {}
        self._queue: list[list[Any]] = []
        self._oldest_tick: int | None = None
        self.ias: float
        self.gas: float
        self._tick: int
        self._head: int
        self._tail: int
        self.ias, self.gas, self._tick, *adoption, self._head, self._tail = state.get(_CELL, _FIRST)
        self._adopted_tick, self._adopted_name, self._confident_tick = adoption

    def apply(self, event: Event) -> None:
        """Apply one event, of a kind in `METRICS_KINDS`."""
        SCORING_STEPS[event.kind](self, event)

    def read(self) -> tuple[float, float]:
        """(IAS, GAS) with feedback, clamped."""
        return read_scores(self.ias, self.gas)

    def store(self) -> None:
        """Write back what events have changed. The end: later events need a new object."""
        if self._queue:
            self._store_opens()
        if self._is_changed:
            self._state[_CELL] = [
                *(self.ias, self.gas, self._tick),
                *(self._adopted_tick, self._adopted_name, self._confident_tick),
                *(self._head, self._tail),
            ]

    def _identity_adopt(self, event: Event) -> None:
        meta = event.meta
        name = str(meta.get("sanitized") or meta.get("name") or event.content).strip()
        confidence = to_float(meta.get("confidence")) or 0.0
        normal = name.lower()
        tick, last_tick = self._tick, self._adopted_tick
        if name and confidence >= 0.9:
            self._confident_tick = tick
        if last_tick is not None:
            distance = tick - last_tick
            if self._adopted_name and name and distance <= 5 and self._adopted_name != normal:
                self.ias -= 0.08
            if distance >= 5:
                self.ias += float(distance // 5) * 0.03
        self._adopted_tick, self._adopted_name = tick, normal
        self._is_changed = True

    def _commitment_open(self, event: Event) -> None:
        text = event.content.strip().lower()
        if not text:
            return
        if self._oldest_tick is None or self._tick - self._oldest_tick > _NOVELTY_TICKS:
            self._forget_old_opens()
        if self._opened_at(text) is None:
            self.gas += 0.07 * _OPEN_MULTIPLIER
        self._opened[text] = self._tick
        self._queue.append([self._tick, text])
        self._tail += 1
        self._is_changed = True

    def _opened_at(self, text: str) -> int | None:
        """The last tick at which a text was opened, in the last 20 ticks."""
        if text in self._opened:
            return self._opened[text]
        tick: int | None = self._state.table("opened").get(text)
        return tick

    def _forget_old_opens(self) -> None:
        stored, first = self._state.table("opened_queue"), self._tail - len(self._queue)
        while self._head < self._tail:
            is_stored = self._head < first
            self._oldest_tick, text = stored[self._head] if is_stored else self._queue[self._head - first]
            if self._tick - self._oldest_tick <= _NOVELTY_TICKS:
                return
            if is_stored:
                del stored[self._head]
            if self._opened_at(text) == self._oldest_tick:
                self._opened[text] = None
            self._head += 1
        self._oldest_tick = None

    def _store_opens(self) -> None:
        """Write what opens have left: most of a long batch have come and gone."""
        opened, queue = self._state.table("opened"), self._state.table("opened_queue")
        for text, tick in self._opened.items():
            if tick is not None:
                opened[text] = tick
            elif text in opened:
                del opened[text]
        first = self._tail - len(self._queue)
        for ordinal in range(max(self._head, first), self._tail):
            queue[ordinal] = self._queue[ordinal - first]

    def _commitment_close(self, event: Event) -> None:
        self.gas += 0.12 * _CLOSE_MULTIPLIER
        self._is_changed = True

    def _reflection(self, event: Event) -> None:
        text = event.content.strip().lower()
        if ("identity" in text and len(text) > 20) or "my name" in text:
            self.ias += 0.01
            self._is_changed = True

    def _invariant_violation(self, event: Event) -> None:
        details: Any = event.meta.get("details")
        commitment = details.get("commitment_id") if isinstance(details, dict) else None
        key = (str(event.meta.get("code") or ""), "" if commitment is None else str(commitment))
        penalties = self._state.table("penalties")
        if key not in penalties:
            penalties[key] = True
            self.ias -= 0.005
            self.gas -= 0.005
            self._is_changed = True

    def _autonomy_tick(self, event: Event) -> None:
        self.ias *= 0.9995
        self.gas *= 0.9995
        self._tick += 1
        confident = self._confident_tick
        if confident is not None:
            distance = self._tick - confident
            if distance > 0 and distance % 5 == 0:
                self.ias += 0.03
        self._is_changed = True


SCORING_STEPS: Mapping[str, Callable[[Scoring, Event], None]] = {
    "identity_adopt": Scoring._identity_adopt,
    "commitment_open": Scoring._commitment_open,
    "commitment_close": Scoring._commitment_close,
    "reflection": Scoring._reflection,
    "invariant_violation": Scoring._invariant_violation,
    "autonomy_tick": Scoring._autonomy_tick,
}
"""Event kind to the function that applies such an event."""
METRICS_KINDS = frozenset(SCORING_STEPS)


class MetricsFold(BatchFold):
    """Computes `Scores`."""

    name = "metrics"
    version = 2
    checks_values = False
    shares_events = True
    has_small_view = True
    kinds: Mapping[str, tuple[Column, ...]] = {
        "identity_adopt": ("content", "meta"),
        "commitment_open": ("content",),
        "commitment_close": (),
        "reflection": ("content",),
        "invariant_violation": ("meta",),
        "autonomy_tick": (),
    }

    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        scoring = Scoring(state)
        for event in events:
            SCORING_STEPS[event.kind](scoring, event)
        scoring.store()

    def view(self, state: State) -> Scores:
        ias, gas, *_ = state.get(_CELL, _FIRST)
        return _new_tuple(Scores, read_scores(ias, gas))


def raw_scores(state: State) -> tuple[float, float]:
    """(IAS, GAS) before feedback and clamping, of the state of a fold that uses `Scoring`."""
    ias, gas, *_ = state.get(_CELL, _FIRST)
    return ias, gas


def read_scores(ias: float, gas: float) -> tuple[float, float]:
    """(IAS, GAS) with feedback, clamped, given those without."""
    ias_feedback = (ias - 0.5) * 0.1
    gas_feedback = (gas - 0.5) * 0.05
    gas = gas + ias_feedback
    ias = ias + gas_feedback
    # The same as `max(0.0, min(x, 1.0))`, in a third of the time.
    return (1.0 if ias > 1.0 else ias if ias > 0.0 else 0.0), (1.0 if gas > 1.0 else gas if gas > 0.0 else 0.0)
