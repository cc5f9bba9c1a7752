"""Backups, damaged and whole, and the place of a ledger."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pmm_shm import errors
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from tests.support import ledgers
from tests.support.daemons import run_python
from tests.support.workers import PROMISES, contents, make

JOURNALS = ("wal", "delete")
HEAD = PROMISES + 1


@pytest.fixture
def place(tmp_path: Path) -> tuple[str, str]:
    """(ledger, backup), in directories of their own."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    ledger = make(str(tmp_path / "here" / "ledger.db"), "Old", 300)
    return ledger, make(str(tmp_path / "there" / "backup.db"), "New", 50)


def without_hashes(path: str) -> None:
    os.unlink(path)
    ledgers.build(path, 5, hash_columns=False)


def empty(path: str) -> None:
    os.truncate(path, 0)


def check_refused_for_room(ledger: str, backup: str, keep: bool) -> None:
    before = contents(ledger)
    names = set(os.listdir(os.path.dirname(ledger)))
    with pytest.raises(errors.LedgerUnwritableError, match=r"; nothing was (written|changed)"):
        restore(backup, ledger, keep=keep)
    assert contents(ledger) == before
    assert set(os.listdir(os.path.dirname(ledger))) == names
    with EventLog(ledger) as log:
        assert log.verify_chain().ok
        # Nothing in the way of going on.
        assert log.append("user", "still here") == len(before) + 1


def without_table(path: str) -> None:
    ledgers.execute(path, "DROP TABLE events")


def dead_writer(path: str) -> None:
    """A writer died within a transaction and left its journal."""
    ledgers.execute(path, "PRAGMA journal_mode = DELETE")
    code = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 2")
connection.execute("BEGIN")
connection.execute("UPDATE events SET content = content || 'x'")
os._exit(0)
"""
    assert run_python(code, path).returncode == 0
    assert os.stat(path + "-journal").st_size


AS_NOBODY = """
import os, pwd, sys
from pmm_shm.errors import PmmShmError
from pmm_shm.ledger.restore import restore
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(pwd.getpwnam("nobody").pw_gid)
    os.setuid(pwd.getpwnam("nobody").pw_uid)
try:
    print(restore(*sys.argv[1:]).events)
except PmmShmError as error:
    print(f"{type(error).__name__}: {error}")
"""
BUSY = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
cursor = connection.execute(sys.argv[2])
cursor.fetchone()
print("ready", flush=True)
sys.stdin.readline()
"""
