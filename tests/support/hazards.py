"""Events of several kinds, and values that no event should have."""

from __future__ import annotations

from typing import Any

from pmm_shm.ledger.eventlog import EventLog
from tests.support import ledgers


def event(number: int) -> dict[str, Any]:
    """One event of each of some kinds, in turns."""
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("trait_update", "", {"trait": "o", "delta": 0.0001 * (number % 4)}),
        ("commitment_open", f"promise {number}", {"cid": f"c{number}", "text": f"text {number}"}),
        ("user", f"message {number}", {}),
        ("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": 0.25}, "stage": "S1"}),
        ("autonomy_directive", f"directive {number % 50}", {"source": "reply"}),
        ("commitment_close", "", {"cid": f"c{number - 4}"}),
    ]
    kind, content, meta = kinds[number % 6]
    return {"kind": kind, "content": content, "meta": meta}


def fill(path: str, count: int, start: int = 0) -> None:
    with EventLog(path) as log:
        log.append_many([event(number) for number in range(start, start + count)])


HOSTILE_KINDS = ("commitment_open", "trait_update", "user", "autonomy_directive", "invariant_violation")


def insert_hostile(path: str) -> None:
    """Every malformed row, as an event of each kind that some fold reads; the huge one once."""
    connection = ledgers.connect(path)
    connection.execute("BEGIN IMMEDIATE")
    for kind, content, meta, _, _ in ledgers.HOSTILE:
        huge = isinstance(content, str) and len(content) > 1_000_000
        kinds: tuple[Any, ...] = (HOSTILE_KINDS[:1] if huge else HOSTILE_KINDS) if kind == "k" else (kind,)
        for one in kinds:
            values, slots = [], []
            for value in (one, content, meta):
                slots.append("CAST(? AS TEXT)" if isinstance(value, bytes) else "?")
                values.append(value[1] if isinstance(value, tuple) else value)
            connection.execute(
                f"INSERT INTO events (ts, kind, content, meta, hash) VALUES ('t', {', '.join(slots)}, NULL)", values
            )
    # JSON that no fold expects.
    metas = ['{"cid": ["a"], "text": "t"}', '{"cid": 1.5, "text": "t"}', f'{{"cid": {1 << 80}, "text": "t"}}',
             '{"cid": "\\ud800", "text": "\\ud800"}', '{"trait": "o", "delta": NaN}', '{"trait": [], "delta": {}}',
             '{"trait": "o", "delta": 1e999}', '{"code": {}, "details": []}', '{"source": {"a": [1]}}',
             '{"cid": "first", "cid": "last", "text": "t"}', f'{{"cid": {"9" * 5_000}, "text": "t"}}',
             f'{{"cid": {"[" * 100_000 + "]" * 100_000}, "text": "t"}}']  # fmt: skip
    for meta in metas:
        for one in (*HOSTILE_KINDS, "commitment_close", "evidence_candidate", "identity_adopt", "autonomy_tick"):
            connection.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('t', ?, 'c', ?)", (one, meta))
    connection.execute("COMMIT")
    connection.close()
