"""An append behind an own one does not read the newest row again, and still notices whatever else has committed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm import crash_points
from pmm_shm.errors import ChainError, LedgerUnwritableError
from pmm_shm.ledger.eventlog import EventLog
from tests.support import ledgers


@pytest.fixture(params=["wal", "delete"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventLog]:
    """A log that knows that the newest event is its own."""
    path = str(tmp_path / "l.db")
    EventLog(path).close()
    ledgers.execute(path, f"PRAGMA journal_mode = {request.param}")
    with EventLog(path) as opened:
        for number in range(1, 5):
            assert opened.append("own", str(number)) == number
        yield opened


def test_an_append_behind_an_own_one_reads_no_row(log: EventLog) -> None:
    statements: list[str] = []
    handle = log._appender.connection.handle()
    handle.set_trace_callback(statements.append)
    assert log.append("own", "traced") == 5
    handle.set_trace_callback(None)
    # It follows the schema every now and then.
    found = [one.split()[0] for one in statements if one != "PRAGMA schema_version"]
    assert found == ["BEGIN", "PRAGMA", "INSERT", "COMMIT"]
    assert log.verify_chain().ok


@pytest.mark.parametrize("count", [1, 3])
def test_events_of_another_log_come_first(log: EventLog, count: int) -> None:
    with EventLog(log.path) as other:
        for turn in range(4):
            head = 4 + turn * 2 * count
            assert other.append_many([("other", "", {})] * count) == [head + 1 + n for n in range(count)]
            for number in range(count):
                assert log.append("own") == head + count + 1 + number
    assert log.verify_chain().ok
    assert len(log.read_all()) == 4 + 8 * count


def test_an_edit_of_the_newest_event_is_noticed(log: EventLog) -> None:
    ledgers.execute(log.path, "UPDATE events SET content = 'edited' WHERE id = 4")
    for _ in range(2):
        with pytest.raises(ChainError, match="the hash of event 4"):
            log.append("own")
    ledgers.execute(log.path, "UPDATE events SET content = '4' WHERE id = 4")
    assert [log.append("own"), log.append("own"), log.append("own")] == [5, 6, 7]
    assert log.verify_chain().ok


def test_the_id_of_a_deleted_event_is_not_used_again(log: EventLog) -> None:
    with EventLog(log.path) as other:
        other.append("other")
    ledgers.execute(log.path, "DELETE FROM events WHERE id = 5")
    assert [log.append("own"), log.append("own")] == [6, 7]
    ledgers.execute(log.path, "DELETE FROM events WHERE id = 7")
    assert log.append("own") == 8
    assert log.verify_chain().ok


def test_an_event_that_a_trigger_adds_is_noticed(log: EventLog) -> None:
    ledgers.execute(
        log.path,
        "CREATE TRIGGER echo AFTER INSERT ON events WHEN new.kind = 'own' BEGIN INSERT INTO events (ts, kind, content, "
        "meta) VALUES (new.ts, 'echo', '', '{}'); END",
    )
    assert [log.append("own") for _ in range(4)] == [5, 7, 9, 11]
    assert log.verify_chain().ok


def test_an_append_that_fails_behind_its_commit_leaves_the_chain_whole(log: EventLog) -> None:
    def fail(point: str) -> None:
        if point == "append.committed":
            raise InterruptedError(point)

    crash_points.install(fail)
    try:
        with pytest.raises(InterruptedError):
            log.append("own", "committed")
    finally:
        crash_points.install(None)
    assert [log.append("own"), log.append("own"), log.append("own")] == [6, 7, 8]
    assert log.verify_chain().ok


def test_an_append_that_writes_nothing_leaves_the_chain_whole(log: EventLog) -> None:
    ledgers.execute(
        log.path,
        "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN new.content = 'no' BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    assert log.append("own") == 5
    for event_id in (6, 7, 8):
        with pytest.raises(LedgerUnwritableError):
            log.append("own", "no")
        assert log.append("own") == event_id
    assert log.verify_chain().ok


def test_a_log_without_hashes_counts_on(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 0, hash_columns=False)
    with EventLog(path) as log, EventLog(path) as other:
        assert [log.append("own") for _ in range(4)] == [1, 2, 3, 4]
        assert other.append("other") == 5
        assert log.append("own") == 6
