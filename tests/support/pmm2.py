"""Ledgers of PMM 2 and of November 2025, and the process that holds the writer lease of one of PMM 2."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable
from typing import Any

from tests.support import ledgers

OWNER, FENCE = "owner-1", 7
LEASE_SQL = "CREATE TABLE pmm_writer_lease (id INTEGER PRIMARY KEY, owner TEXT, fence INTEGER) WITHOUT ROWID"
_LEASED = f"""
CREATE UNIQUE INDEX idx_events_hash ON events (hash);
CREATE UNIQUE INDEX idx_events_checkpoint ON events (content) WHERE kind = 'checkpoint';
CREATE TABLE pmm_database_identity (id INTEGER PRIMARY KEY CHECK (id = 1), identity TEXT NOT NULL);
{LEASE_SQL};
CREATE TABLE pmm_projection_status (name TEXT PRIMARY KEY, position INTEGER NOT NULL);
INSERT INTO pmm_database_identity VALUES (1, 'a-database');
INSERT INTO pmm_writer_lease VALUES (1, '{OWNER}', {FENCE});
CREATE TRIGGER pmm_events_require_writer BEFORE INSERT ON events BEGIN
    SELECT RAISE(ABORT, 'PMM_WRITER_REQUIRED') WHERE pmm_writer_owner() IS NULL;
    SELECT RAISE(ABORT, 'PMM_FENCE_REQUIRED') WHERE pmm_writer_fence() IS NULL;
    SELECT RAISE(ABORT, 'PMM_WRITER_AUTHORITY_LOST') WHERE NOT EXISTS (
        SELECT 1 FROM pmm_writer_lease WHERE owner = pmm_writer_owner() AND fence = pmm_writer_fence());
END;
"""


def build(path: str | os.PathLike[str], count: int = 5, extra: Iterable[tuple[str, str, dict[str, Any]]] = ()) -> str:
    """A ledger of PMM 2 with `count` small events, and the `extra` ones (kind, content, meta)."""
    made = build_of_2025(path, count)
    connection = ledgers.connect(made)
    for event in extra:
        append(connection, *event)
    connection.close()
    take_over(made)
    return made


def build_of_2025(path: str | os.PathLike[str], count: int = 5) -> str:
    """A ledger of November 2025: the formula *content*, a rollback journal, and no lease."""
    return ledgers.build(path, count, formula="content", journal="delete")


def take_over(path: str) -> None:
    """Make a ledger one of PMM 2."""
    connection = ledgers.connect(path)
    connection.executescript(_LEASED)
    connection.close()


def leased(path: str) -> sqlite3.Connection:
    """A connection as the process has it that holds the writer lease."""
    connection = ledgers.connect(path)
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.create_function("pmm_writer_owner", 0, lambda: OWNER)
    connection.create_function("pmm_writer_fence", 0, lambda: FENCE)
    return connection


def append(connection: sqlite3.Connection, kind: str, content: str, meta: dict[str, Any]) -> int:
    """Append one event, as PMM 2 does."""
    connection.execute("BEGIN IMMEDIATE")
    found = connection.execute("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1").fetchall()
    event_id, previous = (found[0][0] + 1, found[0][1]) if found else (1, None)
    row = {"kind": kind, "content": content, "meta": meta, "prev_hash": previous}
    values = (event_id, ledgers.TS.format(event_id), kind, content, json.dumps(meta), previous)
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, ledgers.reference_hash("content", row))
    )
    connection.execute("COMMIT")
    return int(event_id)


def main(path: str, count: str) -> None:
    """Append so many events, and print the id of each as soon as it is committed."""
    connection = leased(path)
    for number in range(int(count)):
        print(append(connection, "user", f"message {number}", {"n": number}), flush=True)
        time.sleep(0.002)


if __name__ == "__main__":
    main(*sys.argv[1:])
