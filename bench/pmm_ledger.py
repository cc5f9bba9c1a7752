"""Ledgers as PMM leaves them after many messages and ticks: its kinds of events, with many open commitments."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from pmm_shm.ledger.new_events import canonical_json, hash_of_parts
from pmm_shm.ledger.schema import TABLE_SQL, create_indexes
from pmm_shm.vectors.local_bow import digest

OPEN_SHARE = 924 / 100_000
"""Open commitments at the end, as a share of the events."""

_WORDS = re.findall(
    r"\w+",
    "review the garden plan summary budget notes memory chapter letter reading list sorting interview question recipe "
    "tides harbour history results calendar essay attention map valley report piano exercise translation seed "
    "timetable photo archive draft poem identity growth signal trace ledger name keep measure write learn align",
)
_INSERT = "INSERT INTO events (id, ts, kind, content, meta, prev_hash, hash) VALUES (?, ?, ?, ?, ?, ?, ?)"


def make(path: Path, events: int, seed: int = 1) -> Path:
    """A new ledger in WAL mode with so many events and the *full* hash chain."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(TABLE_SQL)
        create_indexes(connection)
        connection.executemany(_INSERT, islice(_rows(random.Random(seed)), events))
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def _rows(chance: random.Random) -> Iterator[tuple[Any, ...]]:
    before: str | None = None
    for event_id, (kind, content, meta) in enumerate(_life(chance), start=1):
        minutes, second = divmod(event_id * 7, 60)
        hours, minute = divmod(minutes, 60)
        days, hour = divmod(hours, 24)
        ts = f"2025-{1 + days // 28 % 12:02}-{1 + days % 28:02}T{hour:02}:{minute:02}:{second:02}.{event_id:06}+00:00"
        text = canonical_json(meta)
        after = hash_of_parts(
            "full",
            event_id,
            canonical_json(ts),
            canonical_json(kind),
            canonical_json(content),
            text,
            canonical_json(before),
        )
        yield event_id, ts, kind, content, text, before, after
        before = after


def _life(chance: random.Random) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Messages, a tick after every second one, and as many open commitments as `OPEN_SHARE` says."""
    open_cids: list[str] = []
    event_id = 1

    def said(words: int) -> str:
        return " ".join(chance.choices(_WORDS, k=words))

    yield "identity_adopt", "Echo", {"name": "Echo", "confidence": 0.95}
    for turn in range(1 << 40):
        made: list[tuple[str, str, dict[str, Any]]] = []
        text = said(9)
        made.append(("user", text, {"source": "handle_user"}))
        made.append(("embedding_indexed", "", {"eid": event_id + 1, "digest": digest(text)}))
        made.append(("response", said(30), {"source": "handle_user"}))
        made.append(("metrics_turn", "provider:dummy", {"in_tokens": 900, "out_tokens": 40}))
        if turn % 3 == 0:
            cid = f"{chance.getrandbits(128):032x}"
            text = said(6)
            made.append(("commitment_open", f"Commitment opened: {text}", {"cid": cid, "text": text, "source": "user"}))
            open_cids.append(cid)
        if len(open_cids) > event_id * OPEN_SHARE and chance.random() < 0.9:
            cid = open_cids.pop(chance.randrange(len(open_cids)))
            if chance.random() < 0.8:
                made.append(("evidence_candidate", "", {"cid": cid, "score": 0.8, "snippet": said(4)}))
                made.append(("commitment_close", f"Commitment closed: {cid}", {"cid": cid, "evidence_type": "done"}))
            else:
                made.append(("commitment_expire", f"Commitment expired: {cid}", {"cid": cid, "reason": "timeout"}))
        if turn % 2 == 0:
            telemetry = {"IAS": round(0.4 + chance.random() / 5, 3), "GAS": round(0.3 + chance.random() / 5, 3)}
            made.append(("autonomy_tick", "autonomy heartbeat", {"telemetry": telemetry, "stage": "S1"}))
            made.append(("policy_update", "", {"component": "reflection", "src_id": max(1, event_id - 5)}))
        if turn % 7 == 0:
            made.append(("reflection", f"my name is Echo and {said(15)}", {"tag": "auto"}))
        if turn % 11 == 0:
            made.append(("autonomy_directive", said(4), {"source": "reply", "origin_eid": event_id}))
        if turn % 50 == 0:
            made.append(("stage_update", "", {"from": "S0", "to": "S1", "reason": "auto"}))
            made.append(("trait_update", "", {"trait": "openness", "delta": 0.001}))
            made.append(("identity_adopt", "Echo", {"name": "Echo", "confidence": 0.92}))
        for one in made:
            event_id += 1
            yield one
