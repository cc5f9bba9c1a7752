"""Finds the events that led to a value.

The folds themselves run over the log, event by event, and the value is compared before and after each event that may
concern it. So the effect of an event is observed; no rule of a fold is repeated here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from pmm_shm.codec import pack
from pmm_shm.errors import ConfigError, FoldError
from pmm_shm.folds.contract import Fold, view_of
from pmm_shm.folds.directives import WINDOW_EVENTS, DirectivesFold, counts_in, text_of
from pmm_shm.folds.metrics import METRICS_KINDS, MetricsFold, raw_scores, read_scores
from pmm_shm.folds.self_model import (
    IDENTITY_STEPS,
    TRAIT_INDEX,
    TRAITS,
    SelfModelFold,
    name_in,
    trait_deltas,
    traits_in,
    warnings_since,
)
from pmm_shm.folds.state import QUARANTINE, State, Touched
from pmm_shm.frozen import thawed
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.rows import Event
from pmm_shm.projection.replay import Progress, replay

Apply = Callable[[Event, State], None]
TOTALS = ("ias_up", "ias_down", "gas_up", "gas_down")
_NOTHING = "without effect"
_COMMITMENT_KINDS = frozenset(
    {"commitment_open", "evidence_candidate", "commitment_close", "commitment_expire", "commitment_snooze"}
)


class ExplainedEvent(NamedTuple):
    """One event that concerned the value.

    Attributes:
        effect: in words; begins with "without effect" if `before` equals `after`.
        has_effect: whether the value changed.
        before, after: the value around the event.
        details: more facts, depending on the subject.
    """

    event_id: int
    ts: str
    kind: str
    effect: str
    has_effect: bool
    before: Any
    after: Any
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Explanation:
    """The events that concerned one value, oldest first.

    Attributes:
        subject: the value's name, as the command line has it.
        value: as it reads at `as_of`.
        events: their number; `steps` are the newest of them.
        totals: changes of the metrics by kind of event; empty for other subjects.
    """

    subject: str
    value: Any
    events: int
    steps: tuple[ExplainedEvent, ...]
    totals: Mapping[str, Mapping[str, float]]
    as_of: int


class Subject(ABC):
    """A value that can be explained: the events that concern it, and its form in the state of its fold."""

    name: str
    fold: type[SelfModelFold | MetricsFold | DirectivesFold] = SelfModelFold

    def make_fold(self) -> Fold:
        """A new instance of the fold that computes it."""
        return self.fold()

    @abstractmethod
    def concerns(self, event: Event) -> bool:
        """Whether the event may change it."""

    @abstractmethod
    def value(self, state: State) -> Any:
        """The value in the fold's state."""

    def value_before(self, state: State) -> Any:
        """The value before an event."""
        return self.value(state)

    def value_after(self, state: State, touched: Touched) -> Any:
        """The value after an event, which has written `touched`."""
        return self.value(state)

    @abstractmethod
    def effect(self, seen: Observation) -> tuple[str, Mapping[str, Any]]:
        """(effect of the event in words, details)."""

    @abstractmethod
    def final(self, view: Any, state: State) -> Any:
        """The value as it reads in the end; `view` is the fold's."""

    def is_listed(self, seen: Observation) -> bool:
        """Whether an event that concerns it is listed."""
        return True

    def packed(self, value: Any) -> bytes:
        """The bytes by which two values are compared: `==` alone takes 0.0 for -0.0, and 1 for 1.0."""
        return pack(value)


class Observation(NamedTuple):
    """One event, and the state before and after it."""

    event: Event
    before: Any
    after: Any
    wrote: bool
    refusal: str | None
    is_same: bool


class NameSubject(Subject):
    """The name: adoptions, changes, clears, and events without effect."""

    name = "identity.name"

    def concerns(self, event: Event) -> bool:
        return event.kind in IDENTITY_STEPS

    def value(self, state: State) -> Any:
        return name_in(state)

    def final(self, view: Any, state: State) -> Any:
        return view.name

    def effect(self, seen: Observation) -> tuple[str, Mapping[str, Any]]:
        if not seen.wrote:
            return f"{_NOTHING}: it holds no name", {}
        if seen.is_same:
            return f"{_NOTHING}: {'there was no name' if seen.after is None else 'the same name'}", {}
        if seen.after is None:
            return "cleared" if seen.event.kind == "identity_clear" else "cleared: a blank name", {}
        return "adopted" if seen.event.kind == "identity_adopt" else "changed", {}


