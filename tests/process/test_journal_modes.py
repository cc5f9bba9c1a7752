"""The ledger's journal mode, switched by another program: while nobody has it open, and under daemon and clients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import errors, limits
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.daemons import environment, run_python, until

NEVER = ("--verify-every", "0")
INSERT = "INSERT INTO events (ts, kind, content, meta) VALUES ('2026-01-01T00:00:00Z', 'user', ?, '{}')"


def switch(path: str, mode: str) -> str:
    """Ask for a journal mode as another program does; returns the mode there is then, or SQLite's refusal."""
    code = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0.3)
try:
    print(connection.execute("PRAGMA journal_mode = " + sys.argv[2]).fetchall()[0][0])
except sqlite3.OperationalError as error:
    print(error)
"""
    ended = run_python(code, path, mode)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def fill(path: str, count: int) -> int:
    """Append some of each kind; returns the newest id."""
    with EventLog(path) as log:
        for number in range(count):
            log.append("user", f"message {number}")
            log.append("commitment_open", "", {"cid": f"c{number}", "text": f"text {number}"})
            log.append("trait_update", "", {"trait": "o", "delta": 0.01})
        return int(log.read_tail(limit=1)[0]["id"])


def foreign_insert(path: str, content: str) -> int:
    """Append as another program; returns the id."""
    ended = run_python(
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10); "
        "print(c.execute(sys.argv[2], (sys.argv[3],)).lastrowid); c.close()",
        path, INSERT, content,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


@pytest.mark.parametrize(("before", "after"), [("wal", "delete"), ("delete", "wal"), ("wal", "truncate")])
def test_switched_while_nobody_has_it_open(ledger: str, before: str, after: str, start_daemon: StartDaemon) -> None:
    """What was published is continued, without a replay."""
    ledgers.execute(ledger, f"PRAGMA journal_mode = {before}")
    fill(ledger, 10)
    with connect(ledger) as cache:
        start_daemon(ledger, *NEVER).stop()
        expected = everything(cache)
    assert switch(ledger, after) == after
    with connect(ledger) as cache:
        assert everything(cache) == expected == replayed(ledger)
        daemon = start_daemon(ledger, *NEVER)
        head = cache.append("user", "own")
        daemon.wait_published(head)
        head = foreign_insert(ledger, "foreign")
        assert cache.metrics().as_of == head
        daemon.wait_published(head)
        assert everything(cache) == replayed(ledger)
        assert cache._reader.replays == 0
        assert daemon.stats()["rebuilds"] == 0
        assert cache.verify().ok


@pytest.mark.parametrize("user", ["daemon", "client"])
def test_wal_is_not_left_while_somebody_has_it_open(ledger: str, user: str, start_daemon: StartDaemon) -> None:
    """SQLite refuses; daemon and client go on, and their locks are there."""
    head = fill(ledger, 10)
    daemon = start_daemon(ledger, *NEVER) if user == "daemon" else None
    with connect(ledger) as cache:
        if user == "client":
            everything(cache)
        for turn in range(3):
            assert switch(ledger, "delete") == "database is locked"
            assert ledgers.execute(ledger, "PRAGMA journal_mode") == [("wal",)]
            head = foreign_insert(ledger, f"foreign {turn}")
            assert cache.metrics().as_of == head
            assert cache.append("user", f"own {turn}") == head + 1
            assert everything(cache) == replayed(ledger)
            if daemon is not None:
                daemon.wait_published(head + 1)
    if daemon is not None:
        assert daemon.stats()["problem"] is None
        assert daemon.stats()["rebuilds"] == 1


@pytest.mark.parametrize("freshness", ["auto", "data_version"])
def test_switched_to_wal_under_daemon_and_clients(ledger: str, freshness: Any, start_daemon: StartDaemon) -> None:
    """Every commit is read, before and after; the wal-index becomes the mark where it may."""
    ledgers.execute(ledger, "PRAGMA journal_mode = delete")
    fill(ledger, 10)
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger, freshness=freshness) as cache, connect(ledger) as other:
        cache.append("user", "in the journal")
        assert everything(cache) == everything(other) == replayed(ledger)
        assert cache._freshness.header is None
        assert until(lambda: switch(ledger, "wal") == "wal", "nobody reads at this moment")
        for turn in range(10):
            head = foreign_insert(ledger, f"foreign {turn}")
            assert cache.metrics().as_of == other.metrics().as_of == head
            head = cache.append("user", f"own {turn}")
            assert other.recent().messages[-1].content == f"own {turn}"
            assert everything(cache) == everything(other) == replayed(ledger)
            daemon.wait_published(head)
        assert daemon.stats()["problem"] is None
        assert daemon.stats()["rebuilds"] == 1
        assert cache._reader.replays == other._reader.replays == 0
        if freshness == "auto":
            until(lambda: cache.metrics() and cache._freshness.header is not None, "the mark is the wal-index")
        # And not back: it is in use.
        assert switch(ledger, "delete") == "database is locked"


@pytest.fixture
def holder(ledger: str) -> Iterator[subprocess.Popen[str]]:
    """Another program that keeps the ledger open, and what it writes in the WAL."""
    code = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("SELECT max(id) FROM events").fetchall()
print("open", flush=True)
sys.stdin.readline()
print(connection.execute("PRAGMA journal_mode = wal").fetchall()[0][0], flush=True)
connection.execute("PRAGMA wal_autocheckpoint = 0")
connection.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', 'in the wal', '{}')")
print("written", flush=True)
sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, ledger],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_a_replacement_beside_a_wal_that_came_later_is_refused(
    ledger: str, tmp_path: Path, start_daemon: StartDaemon, holder: subprocess.Popen[str]
) -> None:
    """Opened in rollback mode, switched since: whoever opens the new file beside the full WAL would destroy it."""
    ledgers.execute(ledger, "PRAGMA journal_mode = delete")
    head = fill(ledger, 10)
    other = str(tmp_path / "other.db")
    fill(other, 20)
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache:
        everything(cache)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "wal\n"
        assert holder.stdout.readline() == "written\n"
        assert cache.metrics().as_of == head + 1
        daemon.wait_published(head + 1)
        # The next look at the ledger's files.
        until(lambda: cache.metrics() and cache._freshness.header is not None, "the switch is noticed")
        os.replace(other, ledger)
        before = subprocess.run(["sha256sum", ledger, f"{ledger}-wal"], check=True, capture_output=True).stdout
        until(lambda: daemon.stats()["problem"], "the daemon stops following")
        assert f"move {ledger}-wal to another name" in daemon.stats()["problem"]

        def refused() -> bool:
            try:
                cache.metrics()
            except errors.LedgerReplacedError:
                return True
            return False

        until(refused, deadline_s=limits.REPLACEMENT_NOTICED_S)
        with pytest.raises(errors.LedgerReplacedError):
            cache.append("user", "lost")
        assert subprocess.run(["sha256sum", ledger, f"{ledger}-wal"], check=True, capture_output=True).stdout == before
