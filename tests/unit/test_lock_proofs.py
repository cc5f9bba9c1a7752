"""The proof that SQLite's locks are held, one for all connections of the process; and the wait for those of others."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError, LedgerNotFoundError, LockLostError
from pmm_shm.instance.paths import FileId
from pmm_shm.ledger import connection as connections
from pmm_shm.ledger import sqlite_errors
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.files import ledger_file_id


class Clock:
    """The module's clock, at a time that the test sets."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(connections, "time", made)
    return made


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[FileId]:
    """The files that the system was asked about."""
    asked: list[FileId] = []
    original = connections.holds_lock

    def holds_lock(file: FileId, first_byte: int) -> bool | None:
        asked.append(file)
        return original(file, first_byte)

    monkeypatch.setattr(connections, "holds_lock", holds_lock)
    return asked


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "l.db")
    with EventLog(path) as log:
        log.append("k")
        yield path


def use(connection: Connection) -> None:
    with connection.lock:
        connection.require_lock()


def opened(path: str) -> Connection:
    connection = Connection(path, "ro")
    with connection.lock:
        connection.handle().execute("SELECT count(*) FROM events").fetchall()
    return connection


def test_one_proof_counts_for_all_connections(path: str, clock: Clock, proofs: list[FileId]) -> None:
    first, second = opened(path), opened(path)
    files = [ledger_file_id(path), ledger_file_id(path + "-shm")]
    for turn in range(1, 4):
        for one in (first, second, first, second):
            use(one)
        assert proofs == files * turn
        clock.now_s += limits.TRUST_PERIOD_S
    first.close()
    second.close()


def test_a_proof_of_another_connection_is_no_younger(path: str, clock: Clock) -> None:
    first, second = opened(path), opened(path)
    use(first)
    clock.now_s += 0.7 * limits.TRUST_PERIOD_S
    use(second)
    os.close(os.open(path + "-shm", os.O_RDWR))  # Drops every lock of this process on the file.
    clock.now_s += 0.31 * limits.TRUST_PERIOD_S
    for one in (second, first):
        with pytest.raises(LockLostError):
            use(one)
    first.close()
    second.close()


def test_an_append_proves_the_lock_for_the_read_behind_it(path: str, clock: Clock, proofs: list[FileId]) -> None:
    appending, reading = opened(path), opened(path)
    use(appending)
    clock.now_s += 0.8 * limits.TRUST_PERIOD_S
    use(appending)
    assert len(proofs) == 4
    clock.now_s += 0.3 * limits.TRUST_PERIOD_S
    # Of a read: it takes what is proved, to the last moment.
    assert reading.lock_trusted_until() == pytest.approx(clock.now_s + 0.7 * limits.TRUST_PERIOD_S)
    assert len(proofs) == 4
    appending.close()
    reading.close()


def test_a_lost_lock_of_the_ledger_itself_is_noticed(path: str, clock: Clock) -> None:
    one = opened(path)
    use(one)
    os.close(os.open(path, os.O_RDWR))
    clock.now_s += limits.TRUST_PERIOD_S
    with pytest.raises(LockLostError):
        use(one)
    one.close()


def test_a_proof_ends_with_the_connection(path: str, clock: Clock, proofs: list[FileId]) -> None:
    first, second = opened(path), opened(path)
    use(first)
    first.close()
    proofs.clear()
    use(second)
    assert len(proofs) == 2
    second.close()


def test_sleeps_begin_short_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append holds the lock for a fraction of a millisecond: to sleep for longer at once is the tail of a crowd."""
    sleeps: list[tuple[float, float]] = []
    monkeypatch.setattr(sqlite_errors, "sleep_between", lambda least_s, most_s: sleeps.append((least_s, most_s)))

    def action() -> int:
        if len(sleeps) < 5:
            raise sqlite3.OperationalError("database is locked")
        return 7

    assert sqlite_errors.retry_busy(action, 60.0, "/l.db") == 7
    assert {least_s for least_s, _ in sleeps} == {limits.BUSY_SLEEP_S_MIN}
    longest = [most_s for _, most_s in sleeps]
    assert longest == pytest.approx([0.0003, 0.0006, 0.0012, 0.002, 0.002])


def test_a_busy_ledger_is_waited_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_errors, "sleep_between", lambda *_: None)
    attempts: list[None] = []

    def action() -> int:
        attempts.append(None)
        if len(attempts) < 4:
            raise sqlite3.OperationalError("database is locked")
        return 7

    one = Connection(path, "ro")
    assert one.retry(action) == 7
    one.timeout_s = 0.0
    attempts.clear()
    with pytest.raises(LedgerBusyError):
        one.retry(action)


def test_a_connection_knows_whether_its_file_is_still_at_the_path(path: str) -> None:
    one = Connection(path, "ro")
    assert not one.is_at_path()
    one.handle()
    assert one.is_at_path()
    os.rename(path, path + ".old")
    with pytest.raises(LedgerNotFoundError):
        one.is_at_path()
    shutil.copy(path + ".old", path)
    assert not one.is_at_path()
    one.close()