class TraitSubject(Subject):
    """One trait: every update, and whether it was clamped.

    Raises:
        ConfigError: there is no such trait.
    """

    def __init__(self, word: str) -> None:
        index = TRAIT_INDEX.get(word.strip().lower())
        if index is None:
            raise ConfigError(f"trait: expected one of {', '.join(TRAITS)}, or the first letter, got {word!r:.80}")
        self._index = index
        self.name = f"trait {TRAITS[index]}"

    def concerns(self, event: Event) -> bool:
        return event.kind == "trait_update" and any(index == self._index for index, _ in trait_deltas(event.meta))

    def value(self, state: State) -> Any:
        return traits_in(state)[self._index]

    def final(self, view: Any, state: State) -> Any:
        return view.traits[TRAITS[self._index]]

    def effect(self, seen: Observation) -> tuple[str, Mapping[str, Any]]:
        deltas = [delta for index, delta in trait_deltas(seen.event.meta) if index == self._index]
        unclamped = seen.before
        for delta in deltas:
            unclamped = unclamped + delta
        was_clamped = unclamped != seen.after
        words = ", ".join(f"{delta:+.6g}" for delta in deltas)
        if was_clamped:
            words += ", clamped"
        elif seen.is_same:
            words += ", no number, or zero" if not any(deltas) else ", nothing left of it"
        return f"{_NOTHING}: {words}" if seen.is_same else words, {"deltas": deltas, "clamped": was_clamped}


class CommitmentSubject(Subject):
    """One commitment: opened, evidence, snoozed, closed or expired. The value is its entry in the self-model.

    Raises:
        ConfigError: no commitment can have this id.
    """

    def __init__(self, cid: str | int) -> None:
        if not cid:
            raise ConfigError(f"commitment: no commitment has the id {cid!r}")
        self.cid = cid
        self.name = f"commitment {cid!r}" if isinstance(cid, int) else f"commitment {cid}"

    def concerns(self, event: Event) -> bool:
        return event.kind in _COMMITMENT_KINDS and self._is(event.meta.get("cid"))

    def _is(self, cid: Any) -> bool:
        # Not `==` alone: 7 is not "7", and True is not 1.
        return type(cid) is type(self.cid) and cid == self.cid

    def final(self, view: Any, state: State) -> Any:
        running, expired = view.open.get(self.cid), view.expired.get(self.cid)
        status = "open" if running is not None else "expired" if expired is not None else "not open"
        return {"status": status, "open": running, "expired": expired}

    def value(self, state: State) -> Any:
        running, expired = state.table("open").get(self.cid), state.table("expired").get(self.cid)
        return {
            "open": None if running is None else running[1],
            "expired": None if expired is None else expired[1],
            "has_evidence": self.cid in state.table("evidence"),
            "closes_without_evidence": sum(self._is(cid) for cid, _ in warnings_since(state, 0)),
        }

    def effect(self, seen: Observation) -> tuple[str, Mapping[str, Any]]:
        return self._words(seen), {}

    def _words(self, seen: Observation) -> str:
        before, after, kind = seen.before, seen.after, seen.event.kind
        if seen.refusal is not None:
            return f"{_NOTHING}: {seen.refusal}"
        if seen.is_same:
            return f"{_NOTHING}: {self._why(seen)}"
        if kind == "commitment_open":
            return "opened" if before["open"] is None else "opened again: its entry is replaced"
        if kind == "evidence_candidate":
            return "evidence that it is done"
        if kind == "commitment_close":
            without = after["closes_without_evidence"] > before["closes_without_evidence"]
            return "closed without evidence" if without else "closed"
        if kind == "commitment_expire":
            return f"expired: {after['expired']['reason']}"
        return f"snoozed until tick {after['open']['snoozed_until']}"

    @staticmethod
    def _why(seen: Observation) -> str:
        if seen.wrote:
            return "everything as before"
        if seen.event.kind == "commitment_open":
            return "it has no text"
        if seen.event.kind == "evidence_candidate":
            return "there was evidence already" if seen.before["has_evidence"] else "not of the type done"
        return "the commitment was not open"


class MetricsSubject(Subject):
    """IAS and GAS: every event that changed the scores, before feedback and clamping."""

    name = "metrics"
    fold = MetricsFold

    def concerns(self, event: Event) -> bool:
        return event.kind in METRICS_KINDS

    def value(self, state: State) -> Any:
        scores = raw_scores(state)
        return {"read": read_scores(*scores), "scores": scores}

    def is_listed(self, seen: Observation) -> bool:
        return not seen.is_same

    def packed(self, value: Any) -> bytes:
        # Lists are packed in a fraction of the time, and nearly every event changes a score.
        return pack([*value["read"], *value["scores"]])

    def effect(self, seen: Observation) -> tuple[str, Mapping[str, Any]]:
        deltas = [after - before for before, after in zip(seen.before["scores"], seen.after["scores"], strict=True)]
        unseen = seen.before["read"] == seen.after["read"]
        words = f"{_NOTHING} on what is read: clamped" if unseen else _METRICS_WORDS[seen.event.kind]
        return words, {"delta": {"ias": deltas[0], "gas": deltas[1]}}

    def final(self, view: Any, state: State) -> Any:
        ias, gas = raw_scores(state)
        return {"ias": view.ias, "gas": view.gas, "before_feedback": {"ias": ias, "gas": gas}}


