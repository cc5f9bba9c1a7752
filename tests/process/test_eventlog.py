"""`EventLog` through its public interface; concurrency with real processes."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from pmm_shm import errors, limits
from pmm_shm.ledger.eventlog import EventLog
from tests.support import ledgers
from tests.support.eventlog import INDEXES, indexes
from tests.support.waiting import at_most

JOURNALS = ("wal", "delete")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


# Creation and opening.


def test_an_unwritable_directory() -> None:
    # As root every directory is writable: the process becomes somebody else once it has loaded its modules. Not below
    # `tmp_path`, which nobody else may enter.
    code = """
import os, pwd
from pmm_shm.errors import LedgerUnwritableError
from pmm_shm.ledger.eventlog import EventLog
if os.geteuid() == 0:
    os.setuid(pwd.getpwnam("nobody").pw_uid)
for name in sys.argv[1:]:
    try:
        EventLog(name).append("k")
    except LedgerUnwritableError as error:
        print("refused", str(error).count("\\n"))
"""
    with tempfile.TemporaryDirectory() as directory:
        existing = ledgers.build(Path(directory, "there.db"), 2, journal="delete")
        os.chmod(existing, 0o444)
        os.chmod(directory, 0o555)
        process = ledgers.python(code, str(Path(directory, "new.db")), existing)
        answer = process.communicate()[0]
        os.chmod(directory, 0o755)
    assert answer.split("\n") == ["refused 0", "refused 0", ""]


@pytest.mark.parametrize("journal", JOURNALS)
def test_opening_and_reading_change_nothing_and_the_first_append_makes_indexes(path: str, journal: str) -> None:
    ledgers.build(path, 4, journal=journal)
    before, content = os.stat(path), ledgers.read_bytes(path)
    with EventLog(path) as log:
        log.read_all(), log.read_tail(limit=2), log.query(kind="note"), log.verify_chain()
        log.read_after_ts(after_ts="2020-01-01")
        assert ledgers.read_bytes(path) == content
        assert os.stat(path).st_mtime_ns == before.st_mtime_ns
        log.append("k")
    assert indexes(path) == INDEXES
    assert ledgers.execute(path, "PRAGMA journal_mode") == [(journal,)]


def test_several_processes_create_at_once(path: str) -> None:
    code = """
from pmm_shm.ledger.eventlog import EventLog
print("ready", flush=True)
sys.stdin.readline()
with EventLog(sys.argv[1]) as log:
    print(log.append("k"))
"""
    processes = [ledgers.python(code, path) for _ in range(6)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(int(process.communicate()[0]) for process in processes) == [1, 2, 3, 4, 5, 6]
    with EventLog(path, create=False) as log:
        assert log.verify_chain().rows_checked == 6


# A busy ledger.


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_busy_ledger_is_given_up_at_the_deadline_with_nothing_written(path: str, journal: str) -> None:
    ledgers.build(path, 2, journal=journal)
    with EventLog(path, timeout=0.3) as log:
        log.append("k")
        holder = ledgers.connect(path)
        holder.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with at_most(0.3), pytest.raises(errors.LedgerBusyError):
            log.append("k")
        assert time.monotonic() - began > 0.25
        assert len(log.read_all()) == 3
        holder.execute("ROLLBACK")
        holder.close()
        assert log.append("k") == 4
        assert log.verify_chain().ok


def test_a_commit_that_a_reader_blocks_is_given_up_too(path: str) -> None:
    ledgers.build(path, 2, journal="delete")
    with EventLog(path, timeout=0.3) as log:
        reader = ledgers.connect(path)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM events").fetchall()
        with pytest.raises(errors.LedgerBusyError):
            log.append("k")
        reader.close()
        assert log.append("k") == 3


def test_a_busy_thread_counts_as_waiting(path: str) -> None:
    """Threads wait together: one after the other, they would take twelve seconds."""
    with EventLog(path, timeout=0.3) as log:
        log.append("k")
        holder = ledgers.connect(path)
        holder.execute("BEGIN IMMEDIATE")
        refused: list[errors.LedgerBusyError] = []

        def wait() -> None:
            try:
                log.append("k")
            except errors.LedgerBusyError as error:
                refused.append(error)

        threads = [threading.Thread(target=wait) for _ in range(40)]
        with at_most(0.3):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        holder.close()
        assert len(refused) == 40


# Several writers.


WRITER = """
import time
from pmm_shm.ledger.eventlog import EventLog
log = EventLog(sys.argv[1])
log.read_tail(limit=1)
print("ready", flush=True)
sys.stdin.readline()
count, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    log.append("k", "from " + sys.argv[3], {"n": count})
    count += 1
