"""Backups, damaged and whole, and the place of a ledger."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pmm_shm import errors
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from tests.support import ledgers
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
