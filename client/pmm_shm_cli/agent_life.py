"""The life of one agent, as events: conversations with one person, a heartbeat between them, commitments, scores.

The scores of a busy agent only grow, and are cut at 1.0 (`pmm_shm.folds.metrics`). This agent chooses what it does by
its scores: they rise from 0 within about a week, and then move between the stages S2 and S4 in waves of a month. Its
heartbeat reports the scores of the moment as telemetry, so its stage fits them.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from pmm_shm.folds.metrics import METRICS_KINDS, Scoring
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event

TICK_MINUTES = 15
OPEN_USUAL = 5
_TICKS_A_DAY = 24 * 60 // TICK_MINUTES
_TICK_US = TICK_MINUTES * 60_000_000
_SECOND_US = 1_000_000
_FIRST_HOUR = 9
_WAVE_DAYS = 28.0
_GROWTH_DAYS = 3.0
# Where IAS and GAS lie in the same stage: the bounds of the stages.
_IAS_BOUNDS = (0.0, 0.35, 0.5, 0.7, 0.85, 1.0)
_GAS_BOUNDS = (0.0, 0.2, 0.35, 0.55, 0.75, 1.0)

_PERSON = "Lena"
_FRIENDS = ("Jonas", "Ana", "Mehmet", "Ingrid", "Tomás", "Aiko", "my sister", "my father", "Ruth")
_NAMES = ("Mira", "Echo", "Tovi", "Selene", "Arden", "Noé")
_WORK = (
    "the talk at the harbour", "the budget for May", "the second chapter", "the garden plan",
    "the bicycle tour", "the interview", "the tax return", "the reading list", "the letter to the school",
    "the photo archive", "the translation of the poem", "the move to the new flat", "the choir's timetable",
    "the survey of the tides",
)  # fmt: skip
_DEEDS = (
    "send {work} to {friend}", "call {friend} about {work}", "book a table for {friend} and me", "finish {work}",
    "read {work} once more", "ask {friend} for the key", "print {work}", "water the tomatoes", "renew the passport",
    "return the books of {friend}", "order the seeds", "shorten {work}", "pay the electricity bill",
    "look for a present for {friend}", "make an appointment with the dentist", "write down what {friend} said",
)  # fmt: skip
_DAYS = (
    "on Monday",
    "on Tuesday",
    "on Wednesday",
    "on Thursday",
    "on Friday",
    "at the weekend",
    "tonight",
    "next week",
)
_QUESTIONS = (
    "What do you think of {work}?", "How should I begin with {work}?", "{friend} does not like {work}. What now?",
    "Can you put {work} into two sentences?", "Which part of {work} is the weakest?", "What did I say about {work}?",
    "Is there time for {work} {day}?", "I met {friend} today, and we spoke about {work}.",
    "I slept badly. What is important today?", "What is open {day}?", "Remember that {friend} is away {day}.",
    "Do you remember what {friend} wanted?", "Thank you, that helped.", "Let us leave {work} for now.",
)  # fmt: skip
_ANSWERS = (
    "I would begin {work} with what {friend} asked last.", "{work} is long for one evening; half of it is enough.",
    "You said that {friend} is away {day}, so I would wait with {work}.", "The weakest part of {work} is its end.",
    "In two sentences: {work} is nearly done. What is missing is a date.", "Noted: {friend}, {day}.",
    "Two things are open {day}; {work} is the smaller one.", "I do not know. Shall I look at {work} again?",
    "{friend} asked for something shorter.", "Then we go on with {work} {day}.",
)  # fmt: skip
_INSIGHTS = (
    "{person} decides faster when I offer two ways instead of five.", "I asked about {work} twice; once was enough.",
    "Short answers were welcome today.", "I assumed a date again. I should ask first.", "{friend} matters to {person}.",
    "When two subjects mix, I lose the thread.", "What I promise should fit into a day.",
)  # fmt: skip
_IDENTITY_INSIGHTS = (
    "My identity shows in what I keep: {work} was done as promised.",
    "I notice that my identity does not depend on {work}, but on how I answer {person}.",
    "{person} used my name today, and I answered as the one I was yesterday.",
    "To ask before I assume has become a part of my identity.",
)  # fmt: skip
_DIRECTIVES = (
    "Ask before you assume a date.", "Offer two ways, not five.", "Name the source of each figure.",
    "Keep answers short in the evening.", "Say what is missing before you say what is good.",
    "Use the names that {person} uses.", "Promise what fits into a day.", "Never invent a quotation.",
)  # fmt: skip
_CODES = ("STALE_COMMITMENT", "CLAIM_WITHOUT_EVIDENCE", "DUPLICATE_OPEN", "LATE_REFLECTION", "UNASKED_ADVICE")
_TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")

TimedEvent = tuple[int, str, str, dict[str, Any]]
"""(microseconds since the event before it, kind, content, meta)"""


class AgentLife:
    """An endless life; the same seed gives the same one."""

    def __init__(self, seed: int) -> None:
        # `random()` alone: its sequence is the same on every Python version.
        self._random = random.Random(seed).random
        self._seed = seed
        self._phase = self._random() * 2 * math.pi
        self._state = State()
        self._scores = (0.0, 0.0)
        self._id = 0
        self._tick = 0
        self._adopted_tick = 0
        self._name: str | None = None
        self._commitments = 0
        self._open: dict[str, tuple[str, int]] = {}
        self._work, self._friend = self._pick(_WORK), self._pick(_FRIENDS)

    def events(self) -> Iterator[TimedEvent]:
        """Events without end, each with the time since the one before it."""
        yield from self._noted(self._first_meeting())
        while True:
            yield from self._noted(self._heartbeat())
            # People are awake for two thirds of a day, and talk every other hour.
            if 7 <= self._hour <= 22 and self._random() < 0.13:
                yield from self._noted(self._conversation())

    def _noted(self, events: Iterator[TimedEvent]) -> Iterator[TimedEvent]:
        """The same events, while their scores are computed: what comes next depends on them."""
        for event in events:
            self._id += 1
            _, kind, content, meta = event
            if kind in METRICS_KINDS:
                scoring = Scoring(self._state)
                scoring.apply(Event(self._id, "", kind, content, meta))
                scoring.store()
                self._scores = scoring.read()
            yield event

    # Where it should be.

    @property
    def _hour(self) -> int:
        return (_FIRST_HOUR + self._tick * TICK_MINUTES // 60) % 24

    @property
    def _wanted(self) -> tuple[float, float]:
        """IAS and GAS of the same stage, as this day wants them."""
        day = self._tick / _TICKS_A_DAY
        grown = 1.0 - math.exp(-day / _GROWTH_DAYS)
        ias = grown * (0.68 + 0.2 * math.sin(self._phase + day * 2 * math.pi / _WAVE_DAYS))
        band = min(bisect_right(_IAS_BOUNDS, ias), len(_IAS_BOUNDS) - 1) - 1
        (low, high), (gas_low, gas_high) = _IAS_BOUNDS[band : band + 2], _GAS_BOUNDS[band : band + 2]
        return ias, gas_low + (ias - low) / (high - low) * (gas_high - gas_low)

    @property
    def _missing(self) -> tuple[float, float]:
        (ias, gas), (wanted_ias, wanted_gas) = self._scores, self._wanted
        return wanted_ias - ias, wanted_gas - gas

    # What happens.

    def _first_meeting(self) -> Iterator[TimedEvent]:
        self._name = self._pick(_NAMES)
        yield (
            _FIRST_HOUR * 3_600 * _SECOND_US,
            "user",
            f"Hello! I am {_PERSON}. What shall I call you?",
            {"channel": "chat"},
        )
        yield from self._response(f"Hello {_PERSON}. Call me {self._name}.")
        yield _SECOND_US, "identity_adopt", self._name, {"confidence": 0.8, "name": self._name}

    def _heartbeat(self) -> Iterator[TimedEvent]:
        self._tick += 1
        ias, gas = self._scores
        telemetry = {"GAS": round(gas, 4), "IAS": round(ias, 4)}
        meta: dict[str, Any] = {"telemetry": telemetry, "tick": self._tick}
        missing_ias, missing_gas = self._missing
        # At night and between conversations it thinks, more often where it lags behind.
        reflects = self._random() < (0.25 if missing_ias > 0.02 else 0.06)
        yield _TICK_US - int(self._random() * 5 * _SECOND_US), "autonomy_tick", "reflect" if reflects else "idle", meta
        if reflects:
            texts = _IDENTITY_INSIGHTS if missing_ias > 0.0 else _INSIGHTS
            yield (
                self._soon(3),
                "reflection",
                self._filled(self._pick(texts)),
                {"source": "autonomy", "telemetry": telemetry},
            )
        # A name that is adopted again counts the more, the longer ago the last time was.
        gain = 0.03 * ((self._tick - self._adopted_tick) // 5)
        if self._name is not None and 0.1 < gain < missing_ias:
            self._adopted_tick = self._tick
            confidence = round(0.7 + 0.15 * self._random(), 2)
            yield self._soon(5), "identity_adopt", self._name, {"confidence": confidence, "name": self._name}
        elif self._random() < 0.0006:
            self._name = self._pick(_NAMES)
            yield self._soon(5), "identity_change", f"Name changed to: {self._name}", {}
        if min(missing_ias, missing_gas) < -0.03 and self._random() < 0.3:
            details = {"commitment_id": self._any_cid(), "tick": self._tick}
            yield self._soon(2), "invariant_violation", "", {"code": self._pick(_CODES), "details": details}
        if missing_gas > 0.05 and self._open and self._random() < 0.1:
            yield from self._close()
        elif missing_gas < 0.0 and len(self._open) > 2 and self._random() < 0.004:
            yield from self._expire()

    def _conversation(self) -> Iterator[TimedEvent]:
        for exchange in range(2 + int(self._random() * 7)):
            # The subject changes within a conversation, but not with each sentence.
            if exchange == 0 or self._random() < 0.25:
                self._work, self._friend = self._pick(_WORK), self._pick(_FRIENDS)
            wait = self._soon(120) if exchange else int(self._random() * _TICK_US / 3)
            if self._missing[1] > 0.03 and len(self._open) < OPEN_USUAL and self._random() < 0.3:
                yield from self._promise(wait)
                continue
            yield wait, "user", self._filled(self._pick(_QUESTIONS)), {"channel": "chat"}
            yield from self._response(self._filled(self._pick(_ANSWERS)))
            if self._random() < 0.04:
                yield self._soon(2), "autonomy_directive", self._filled(self._pick(_DIRECTIVES)), {"source": "user"}
            if self._random() < 0.05:
                trait, delta = self._pick(_TRAITS), round(self._random() * 0.05 - 0.02, 3)
                yield self._soon(2), "trait_update", "", {"delta": delta, "reason": "conversation", "trait": trait}
        if self._open and self._random() < 0.05:
            cid, until = self._oldest(), self._tick + _TICKS_A_DAY
            yield self._soon(2), "commitment_snooze", "not today", {"cid": cid, "until_tick": until}

    def _promise(self, wait: int) -> Iterator[TimedEvent]:
        self._commitments += 1
        deed = f"{self._filled(self._pick(_DEEDS))} {self._pick(_DAYS)}"
        yield wait, "user", f"Please remind me to {deed}.", {"channel": "chat"}
        yield from self._response(f"I will remind you to {deed}.")
        cid, text = self._cid(self._commitments), f"remind {_PERSON} to {deed}"
        self._open[cid] = text, self._tick
        yield _SECOND_US // 5, "commitment_open", f"COMMIT: {text}", {"cid": cid, "source": "assistant", "text": text}

    def _close(self) -> Iterator[TimedEvent]:
        cid = self._oldest()
        text, _ = self._open.pop(cid)
        snippet = f"{_PERSON} says that it is done."
        yield self._soon(9), "evidence_candidate", snippet, {"cid": cid, "evidence_type": "done", "snippet": snippet}
        yield _SECOND_US // 5, "commitment_close", f"CLOSE: {text}", {"cid": cid}

    def _expire(self) -> Iterator[TimedEvent]:
        cid = self._oldest()
        del self._open[cid]
        yield self._soon(9), "commitment_expire", "", {"cid": cid, "reason": "timeout"}

    def _response(self, text: str) -> Iterator[TimedEvent]:
        yield self._soon(8), "response", text, {"model": "local-small", "tokens": 20 + len(text) // 4}

    # Choices.

    def _pick(self, options: tuple[str, ...]) -> str:
        return options[int(self._random() * len(options))]

    def _filled(self, text: str) -> str:
        filled = text.format(work=self._work, friend=self._friend, day=self._pick(_DAYS), person=_PERSON)
        return filled[0].upper() + filled[1:] if text[0] == "{" else filled

    def _oldest(self) -> str:
        return min(self._open, key=lambda cid: self._open[cid][1])

    def _any_cid(self) -> str:
        return self._cid(1 + int(self._random() * max(1, self._commitments)))

    def _cid(self, number: int) -> str:
        return f"{self._seed}-{number}"

    def _soon(self, seconds: int) -> int:
        return _SECOND_US + int(self._random() * seconds * _SECOND_US)