print(count)
"""


@pytest.mark.parametrize("journal", JOURNALS)
def test_four_processes_append_one_linear_chain_and_none_starves(path: str, journal: str) -> None:
    ledgers.build(path, 3, journal=journal)
    writers = [ledgers.python(WRITER, path, "2", str(number)) for number in range(4)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    counts = [int(writer.communicate()[0]) for writer in writers]
    with EventLog(path) as log:
        report = log.verify_chain()
        events = log.read_all()
    assert report.ok
    assert report.rows_checked == len(events) == 3 + sum(counts)
    for number, count in enumerate(counts):
        own = [event["meta"]["n"] for event in events if event["content"] == f"from {number}"]
        assert own == list(range(count))
    # One that starves ends with an error. How even the counts are depends on who else has the processors.
    assert min(counts) > 0


@pytest.mark.parametrize("journal", JOURNALS)
def test_both_sides_of_a_fork_append(path: str, journal: str) -> None:
    ledgers.build(path, 1, journal=journal)
    log = EventLog(path)
    log.append("parent")
    log.read_all()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for _ in range(50):
                log.append("child")
            log.close()
            status = 0
        finally:
            os._exit(status)
    for _ in range(50):
        log.append("parent")
    assert os.waitpid(child, 0)[1] == 0
    log.append("parent")
    report = log.verify_chain()
    assert report.ok
    assert report.rows_checked == 103
    assert len(log.query(kind="child")) == 50
    log.close()


# Closing, replacement, lost locks, dead writers.


def test_a_replacement_beside_the_old_wal_is_refused_and_destroys_nothing(path: str, tmp_path: Path) -> None:
    ledgers.build(path, 2)
    new = ledgers.build(tmp_path / "new.db", 5)
    log = EventLog(path)
    log.append("k")
    log.read_all()
    os.replace(new, path)
    wal, content = ledgers.read_bytes(path + "-wal"), ledgers.read_bytes(path)
    assert wal
    for _ in range(2):
        with pytest.raises(errors.LedgerReplacedError):
            log.append("k")
        with pytest.raises(errors.LedgerReplacedError):
            log.read_all()
    log.close()
    with pytest.raises(errors.LedgerReplacedError):
        log.append("k")
    assert ledgers.read_bytes(path + "-wal") == wal
    assert ledgers.read_bytes(path) == content
    os.remove(path + "-wal")
    os.remove(path + "-shm")
    assert log.append("k") == 6
    log.close()


def test_a_lost_lock_stops_appends_and_reads(path: str) -> None:
    with EventLog(path) as log:
        log.append("k")
        log.read_all()
        os.close(os.open(path + "-shm", os.O_RDWR))  # Drops every lock of this process on the file.
        time.sleep(limits.TRUST_PERIOD_S * 1.1)
        with pytest.raises(errors.LockLostError):
            log.append("k")
        with pytest.raises(errors.LockLostError):
            log.read_all()


CRASH = """
import os, signal, sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE events SET content = 'lost'")
connection.executemany("INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'k', ?, '{}')", [("x" * 5000,)] * 500)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("first", ["recover", "append", "read_all", "verify_chain"])
def test_a_journal_that_a_dead_writer_left_is_rolled_back(path: str, first: str) -> None:
    ledgers.build(path, 3, journal="delete")
    before = ledgers.raw_rows(path)
    crashed = ledgers.python(CRASH, path)
    assert crashed.wait() == -signal.SIGKILL
    assert crashed.stdin is not None
    assert crashed.stdout is not None
    crashed.stdin.close()
    crashed.stdout.close()
    assert os.path.exists(path + "-journal")
    with EventLog(path) as log:
        getattr(log, first)(*(["k"] if first == "append" else []))
        assert ledgers.raw_rows(path)[:3] == before
        assert log.verify_chain().ok
