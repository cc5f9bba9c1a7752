"""A host's audit hook (`sys.addaudithook`) may refuse any event of Python: whatever it refuses, an append is whole.

The hooks stay for the life of a process, so each test has one of its own.
"""

from __future__ import annotations

import pytest

from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.daemons import run_python

_REFUSING_ONE = """
import sqlite3, sys
from pmm_shm import limits
from pmm_shm.ledger.eventlog import EventLog

path, is_first = sys.argv[1], sys.argv[2] == "first"
limits.TRUST_PERIOD_S = 0.0  # Each append proves the lock, as one after a while does.
left = None


def refuse_one(event, arguments):
    global left
    if left is not None:
        left -= 1
        if left < 0:
            left = None
            raise RuntimeError(f"refused: {event}")


def count():
    other = sqlite3.connect(path, timeout=0.0, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # Nobody has kept the lock.
    found = other.execute("SELECT count(*) FROM events").fetchone()[0]
    other.execute("ROLLBACK")
    other.close()
    return found


sys.addaudithook(refuse_one)
refused = 0
while True:
    with EventLog(path) as log:
        if not is_first:
            log.append("own", "before")
        before, left = count(), refused
        try:
            log.append("own", f"at event {refused}")
            was_refused, written = left is None, 1
        except Exception as error:
            was_refused, written = left is None, 0
            assert was_refused, error
        left = None
        assert count() == before + written, refused
        log.append("own", "after")
        assert log.verify_chain().ok
    if not was_refused:
        break
    refused += 1
print(refused)
"""

_REFUSING_SOCKETS = """
import sys
from pmm_shm import limits
from pmm_shm_client import connect


def refuse_sockets(event, arguments):
    if event.startswith("socket."):
        refused.append(event)
        raise RuntimeError(event)


refused = []
sys.addaudithook(refuse_sockets)
limits.REPORT_EVERY_S = 0.0
with connect(sys.argv[1]) as cache:
    for number in range(3):
        cache.append("tick")
        assert cache.metrics().as_of == cache.history().as_of == number + 1
print(len(refused))
"""


@pytest.mark.parametrize("which", ["first", "next"])
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_an_append_that_raises_has_written_nothing(ledger: str, journal: str, which: str) -> None:
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    done = run_python(_REFUSING_ONE, ledger, which)
    assert done.returncode == 0, done.stderr
    # In WAL mode, the locks are proved by files of `/proc`, which the hook sees.
    assert int(done.stdout) >= (2 if which == "first" or journal == "wal" else 0)


def test_reads_do_not_need_to_report(ledger: str, start_daemon: StartDaemon) -> None:
    start_daemon(ledger)
    done = run_python(_REFUSING_SOCKETS, ledger)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