class DirectiveSubject(Subject):
    """One directive: each event that has its text, and each event that pushed an earlier one out of the newest
    `WINDOW_EVENTS`, which lowers its score. The value is its counts.
    """

    fold = DirectivesFold

    def __init__(self, text: str) -> None:
        self._text = " ".join(text.split())
        self.name = f"directive {self._text}"

    def concerns(self, event: Event) -> bool:
        return event.kind == "autonomy_directive"

    def value(self, state: State) -> Any:
        return counts_in(state, self._text)

    def is_listed(self, seen: Observation) -> bool:
        return not seen.is_same

    def effect(self, seen: Observation) -> tuple[str, Mapping[str, Any]]:
        left = f"one before it left the newest {WINDOW_EVENTS}"
        if text_of(seen.event) != self._text:
            return left, {}
        words = "seen again" if seen.before["seen_count"] else "first seen"
        return words if seen.after["recent_hits"] > seen.before["recent_hits"] else f"{words}; {left}", {}

    def final(self, view: Any, state: State) -> Any:
        active = [one["content"] for one in view.active()]
        return {**self.value(state), "rank": active.index(self._text) + 1 if self._text in active else None}


_METRICS_WORDS = {
    "identity_adopt": "a name again",
    "commitment_open": "a new commitment",
    "commitment_close": "a close",
    "reflection": "a reflection on identity",
    "invariant_violation": "a violation, for the first time",
    "autonomy_tick": "decay, or a stable identity",
}


def explain(
    connection: Connection,
    subject: Subject,
    limit: int | None = None,
    until_id: int | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Explain a value at the head of the log, or at event `until_id`, by a full replay of its fold.

    Parameters:
        limit: number of steps to keep, the newest; None for all.
        progress: called with the position of the replay.

    Raises:
        FoldError: the fold cannot make its view at some event.
        LedgerError: the ledger cannot be read.
    """
    watch = _Recorder(subject, limit)
    fold: Any = subject.make_fold()
    # An instance that shows each event to the recorder, one by one; the fold itself stays as it is.
    fold.takes_batches, fold.apply = False, partial(watch, fold.apply)
    position, states = replay(connection, [fold], progress, until_id)
    state = states[fold.name]
    watch.begin(state)
    if watch.failure is not None:
        raise watch.failure
    value = thawed(subject.final(view_of(fold, state, position.as_of), state))
    return Explanation(subject.name, value, watch.events, tuple(watch.steps), watch.totals, position.as_of)


class _Recorder:
    """Compares a value before and after each event that concerns it."""

    def __init__(self, subject: Subject, limit: int | None) -> None:
        self._subject = subject
        self._state: State | None = None
        self._last: tuple[Any, bytes] | None = None
        self.events = 0
        self.failure: FoldError | None = None
        self.steps: deque[ExplainedEvent] = deque(maxlen=limit)
        self.totals: dict[str, dict[str, float]] = {}

    def begin(self, state: State) -> None:
        """Drop observations of another state: a replay that starts again makes a new one."""
        if state is not self._state:
            self._state, self._last = state, None
            self.events = 0
            self.failure = None
            self.steps.clear()
            self.totals.clear()

    def __call__(self, apply: Apply, event: Event, state: State) -> None:
        self.begin(state)
        if not self._subject.concerns(event):
            apply(event, state)
            return
        # The events between two that concern it do not change it.
        before, packed_before = self._last or self._observed(lambda: self._subject.value_before(state))
        refused = state.get(QUARANTINE, 0)
        state.take_touched()
        apply(event, state)
        touched = state.take_touched()
        after, packed_after = self._last = self._observed(lambda: self._subject.value_after(state, touched))
        wrote = bool(touched)
        refusal = state.table(QUARANTINE)[refused][1] if state.get(QUARANTINE, 0) > refused else None
        self._note(Observation(event, before, after, wrote, refusal, packed_before == packed_after))

    def _observed(self, look: Callable[[], Any]) -> tuple[Any, bytes]:
        try:
            value = look()
        except FoldError as error:
            # The engine takes it for a failure at the event, which it is not.
            self.failure = self.failure or error
            raise
        return value, self._subject.packed(value)

    def _note(self, seen: Observation) -> None:
        if not self._subject.is_listed(seen):
            return
        effect, details = self._subject.effect(seen)
        event = seen.event
        self.events += 1
        self.steps.append(
            ExplainedEvent(event.id, event.ts, event.kind, effect, not seen.is_same, seen.before, seen.after, details)
        )
        if "delta" in details:
            self._add_up(event.kind, details["delta"])

    def _add_up(self, kind: str, delta: Mapping[str, float]) -> None:
        total = self.totals.setdefault(kind, dict.fromkeys(("events", *TOTALS), 0))
        total["events"] += 1
        for score, amount in delta.items():
            total[f"{score}_{'up' if amount > 0 else 'down'}"] += amount
