"""`export` and `import`: every row as it was, or no ledger at all."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pmm_shm import errors
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.json_lines import exported, import_lines
from tests.support import ledgers


def lines_of(path: str) -> list[bytes]:
    with closing(Connection(path, "ro")) as connection:
        return [line.encode("ascii") for line in exported(connection)]


def schema_of(path: str) -> list[tuple[str]]:
    return ledgers.execute(path, "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name")


def types_of(path: str) -> list[tuple[str, ...]]:
    return ledgers.execute(path, "SELECT typeof(ts), typeof(kind), typeof(content), typeof(meta) FROM events")


def usual(path: Path) -> str:
    with EventLog(path) as log:
        log.append("user", "with a\0 in it, é, \U0001f980 and\nlines", {"b": 1, "a": [1.5, None, "é"]})
        log.append_many([("response", "x" * 100_000, None), ("user", "", {"big": 1 << 70})])
    ledgers.execute(str(path), "DELETE FROM events WHERE id = 2")
    with EventLog(path) as log:
        log.append("note", "after a gap")
    return str(path)


def unusual(path: Path) -> str:
    """Ids below 0, a column of its own, no types, and values that JSON does not have."""
    connection = ledgers.connect(path)
    connection.execute(
        'CREATE TABLE events (id INTEGER PRIMARY KEY, ts, kind, content, meta, "my ""col", hash, prev_hash)'
    )
    connection.execute("INSERT INTO events VALUES (-5, 1.5, 9e999, -9e999, 7, x'00ff', NULL, NULL)")
    connection.execute("INSERT INTO events VALUES (9, 'a'||char(0)||'b', 0.1, '', '{}', CAST(x'ff' AS TEXT), 3, NULL)")
    connection.close()
    return str(path)


@pytest.mark.parametrize(
    "make",
    [
        usual,
        unusual,
        lambda path: ledgers.build_hostile(path, hashed=True),
        lambda path: ledgers.build(path, 5, hash_columns=False),
        lambda path: ledgers.build(path, 0),
        lambda path: ledgers.build(path, 2_500, journal="delete", formula="content"),
    ],
    ids=["usual", "unusual", "hostile", "without-hashes", "empty", "content-formula"],
)
def test_what_is_imported_is_what_was_exported(tmp_path: Path, make: Callable[[Path], str]) -> None:
    ledger, copy = make(tmp_path / "a.db"), str(tmp_path / "b.db")
    lines = lines_of(ledger)
    done = import_lines(lines, copy, chain=False)
    rows = ledgers.raw_rows(ledger)
    assert (done.ledger, done.events) == (os.path.realpath(copy), len(rows))
    assert done.head_id == max((row[0] for row in rows), default=0)
    assert ledgers.raw_rows(copy) == rows
    assert types_of(copy) == types_of(ledger)
    assert lines_of(copy) == lines
    assert {name for name in os.listdir(tmp_path) if name.startswith("b.db")} <= {"b.db", "b.db-shm", "b.db-wal"}


def test_a_usual_ledger_gets_the_usual_tables_and_goes_on(tmp_path: Path) -> None:
    ledger, copy = str(tmp_path / "a.db"), str(tmp_path / "b.db")
    with EventLog(ledger) as log:
        log.append_many([("user", str(number), None) for number in range(4)])
    import_lines(lines_of(ledger), copy)
    assert schema_of(copy) == schema_of(ledger)
    with EventLog(copy, create=False) as log:
        assert log.append("user", "and on") == 5
        assert log.verify_chain().ok
    assert ledgers.execute(copy, "PRAGMA journal_mode") == [("wal",)]


def test_a_line_is_json_with_the_text_of_meta(tmp_path: Path) -> None:
    first = json.loads(lines_of(usual(tmp_path / "a.db"))[0])
    assert list(first) == ["id", "ts", "kind", "content", "meta", "prev_hash", "hash"]
    assert json.loads(first["meta"]) == {"b": 1, "a": [1.5, None, "é"]}
    assert first["content"] == "with a\0 in it, é, \U0001f980 and\nlines"


LINE = {
    "id": 1,
    "ts": "2026-01-02T03:04:05Z",
    "kind": "k",
    "content": "c",
    "meta": "{}",
    "prev_hash": None,
    "hash": None,
}


def changed(**changes: object) -> bytes:
    return json.dumps({**LINE, **changes}).encode()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b"{"], "line 1 is not an event of an export: "),
        ([b"[1]"], "not a JSON object"),
        ([b"\xff"], "line 1 "),
        ([b'{"a": NaN}'], "NaN is not JSON"),
        ([b"[" * 100_000], "nested too deep"),
        ([b'{"id": 1}'], "without ts, kind, content, meta"),
        ([changed(id="1")], "id: '1' is not an integer of 64 bits"),
        ([changed(id=1 << 63)], "is not an integer of 64 bits"),
        ([changed(id=True)], "true is no value of a column"),
        ([changed(), changed()], "line 2 is not an event of an export: event 1 does not come after event 1"),
        ([changed(), b"", changed(id=2, more=1)], "line 3 is not an event of an export: more: in no line before"),
        ([changed(), json.dumps({"id": 2}).encode()], "without ts"),
        ([changed(meta={"a": 1})], "meta is the text of its column"),
        ([changed(content={"blob": "zz"})], "line 1"),
        ([changed(content={"real": "nan"})], "no value of a column"),
        ([changed(content=[])], "no value of a column"),
        ([changed(content=1 << 70)], "line 1"),
        ([changed(content="\ud800")], "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_made(tmp_path: Path, lines: list[bytes], said: str) -> None:
    with pytest.raises(errors.NotALedgerError) as raised:
        import_lines(lines, tmp_path / "b.db", source="x.jsonl")
    assert str(raised.value).startswith("x.jsonl: line ")
    assert str(raised.value).endswith("; nothing was written")
    assert said in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_a_broken_chain_is_refused_unless_it_is_not_asked_about(tmp_path: Path) -> None:
    lines = lines_of(ledgers.build(tmp_path / "a.db", 9))
    lines[4] = lines[4].replace(b"content 5", b"content 6")
    with pytest.raises(errors.ChainError, match="the hash chain is broken at event 5; nothing was written"):
        import_lines(lines, tmp_path / "b.db")
    assert not (tmp_path / "b.db").exists()
    assert import_lines(lines, tmp_path / "b.db", chain=False).events == 9


def test_a_fork_of_the_chain_is_no_damage(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "a.db", 4)
    (previous,) = ledgers.execute(path, "SELECT prev_hash FROM events WHERE id = 4")[0]
    row = {"id": 5, "ts": ledgers.TS.format(5), "kind": "k", "content": "c", "meta": {}, "prev_hash": previous}
    ledgers.execute(
        path,
        "INSERT INTO events VALUES (5, ?, 'k', 'c', '{}', ?, ?)",
        row["ts"],
        previous,
        ledgers.reference_hash("full", row),
    )
    with EventLog(path) as log:
        assert log.verify_chain().fork == (4, 5)
    assert import_lines(lines_of(path), tmp_path / "b.db").events == 5


def test_an_existing_file_is_refused(tmp_path: Path) -> None:
    ledger = ledgers.build(tmp_path / "a.db", 3)
    rows = ledgers.raw_rows(ledger)
    with pytest.raises(errors.LedgerUnwritableError, match="exists already"):
        import_lines([], ledger)
    assert ledgers.raw_rows(ledger) == rows


def test_an_export_ends_with_the_head_at_its_begin(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "a.db", 5_000)
    with closing(Connection(path, "ro")) as connection, EventLog(path) as log:
        lines = exported(connection)
        first = next(lines)
        log.append_many([("note", "more", None)] * 3_000)
        assert len([first, *lines]) == 5_000


def test_another_history_ends_an_export(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "a.db", 5_000)
    with closing(Connection(path, "ro")) as connection:
        lines = exported(connection)
        next(lines)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("DELETE FROM events")
        with pytest.raises(errors.LedgerReplacedError, match="while it was exported"):
            list(lines)
