"""The newest reflections and messages, and the newest tick with telemetry.

State: cells `reflections`, `messages` (lists of event ids, oldest first), `telemetry` ([id, IAS, GAS, stage]); tables
`reflections` and `messages` (event id to [ts, kind, content]), so that a new message does not rewrite all sixty-four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pmm_shm.folds.contract import BatchFold, Column
from pmm_shm.folds.fields import score_pair
from pmm_shm.folds.state import State, Touched
from pmm_shm.frozen import frozen, json_text, plain, result
from pmm_shm.ledger.rows import Event
from pmm_shm.typed import Any, ClassVar, NamedTuple

MESSAGE_KINDS = ("user", "response", "user_message", "assistant_message")
_MESSAGE_KINDS = frozenset(MESSAGE_KINDS)
MESSAGES_MAX = 64
REFLECTIONS_MAX = 32


@result
class Entry(NamedTuple):
    """An event in `recent`."""

    id: int
    ts: str
    kind: str
    content: str

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class Telemetry(NamedTuple):
    """The newest tick with telemetry, and three values of its meta, unchanged."""

    id: int
    ias: Any
    gas: Any
    stage: Any

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


class RecentView(NamedTuple):
    """At most 32 reflections and 64 messages, oldest first; `telemetry` is None if no tick had any."""

    reflections: tuple[Entry, ...]
    messages: tuple[Entry, ...]
    telemetry: Telemetry | None


class RecentFold(BatchFold):
    """Computes `RecentView`."""

    name = "recent"
    version = 2
    checks_values = False
    shares_events = True
    kinds: Mapping[str, tuple[Column, ...]] = {
        "reflection": ("content",),
        "autonomy_tick": ("meta",),
        **dict.fromkeys(MESSAGE_KINDS, ("content",)),
    }
    newest_max: ClassVar[Mapping[str, int]] = dict.fromkeys(MESSAGE_KINDS, MESSAGES_MAX)

    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        ticks = [event for event in events if event.kind == "autonomy_tick"]
        reflections = [event for event in events if event.kind == "reflection"]
        if ticks:
            _note_telemetry(state, ticks)
        if reflections:
            _push(state, "reflections", reflections, REFLECTIONS_MAX)
        if len(ticks) + len(reflections) < len(events):
            messages = [event for event in events if event.kind in _MESSAGE_KINDS]
            _push(state, "messages", messages, MESSAGES_MAX)

    def view(self, state: State) -> RecentView:
        return self._view(state, {})

    def patch(self, view: RecentView, state: State, touched: Touched) -> RecentView:
        return self._view(state, {entry.id: entry for entry in (*view.reflections, *view.messages)})

    def _view(self, state: State, known: dict[int, Entry]) -> RecentView:
        telemetry = state.get("telemetry")
        return RecentView(
            _entries(state, "reflections", known),
            _entries(state, "messages", known),
            None if telemetry is None else Telemetry(*frozen(telemetry)),
        )


def _push(state: State, ring: str, events: list[Event], size_max: int) -> None:
    table, before = state.table(ring), state.get(ring, ())
    # Of a long batch, only the newest enter the table.
    newest = events[-size_max:]
    for event in newest:
        table[event.id] = [event.ts, event.kind, event.content]
    kept = size_max - len(newest)
    for event_id in before[: max(0, len(before) - kept)]:
        del table[event_id]
    state[ring] = [*(before[-kept:] if kept else ()), *[event.id for event in newest]]


def _entries(state: State, ring: str, known: dict[int, Entry]) -> tuple[Entry, ...]:
    # Within one history an event never changes, so a known entry is still right.
    table = state.table(ring)
    return tuple(known.get(event_id) or Entry(event_id, *table[event_id]) for event_id in state.get(ring, ()))


def _note_telemetry(state: State, ticks: list[Event]) -> None:
    for event in reversed(ticks):
        pair, stage = score_pair(event.meta), event.meta.get("stage")
        if pair is not None and None not in pair and stage is not None:
            state["telemetry"] = [event.id, *pair, stage]
            return
