"""A ledger that was replaced since the last append: the next one goes to the new file, whatever the old one holds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm import crash_points, limits
from pmm_shm.errors import HeadMovedError, LedgerNotFoundError
from pmm_shm.ledger.eventlog import EventLog
from tests.support import ledgers


@pytest.fixture(params=[0.0, 600.0], ids=["looks-first", "looked-just-now"])
def log(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EventLog]:
    """A log with three events, in a file without a WAL, that has appended before.

    Each time also as if the next append began right behind that one.
    """
    monkeypatch.setattr(limits, "LOOK_BEHIND_APPEND_S", request.param)
    path = ledgers.build(tmp_path / "l.db", 2)
    ledgers.execute(path, "PRAGMA journal_mode = delete")
    with EventLog(path) as opened:
        assert opened.append("own") == 3
        yield opened


def replace(path: str, events: int) -> None:
    new = ledgers.build(Path(path + ".new"), events)
    ledgers.execute(new, "PRAGMA journal_mode = delete")
    os.replace(new, path)


def test_the_append_is_in_the_new_file(log: EventLog) -> None:
    for events in (7, 1):
        replace(log.path, events)
        assert log.append("own") == events + 1
        assert len(ledgers.raw_rows(log.path)) == events + 1
    assert log.verify_chain().ok


def test_nothing_is_written_beside_the_new_file(log: EventLog) -> None:
    """In WAL mode the next commit to the old file would go to the `-wal` that is beside the new one."""
    ledgers.execute(log.path, "PRAGMA journal_mode = wal")
    assert [log.append("own"), log.append("own")] == [4, 5]
    ledgers.execute(log.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    os.link(log.path, log.path + ".old")
    replace(log.path, 7)
    assert log.append("own") == 8
    assert log.verify_chain().ok
    os.rename(log.path + ".old", log.path + ".alone")
    assert len(ledgers.raw_rows(log.path + ".alone")) == 5


def test_an_event_committed_to_the_old_file_is_appended_again(log: EventLog) -> None:
    """The ledger is replaced between the last look at its path and the commit."""
    points: list[str] = []

    def replace_once(point: str) -> None:
        if point == "append.inside" and not points:
            replace(log.path, 7)
        points.append(point)

    crash_points.install(replace_once)
    try:
        assert log.append("own", "twice") == 8
    finally:
        crash_points.install(None)
    assert points == ["append.inside", "append.committed"] * 2
    assert ledgers.raw_rows(log.path)[-1][3] == b"twice"
    assert log.verify_chain().ok


def test_an_event_is_committed_when_its_path_cannot_be_reached_any_more(log: EventLog) -> None:
    directory = os.path.dirname(log.path)

    def hide(point: str) -> None:
        if point == "append.committed":
            os.rename(directory, directory + ".hidden")
            os.symlink(directory, directory)  # A loop.

    crash_points.install(hide)
    try:
        assert log.append("own", "hidden") == 4
    finally:
        crash_points.install(None)
        os.unlink(directory)
        os.rename(directory + ".hidden", directory)
    assert ledgers.raw_rows(log.path)[-1][3] == b"hidden"
    assert log.append("own") == 5
    assert log.verify_chain().ok


def test_the_head_is_that_of_the_new_file(log: EventLog) -> None:
    replace(log.path, 7)
    with pytest.raises(HeadMovedError):
        log.append("own", expected_head=3)
    replace(log.path, 9)
    with pytest.raises(HeadMovedError):
        log.append_many([], expected_head=7)
    replace(log.path, 5)
    assert log.append_many([], expected_head=5) == []
    assert log.append("own", expected_head=5) == 6


def test_the_old_file_may_be_busy(log: EventLog) -> None:
    other = ledgers.connect(log.path)
    other.execute("BEGIN IMMEDIATE")
    replace(log.path, 7)
    began = time.monotonic()
    assert log.append("own") == 8
    assert time.monotonic() - began < log.timeout / 2
    other.execute("ROLLBACK")
    other.close()


def test_the_old_file_may_be_damaged(log: EventLog) -> None:
    ledgers.execute(log.path, "UPDATE events SET content = 'edited' WHERE id = 3")
    replace(log.path, 7)
    assert log.append("own") == 8


def test_the_old_file_may_be_that_of_pmm2(log: EventLog) -> None:
    ledgers.execute(log.path, "CREATE TABLE pmm_writer_lease (x)")
    log._appender.connection.next_lock_check_s = 0.0
    with log._appender.connection.lock:
        log._appender.connection.require_lock()
    replace(log.path, 7)
    assert log.append("own") == 8


def test_a_recovery_is_one_of_the_new_file(log: EventLog) -> None:
    replace(log.path, 7)
    log.recover()
    status = os.stat(log.path)
    assert log._appender.connection.identity == (status.st_dev, status.st_ino)


def test_without_a_file_nothing_is_written(log: EventLog) -> None:
    os.rename(log.path, log.path + ".away")
    with pytest.raises(LedgerNotFoundError):
        log.append("own")
    assert len(ledgers.raw_rows(log.path + ".away")) == 3
    os.rename(log.path + ".away", log.path)
    assert log.append("own") == 4
