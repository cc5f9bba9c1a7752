"""An id that `append` returns is that of the event as it was given; otherwise nothing was written, and it says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm import errors
from pmm_shm.ledger.eventlog import EventLog
from tests.support import doctor, ledgers

IGNORES = (
    "CREATE TRIGGER dedupe BEFORE INSERT ON events WHEN EXISTS (SELECT 1 FROM events WHERE content = new.content) "
    "BEGIN SELECT RAISE(IGNORE); END"
)
COUNTS_AND_IGNORES = (
    "CREATE TRIGGER dedupe BEFORE INSERT ON events WHEN new.content = 'again' "
    "BEGIN INSERT INTO seen VALUES (new.kind); SELECT RAISE(IGNORE); END"
)
REWRITES = (
    "CREATE TRIGGER shout AFTER INSERT ON events WHEN new.content = 'again' "
    "BEGIN UPDATE events SET content = upper(content) WHERE id = new.id; END"
)
REDACTS_THE_ONE_BEFORE = (
    "CREATE TRIGGER redact AFTER INSERT ON events WHEN new.content = 'again' "
    "BEGIN UPDATE events SET content = '' WHERE id = new.id - 1; END"
)
REWRITES_FROM_ANOTHER_TABLE = (
    "CREATE TRIGGER shout AFTER INSERT ON seen BEGIN UPDATE Events SET content = upper(content) "
    "WHERE content = 'again' AND id = (SELECT max(id) FROM events); END"
)
REMOVES = (
    "CREATE TRIGGER drops AFTER INSERT ON events WHEN new.content = 'again' "
    "BEGIN DELETE FROM events WHERE id = new.id; END"
)
ABORTS = (
    "CREATE TRIGGER frozen BEFORE INSERT ON events WHEN new.content = 'again' "
    "BEGIN SELECT RAISE(ABORT, 'this ledger''s frozen'); END"
)
FAILS_ELSEWHERE = (
    "CREATE TRIGGER tags AFTER INSERT ON events WHEN new.content = 'again' "
    "BEGIN INSERT INTO tag VALUES ('one'); INSERT INTO tag VALUES ('one'); END"
)
CALLS = "CREATE TRIGGER guard BEFORE INSERT ON events BEGIN SELECT is_owner(new.kind); END"


@pytest.fixture(params=[True, False], ids=["hashed", "plain"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventLog]:
    """A ledger with two events, and tables for triggers to write to."""
    path = ledgers.build(tmp_path / "l.db", 0, hash_columns=request.param)
    ledgers.execute(path, "CREATE TABLE seen (kind TEXT)")
    ledgers.execute(path, "CREATE TABLE tag (name TEXT UNIQUE)")
    with EventLog(path) as opened:
        opened.append_many([("user", "first", None), ("user", "again", None)])
        yield opened


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        (IGNORES, "dedupe"),
        (COUNTS_AND_IGNORES, "dedupe"),
        (REWRITES, "shout"),
        (REWRITES_FROM_ANOTHER_TABLE, "shout"),
        (REMOVES, "drops"),
        (ABORTS, "frozen"),
        (FAILS_ELSEWHERE, "tags"),
    ],
)
def test_a_trigger_that_drops_or_changes_an_event_is_named(log: EventLog, sql: str, name: str) -> None:
    # The owner's program defines it while ours has the ledger open, and has another trigger that harms nothing.
    ledgers.execute(log.path, "CREATE TRIGGER audit AFTER INSERT ON events BEGIN INSERT INTO seen VALUES ('x'); END")
    ledgers.execute(log.path, sql)
    before = ledgers.raw_rows(log.path)
    for events in ([("user", "again", None)], [("user", "new", None), ("user", "again", None), ("user", "c", None)]):
        with pytest.raises(errors.LedgerUnwritableError, match=f"`{name}`.*nothing was written"):
            log.append_many(events)
        assert ledgers.raw_rows(log.path) == before
    assert ledgers.execute(log.path, "SELECT count(*) FROM seen") == [(0,)]
    event_id = log.append("user", "another")
    event = log.get_event(event_id)
    assert event is not None
    assert event["content"] == "another"
    assert log.verify_chain().ok


def test_a_trigger_that_changes_the_event_before_is_named(tmp_path: Path) -> None:
    with EventLog(tmp_path / "l.db") as log:
        log.append("user", "first")
        ledgers.execute(log.path, REDACTS_THE_ONE_BEFORE)
        with pytest.raises(errors.LedgerUnwritableError, match="`redact`"):
            log.append("user", "again")
        assert [event["content"] for event in log.read_all()] == ["first"]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("clause", ["CONFLICT IGNORE", "CONFLICT REPLACE", "/* or\n */ CONFLICT -- or\n replace"])
def test_a_constraint_that_resolves_conflicts_silently_does_not(tmp_path: Path, clause: str, encoding: str) -> None:
    path = str(tmp_path / "l.db")
    connection = ledgers.connect(path)
    connection.execute(f"PRAGMA encoding = '{encoding}'")
    connection.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, ts TEXT, kind TEXT, content TEXT, meta TEXT, prev_hash TEXT, "
        f"hash TEXT, UNIQUE (kind, content) ON {clause})"
    )
    connection.close()
    with EventLog(path) as log:
        assert log.append("user", "hello") == 1
        with pytest.raises(errors.LedgerUnwritableError, match=r"UNIQUE constraint failed: events\.kind"):
            log.append("user", "hello")
        assert log.append("user", "else") == 2
        assert [event["content"] for event in log.read_all()] == ["hello", "else"]
        assert log.verify_chain().ok


def test_hashes_in_capitals_are_hashes(tmp_path: Path) -> None:
    path = str(tmp_path / "l.db")
    ledgers.execute(
        path,
        "CREATE TABLE Events (Id INTEGER PRIMARY KEY AUTOINCREMENT, Ts TEXT, Kind TEXT, Content TEXT, Meta TEXT, "
        "Prev_Hash TEXT, HASH TEXT)",
    )
    with EventLog(path) as log:
        assert log.append_many([("user", "first", None), ("user", "second", None)]) == [1, 2]
        ledgers.execute(path, "DELETE FROM events WHERE id = 2")
        # An id that was used is not used again.
        assert log.append("user", "third") == 3
        report = log.verify_chain()
        assert (report.rows_checked, report.rows_without_hash) == (2, 0)


@pytest.mark.parametrize("declared", ["STRING", "INTEGER", "JSON"])
def test_a_column_whose_type_changes_a_value(tmp_path: Path, declared: str) -> None:
    """SQLite takes STRING for a number: the text 007 would be stored as 7."""
    path = str(tmp_path / "l.db")
    ledgers.execute(
        path, f"CREATE TABLE events (id INTEGER PRIMARY KEY, ts TEXT, kind TEXT, content {declared}, meta TEXT)"
    )
    with EventLog(path) as log:
        assert log.append("user", "words") == 1
        with pytest.raises(errors.LedgerUnwritableError, match="type of a column"):
            log.append("user", "007")
        assert log.append("user", "more words") == 2


def test_triggers_that_write_elsewhere_are_no_obstacle(log: EventLog) -> None:
    ledgers.execute(log.path, "INSERT INTO tag VALUES ('user')")
    ledgers.execute(
        log.path, "CREATE TRIGGER tags AFTER INSERT ON events BEGIN INSERT OR IGNORE INTO tag VALUES (new.kind); END"
    )
    assert log.append("user", "hello") == 3
    assert log.append_many([("reflection", "a", None), ("user", "b", None)]) == [4, 5]
    assert ledgers.execute(log.path, "SELECT name FROM tag ORDER BY name") == [("reflection",), ("user",)]


@pytest.mark.parametrize(
    "sql",
    [
        CALLS,
        "CREATE INDEX own ON events (is_owner(kind))",
        "CREATE TRIGGER late AFTER INSERT ON events BEGIN UPDATE seen SET kind = is_owner(new.kind); END",
    ],
)
def test_an_owner_who_admits_only_his_own_program(log: EventLog, sql: str) -> None:
    connection = ledgers.connect(log.path)
    connection.create_function("is_owner", 1, lambda _: 1, deterministic=True)
    connection.execute(sql)
    connection.close()
    with pytest.raises(errors.LedgerUnwritableError, match=r"only its owner's program can append.*is_owner\(\)"):
        log.append("user", "hello")
    assert len(log.read_all()) == 2
    found = doctor.worst(doctor.examined(log.path), "ledger-access")
    assert found.severity == "note"
    assert "is_owner()" in found.meaning
