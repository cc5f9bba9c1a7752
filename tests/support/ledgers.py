"""Builds ledgers as other programs do: with plain `sqlite3`, in any journal mode, with or without hashes."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "pmm_shm": "pmm_shm",
    "pmm_cached": "server/pmm_cached",
    "pmm_shm_client": "client/pmm_shm_client",
    "pmm_shm_terminal": "client/pmm_shm_terminal",
    "pmm_shm_cli": "client/pmm_shm_cli",
    "pmm_shm_chat": "client/pmm_shm_chat",
    "pmm_shm_mcp": "client/pmm_shm_mcp",
    "pmm_shm_pmm": "client/pmm_shm_pmm",
    "pmm_shm_web": "client/pmm_shm_web",
    "pmm_replicator": "server/pmm_replicator",
}
"""The packages that are shipped, and their folders."""
TS = "2026-01-02T03:04:05.{:06d}+00:00"


def checkout_path() -> str:
    """A PYTHONPATH in which this checkout's packages come first."""
    checkout = [str(ROOT / folder) for folder in ("server", "client", "")]
    return os.pathsep.join([*checkout, os.environ.get("PYTHONPATH", "")])


def reference_hash(formula: str, row: dict[str, Any]) -> str:
    """The specification's formula, word by word; `row["meta"]` is the parsed object."""
    keys = ["kind", "content", "meta", "prev_hash"] + (["id", "ts"] if formula == "full" else [])
    text = json.dumps({key: row[key] for key in keys}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def connect(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """An autocommitting connection; close it."""
    return sqlite3.connect(path, isolation_level=None)


def execute(path: str | os.PathLike[str], sql: str, *parameters: Any) -> list[Any]:
    """One statement through a connection of its own, as another program would."""
    connection = connect(path)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()


def make_table(connection: sqlite3.Connection, *, hash_columns: bool = True, strict: bool = True) -> None:
    """The table alone, without indexes; `strict=False` leaves out NOT NULL."""
    not_null = " NOT NULL" if strict else ""
    columns = ", ".join(f"{name} TEXT{not_null}" for name in ("ts", "kind", "content", "meta"))
    hashes = ", prev_hash TEXT, hash TEXT" if hash_columns else ""
    connection.execute(f"CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns}{hashes})")


def build(
    path: str | os.PathLike[str],
    count: int = 5,
    *,
    journal: str = "wal",
    formula: str | None = "full",
    hash_columns: bool = True,
    unhashed: tuple[int, ...] = (),
    ids: list[int] | None = None,
) -> str:
    """A ledger of `count` small events; those with an id in `unhashed`, or all without a formula, have NULL hashes."""
    connection = connect(path)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    make_table(connection, hash_columns=hash_columns)
    previous = None
    connection.execute("BEGIN")
    for event_id in ids or range(1, count + 1):
        row = {
            "id": event_id,
            "ts": TS.format(event_id),
            "kind": "note" if event_id % 2 else "other",
            "content": f"content {event_id} é",
            "meta": {"n": event_id, "a": [1.5, None]},
            "prev_hash": None,
            "hash": None,
        }
        if formula is not None and event_id not in unhashed:
            row["prev_hash"] = previous
            row["hash"] = previous = reference_hash(formula, row)
        row["meta"] = json.dumps(row["meta"])
        if not hash_columns:
            del row["prev_hash"], row["hash"]
        marks = ", ".join(f":{name}" for name in row)
        connection.execute(f"INSERT INTO events ({', '.join(row)}) VALUES ({marks})", row)
    connection.execute("COMMIT")
    connection.close()
    return str(path)


_MANY = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
INSERT INTO events (ts, kind, content, meta)
SELECT '2026-01-02T03:04:05.000000+00:00', 'commitment_open', 'promise ' || n, json_object('cid', 'c' || n, 'text', 'x')
FROM numbers
"""


def build_many(path: str | os.PathLike[str], count: int) -> str:
    """A ledger of so many open commitments, in rollback mode and without hashes; for hundreds of thousands."""
    connection = connect(path)
    make_table(connection)
    connection.execute(_MANY, (count,))
    connection.close()
    return str(path)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The file's bytes, read by another process: here, closing it would drop SQLite's locks."""
    return subprocess.run(["cat", os.fspath(path)], check=True, stdout=subprocess.PIPE).stdout


def raw_rows(path: str | os.PathLike[str]) -> list[Any]:
    """All rows with all columns, text as bytes."""
    connection = connect(path)
    connection.text_factory = bytes
    try:
        return connection.execute("SELECT * FROM events ORDER BY id").fetchall()
    finally:
        connection.close()


DEEP = '{"a":' * 3_000 + "1" + "}" * 3_000
# (kind, content, meta, what get_event shows as content, and as meta); bytes are cast to TEXT, ("blob", x) is a BLOB.
HOSTILE: list[tuple[Any, Any, Any, str, dict[str, Any] | None]] = [
    ("k", "deep", DEEP, "deep", {}),
    ("k", "digits", '{"a": %s}' % ("9" * 5_000), "digits", {}),
    ("k", "big", f'{{"a": {1 << 80}}}', "big", {"a": 1 << 80}),
    ("k", "nan", '{"a": NaN}', "nan", None),
    ("k", "twice", '{"a": 1, "a": 2}', "twice", {"a": 2}),
    ("k", "surrogate", '{"a": "\\ud800"}', "surrogate", {"a": "\ud800"}),
    ("k", "list", "[1, 2]", "list", {}),
    ("k", "broken", "{", "broken", {}),
    ("k", "empty", "", "empty", {}),
    ("k", "null", None, "null", {}),
    ("k", b"bad \xff utf-8", "{}", "", {}),
    (b"k\xff", "kind", "{}", "kind", {}),
    ("k", "bad meta", b'{"a": "\xff"}', "bad meta", {}),
    ("k", ("blob", b"\x00\x01"), "{}", "", {}),
    ("k", "blob", ("blob", b"{}"), "blob", {}),
    ("k", None, "{}", "", {}),
    (None, "no kind", "{}", "no kind", {}),
    ("k", "x" * 10_000_000, "{}", "x" * 10_000_000, {}),
]


def build_hostile(path: str | os.PathLike[str], *, hashed: bool) -> str:
    """A ledger of every malformed row of the hazard list; `hashed` gives each a hash that is none."""
    connection = connect(path)
    connection.execute("PRAGMA journal_mode = wal")
    make_table(connection, strict=False)
    for number, (kind, content, meta, _, _) in enumerate(HOSTILE, 1):
        values, slots = [], []
        for value in (kind, content, meta):
            slots.append("CAST(? AS TEXT)" if isinstance(value, bytes) else "?")
            values.append(value[1] if isinstance(value, tuple) else value)
        digest = "0" * 64 if hashed else None
        connection.execute(
            f"INSERT INTO events (ts, kind, content, meta, hash) VALUES (?, {', '.join(slots)}, ?)",
            (TS.format(number), *values, digest),
        )
    connection.close()
    return str(path)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs `code` with this checkout on its path; both pipes are text."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
