"""Synthetic ledgers, made from a seed, with a correct `full` hash chain.

The same seed always gives the same events, and a longer ledger begins with the shorter one's. The profile "agent" is
`agent_life`. The profile "bench" is a talkative agent whose self-model keeps its size: at every prefix at most
`OPEN_MAX` commitments are open, `EXPIRED_MAX` cids have expired in all and `DIRECTIVES_MAX` directive texts occur. From
about event 1,000 on some `OPEN_USUAL` commitments are open and all that ever expire have, so that the self-model of a
ledger of 1,000 events is as large as that of 1,000,000.

Invariant: the ledger appears under its name complete, or not at all.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal

from pmm_shm.errors import ConfigError, LedgerUnwritableError
from pmm_shm.ledger.new_events import canonical_json, hash_of_parts
from pmm_shm.ledger.new_file import new_path, staged
from pmm_shm.ledger.schema import TABLE_SQL, create_indexes
from pmm_shm.vectors.local_bow import digest as embedding_digest
from pmm_shm_cli.agent_life import AgentLife, TimedEvent

OPEN_MAX = 100
OPEN_USUAL = 40
EXPIRED_MAX = 20
DIRECTIVES_MAX = 50

Journal = Literal["wal", "delete"]
Profile = Literal["agent", "bench"]
RawEvent = tuple[str, str, dict[str, Any]]
"""(kind, content, meta) of an event that is not yet in a log."""
SyntheticRow = tuple[int, str, str, str, str, str | None, str]
"""(id, ts, kind, content, meta, prev_hash, hash)"""

_CHUNK_EVENTS = 20_000
_INSERT = "INSERT INTO events (id, ts, kind, content, meta, prev_hash, hash) VALUES (?, ?, ?, ?, ?, ?, ?)"
_MINUTE_US = 60_000_000

_OPENERS = (
    "Could you", "I would like you to", "Let us", "Tomorrow I want to", "Please", "We should", "Remind me to",
    "Before lunch, can you", "It would help to", "When there is time,", "Can we", "I forgot to ask: can you",
)  # fmt: skip
_VERBS = (
    "review", "summarise", "rewrite", "plan", "explain", "sketch", "compare", "check", "draft", "simplify", "measure",
    "collect", "translate", "question", "finish", "reorder", "illustrate", "shorten",
)  # fmt: skip
_TOPICS = (
    "the garden plan", "the second chapter", "our budget for May", "the notes on memory", "the bicycle route",
    "the letter to Ana", "the reading list", "the sorting algorithm", "the interview questions", "the recipe",
    "the talk about tides", "the café menu", "the history of the harbour", "the test results", "the family calendar",
    "the essay on attention", "the map of the valley", "the weekly report", "the piano exercise", "the translation",
    "the seed catalogue", "the train timetable", "the photo archive", "the draft of the poem",
)  # fmt: skip
_QUALIFIERS = (
    "once more", "in plain words", "with an example", "step by step", "before Friday", "from the beginning",
    "for a child of ten", "with sources", "in two sentences", "as a table", "without jargon", "and keep the tone",
    "so that Jonas can follow", "and tell me what is missing", "more carefully this time", "with the new numbers",
)  # fmt: skip
_ANSWERS = (
    "Here is a first version of", "I looked again at", "I have a question about", "This is what I found on",
    "I shortened", "I would start with", "Two things stand out in", "I finished", "There is a gap in",
)  # fmt: skip
_REASONS = (
    "because the order was unclear", "since the figures changed", "and marked what I am unsure of",
    "with the sources at the end", "although one part needs you", "and it reads better aloud now",
    "so the next step is short", "and nothing else depends on it", "because you asked for fewer words",
)  # fmt: skip
_INSIGHTS = (
    "I answer faster when I repeat the question first", "my commitments are easier to keep when they are small",
    "my identity shows in what I decline", "I should ask before I assume a date", "short answers were valued today",
    "my name matters less than my habits", "I lost the thread when two topics mixed", "evidence first, then closing",
    "the tone of the morning was calmer", "my identity has been stable for many turns",
)  # fmt: skip
_NAMES = ("Echo", "Mira", "Tovi", "Selene", "Arden", "Noé")
_TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
_RULES = ("Prefer", "Avoid", "Always mention", "Never invent", "Keep")
_OBJECTS = (
    "short sentences", "dates with a year", "sources for figures", "open questions", "the user's own words",
    "lists over paragraphs", "a calm tone", "units after numbers", "what was promised", "names as they were given",
)  # fmt: skip
_VIOLATIONS = ("CLOSE_WITHOUT_EVIDENCE", "DUPLICATE_OPEN", "STALE_COMMITMENT", "UNKNOWN_CID", "REFLECTION_GAP")
_SOURCES = ("user", "reflection", "policy", "autonomy")
_POLICIES = ("reflection_interval", "snooze_ticks", "context_events", "close_needs_evidence")
_MODELS = ("local-small", "local-large")
# The object moves on with the rule, so that neighbours, which are about equally frequent, do not contradict each other.
DIRECTIVES = tuple(
    f"{rule} {_OBJECTS[(shift + 2 * number) % len(_OBJECTS)]}."
    for shift in range(len(_OBJECTS))
    for number, rule in enumerate(_RULES)
)[:DIRECTIVES_MAX]
"""The texts of all directives that ever occur."""


class _Story:
    """The life of one agent; each method yields one thing that happens, as one event or several."""

    def __init__(self, seed: int) -> None:
        # `random()` alone: its sequence is the same on every Python version, and it is the fastest.
        self._random = random.Random(seed).random
        self._cid_mask = seed & 0xFFFFFFFF
        self._cids = 0
        self._open: list[tuple[str, str]] = []
        self._expired: set[str] = set()
        self._tick = 0
        self._ias = 0.2
        self._gas = 0.1
        self._name: str | None = None
        self._event_id = 0

    def events(self) -> Iterator[RawEvent]:
        """An endless stream of events."""
        chance = self._random
        for draft in self._turns():
            self._event_id += 1
            yield draft
            # Background work, between any two events of a conversation.
            if chance() < 0.02:
                self._event_id += 1
                yield self._policy() if chance() < 0.1 else self._violation()

    def _turns(self) -> Iterator[RawEvent]:
        chance = self._random
        while True:
            yield from self._exchange()
            if chance() < 0.45:
                yield self._autonomy_tick()
            # Few open commitments: open more than are settled; many: fewer.
            if chance() < (0.6 if len(self._open) < OPEN_USUAL else 0.1):
                yield from self._open_commitment()
            if chance() < 0.22:
                yield from self._settle_commitment()
            if chance() < 0.14:
                yield self._reflection()
            if chance() < 0.08:
                yield self._directive()
            if chance() < 0.08:
                yield self._metrics_update()
            if chance() < 0.05:
                yield self._trait_update()
            if chance() < 0.012:
                yield from self._identity()

    def _pick(self, options: tuple[str, ...]) -> str:
        return options[int(self._random() * len(options))]

    def _exchange(self) -> Iterator[RawEvent]:
        pick, chance = self._pick, self._random
        question = f"{pick(_OPENERS)} {pick(_VERBS)} {pick(_TOPICS)} {pick(_QUALIFIERS)}?"
        asked_id = self._event_id + 1
        yield "user", question, {"channel": "chat"}
        if chance() < 0.04:
            yield "embedding_indexed", "", {"digest": embedding_digest(question), "eid": asked_id}
        answer = f"{pick(_ANSWERS)} {pick(_TOPICS)}, {pick(_REASONS)}. {pick(_OPENERS)} {pick(_VERBS)} it next?"
        yield "response", answer, {"model": pick(_MODELS), "tokens": 20 + int(chance() * 400)}

    def _autonomy_tick(self) -> RawEvent:
        chance = self._random
        self._tick += 1
        # Noise with a slow trend: a young agent is at S0, an old one moves between S1 and S4.
        self._ias = min(1.0, max(0.0, self._ias + 0.002 * (0.68 - self._ias) + 0.03 * (chance() - 0.5)))
        self._gas = min(1.0, max(0.0, self._ias - 0.15 + 0.04 * (chance() - 0.5)))
        telemetry = {"GAS": round(self._gas, 4), "IAS": round(self._ias, 4)}
        decision = "reflect" if chance() < 0.2 else "idle"
        return "autonomy_tick", decision, {"stage": self._stage(), "telemetry": telemetry, "tick": self._tick}

    def _stage(self) -> str:
        floor = min(self._ias - 0.15, self._gas)
        for stage, least in (("S4", 0.72), ("S3", 0.55), ("S2", 0.35), ("S1", 0.2)):
            if floor >= least:
                return stage
        return "S0"

    def _open_commitment(self) -> Iterator[RawEvent]:
        if len(self._open) >= OPEN_MAX:
            yield from self._close(0)
            return
        self._cids += 1
        # A multiplication by an odd number: every cid differs until there are 2**32 of them.
        cid = f"{(self._cids * 2_654_435_761 ^ self._cid_mask) & 0xFFFFFFFF:08x}"
        text = f"{self._pick(_VERBS)} {self._pick(_TOPICS)} {self._pick(_QUALIFIERS)}"
        self._open.append((cid, text))
        yield "commitment_open", f"COMMIT: {text}", {"cid": cid, "source": self._pick(_SOURCES), "text": text}

    def _settle_commitment(self) -> Iterator[RawEvent]:
        if not self._open:
            return
        chance = self._random()
        # Older entries are likelier: squaring favours the front of the list.
        index = int(self._random() ** 2 * len(self._open))
        cid = self._open[index][0]
        if chance < 0.12:
            until = self._tick + 5 + int(self._random() * 40)
            yield "commitment_snooze", "not now", {"cid": cid, "until_tick": until}
        elif chance < 0.6 and len(self._expired) < EXPIRED_MAX:
            del self._open[index]
            self._expired.add(cid)
            reason = "timeout" if self._random() < 0.7 else "superseded"
            yield "commitment_expire", "", {"cid": cid, "reason": reason}
        else:
            yield from self._close(index)

    def _close(self, index: int) -> Iterator[RawEvent]:
        cid, text = self._open[index]
        if self._random() < 0.97:
            snippet = f"{self._pick(_ANSWERS)} it."
            yield "evidence_candidate", snippet, {"cid": cid, "evidence_type": "done", "snippet": snippet}
        del self._open[index]
        yield "commitment_close", f"CLOSE: {text}", {"cid": cid}

    def _reflection(self) -> RawEvent:
        meta: dict[str, Any] = {"source": "autonomy" if self._random() < 0.6 else "user_turn"}
        if self._random() < 0.5:
            meta["telemetry"] = {"GAS": round(self._gas, 4), "IAS": round(self._ias, 4)}
        content = f"After {self._pick(_TOPICS)}: {self._pick(_INSIGHTS)}; next I {self._pick(_VERBS)} less."
        return "reflection", content, meta

    def _directive(self) -> RawEvent:
        # Squared: a few are repeated all the time, so that the active set is not arbitrary.
        text = DIRECTIVES[int(self._random() ** 2 * len(DIRECTIVES))]
        return "autonomy_directive", text, {"origin_eid": self._event_id, "source": self._pick(_SOURCES)}

    def _metrics_update(self) -> RawEvent:
        return "metrics_update", "", {"GAS": round(self._gas, 4), "IAS": round(self._ias, 4), "tick": self._tick}

    def _trait_update(self) -> RawEvent:
        chance = self._random
        if chance() < 0.3:
            changes = {self._pick(_TRAITS)[0]: round(chance() * 0.04 - 0.02, 3) for _ in range(2)}
            return "trait_update", "after a reflection", {"delta": changes}
        delta = round(chance() * 0.06 - 0.03, 3)
        return "trait_update", "", {"delta": delta, "reason": "reflection", "trait": self._pick(_TRAITS)}

    def _identity(self) -> Iterator[RawEvent]:
        chance = self._random()
        if self._name is not None and chance < 0.1:
            self._name = None
            yield "identity_clear", "", {}
        if self._name is not None and chance < 0.3:
            self._name = self._pick(_NAMES)
            yield "identity_change", f"Name changed to: {self._name}", {}
            return
        if self._name is None or chance < 0.5:
            self._name = self._pick(_NAMES)
        confidence = round(0.75 + 0.25 * self._random(), 2)
        yield "identity_adopt", self._name, {"confidence": confidence, "name": self._name}

    def _policy(self) -> RawEvent:
        value = 1 + int(self._random() * 50)
        return "policy_update", f"{self._pick(_POLICIES)} = {value}", {"source": self._pick(_SOURCES), "value": value}

    def _violation(self) -> RawEvent:
        details: dict[str, Any] = {"tick": self._tick}
        if self._open and self._random() < 0.5:
            details["commitment_id"] = self._open[0][0]
        return "invariant_violation", "", {"code": self._pick(_VIOLATIONS), "details": details}


def synthetic_events(seed: int) -> Iterator[RawEvent]:
    """An endless stream of (kind, content, meta); the same seed gives the same events."""
    return _Story(seed).events()


def synthetic_rows(seed: int, profile: Profile = "bench") -> Iterator[SyntheticRow]:
    """Rows with the values of all columns, from id 1, chained with the formula `full`."""
    events = AgentLife(seed).events() if profile == "agent" else _timed(synthetic_events(seed), seed)
    now_us = 0
    minute, prefix = -1, ""
    previous, previous_json = None, "null"
    for event_id, (wait_us, kind, content, meta) in enumerate(events, 1):
        now_us += wait_us
        if now_us // _MINUTE_US != minute:
            minute = now_us // _MINUTE_US
            prefix = _minute_text(minute)
        ts = f"{prefix}{now_us // 1_000_000 % 60:02d}.{now_us % 1_000_000:06d}+00:00"
        # Canonical in the column, too: the stored text is the hashed one, and is serialised once.
        text = canonical_json(meta)
        digest = hash_of_parts("full", event_id, f'"{ts}"', f'"{kind}"', canonical_json(content), text, previous_json)
        yield event_id, ts, kind, content, text, previous, digest
        previous, previous_json = digest, f'"{digest}"'


def _timed(events: Iterator[RawEvent], seed: int) -> Iterator[TimedEvent]:
    # A separate random sequence: the seconds between events must not depend on the story.
    chance = random.Random(seed ^ 0x5EED).random
    for kind, content, meta in events:
        yield 1 + int(chance() ** 3 * 32_000_000), kind, content, meta


def _minute_text(minute: int) -> str:
    """`2025-01-01T00:00:` and so on, in UTC."""
    return (datetime(2025, 1, 1) + timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M:")


def generate(
    path: str | os.PathLike[str],
    events: int,
    seed: int,
    journal: Journal = "wal",
    progress: Callable[[int], None] = lambda done: None,
    profile: Profile = "bench",
) -> str:
    """Write a synthetic ledger of `events` events; returns its real path.

    Parameters:
        path: a file that does not exist yet.
        progress: called with the number of events written so far.
        profile: "agent", an agent's life, or "bench", a ledger of which each part is as heavy as any other.

    Raises:
        ConfigError: the path is not that of a file, or a number is negative.
        LedgerUnwritableError: something is there already, or the ledger cannot be made; nothing was changed.
    """
    target = new_path(path)
    if events < 0 or seed < 0:
        raise ConfigError(f"events and seed: expected 0 or more, got {events} and {seed}")
    try:
        with staged(target) as temporary:
            _write(temporary, islice(synthetic_rows(seed, profile), events), journal, progress)
    except (sqlite3.Error, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise LedgerUnwritableError(f"{target}: cannot be made: {text}; nothing was written") from error
    return target


def _write(path: str, rows: Iterator[SyntheticRow], journal: Journal, progress: Callable[[int], None]) -> None:
    with contextlib.closing(sqlite3.connect(os.fsencode(path), isolation_level=None)) as connection:
        # No other process knows the file, and it is removed on failure: no journal, and one sync at the end.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -65536"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN")
        connection.execute(TABLE_SQL)
        done = 0
        while True:
            before = connection.total_changes
            connection.executemany(_INSERT, islice(rows, _CHUNK_EVENTS))
            written = connection.total_changes - before
            done += written
            progress(done)
            if written < _CHUNK_EVENTS:
                break
        create_indexes(connection)
        connection.execute("COMMIT")
        connection.execute("PRAGMA locking_mode = NORMAL").fetchall()
        connection.execute(f"PRAGMA journal_mode = {journal}").fetchall()
