"""The least that could be done: single calls of py-lmdb and sqlite3, with nothing around them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb

from pmm_shm.ledger.new_events import now_text

NEWEST = "SELECT id, hash FROM events ORDER BY id DESC LIMIT 1"
INSERT = "INSERT INTO events (ts, kind, content, meta, prev_hash, hash) VALUES (?, ?, ?, ?, ?, ?)"


@contextlib.contextmanager
def lmdb_lookup(directory: Path, value: bytes) -> Iterator[Callable[[], bytes | None]]:
    """`begin, get, abort` of an environment that holds this one value."""
    environment = lmdb.open(str(directory / "bare"), map_size=1 << 30)
    with environment.begin(write=True) as writing:
        writing.put(b"value", value)
    begin = environment.begin

    def look_up() -> bytes | None:
        transaction = begin()
        found: bytes | None = transaction.get(b"value")
        transaction.abort()
        return found

    try:
        yield look_up
    finally:
        environment.close()


@contextlib.contextmanager
def connection(ledger: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as made:
        yield made


def data_version(handle: sqlite3.Connection) -> Callable[[], Any]:
    """`PRAGMA data_version`."""
    return lambda: handle.execute("PRAGMA data_version").fetchall()


class Appender:
    """`BEGIN IMMEDIATE`, the last hash, an insert with SHA-256, `COMMIT`; the chain is that of `EventLog`."""

    def __init__(self, handle: sqlite3.Connection) -> None:
        handle.execute("PRAGMA synchronous = NORMAL")
        self._handle = handle

    def append(self, kind: str, content: str, meta: dict[str, Any]) -> int:
        execute = self._handle.execute
        execute("BEGIN IMMEDIATE")
        newest_id, previous = execute(NEWEST).fetchone()
        event_id: int = newest_id + 1
        ts = now_text()
        hashed = {
            "id": event_id,
            "ts": ts,
            "kind": kind,
            "content": content,
            "meta": meta,
            "prev_hash": previous,
        }
        text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        inserted = execute(INSERT, (ts, kind, content, json.dumps(meta), previous, digest)).lastrowid
        execute("COMMIT")
        assert inserted == event_id
        return event_id
