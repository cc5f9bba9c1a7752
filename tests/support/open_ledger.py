"""A ledger of PMM with many open commitments, made at once."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tests.support.run_golden import make_ledger

_TEXT = """
write test report launch plan trace signal budget focus scene memory identity learn review code measure growth align
project summary weekly answer question observe reflect honest stable draft publish explore
"""
_WORDS = tuple(_TEXT.split())
_START = datetime(2025, 1, 1, 0, 0, 0, 1, timezone.utc)


def many_open(count: int, open_count: int, seed: int = 1) -> list[dict[str, Any]]:
    """`count` events in the mixture of an agent's life, at the end of which `open_count` commitments are open."""
    chance = random.Random(seed)
    events: list[dict[str, Any]] = []

    def text(least: int, most: int) -> str:
        return " ".join(
            chance.choice(_WORDS) + chance.choice(("", "", "s", "ing", str(chance.randrange(99))))
            for _ in range(chance.randint(least, most))
        )

    def add(kind: str, content: str = "", **meta: Any) -> None:
        number = len(events) + 1
        ts = (_START + timedelta(seconds=number)).isoformat()
        events.append({"id": number, "ts": ts, "kind": kind, "content": content, "meta": meta})

    waiting: list[str] = []
    while len(events) < count:
        roll = chance.random()
        if roll < 0.25:
            add("user", text(3, 20), source="handle_user")
            add("response", text(20, 120), source="handle_user")
        elif roll < 0.45:
            add(
                "autonomy_tick",
                "autonomy heartbeat",
                telemetry={"IAS": chance.random(), "GAS": chance.random()},
                stage="S1",
            )
        elif roll < 0.55:
            add("reflection", text(10, 60))
            add("policy_update", "", component="reflection", src_id=len(events))
        elif roll < 0.80:
            cid, promise = f"c{len(events):x}", text(4, 12)
            add("commitment_open", f"Commitment opened: {promise}", cid=cid, text=promise)
            waiting.append(cid)
        elif roll < 0.9 and len(waiting) > open_count:
            cid = waiting.pop(chance.randrange(len(waiting)))
            add("evidence_candidate", "", cid=cid, score=0.8, snippet=text(4, 12))
            add("commitment_close", f"Commitment closed: {cid}", cid=cid, clean=True)
        elif len(waiting) > open_count:
            add("commitment_expire", "", cid=waiting.pop(0), reason="timeout")
        if chance.random() < 0.01:
            add("stage_update", "", to="S1")
            add("identity_adopt", "Echo", name="Echo", confidence=0.9)
    while len(waiting) > open_count:
        cid = waiting.pop(0)
        add("commitment_close", f"Commitment closed: {cid}", cid=cid, clean=True)
    return events


def make_open_ledger(path: Path, count: int, open_count: int) -> None:
    """A ledger with `many_open` events."""
    make_ledger(path, many_open(count, open_count))
