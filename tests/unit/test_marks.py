"""`mark()`: equal as long as nobody commits."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pmm_shm import errors
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.support import ledgers


@pytest.mark.parametrize("freshness", ["auto", "data_version"])
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_mark_changes_with_each_commit_and_only_then(tmp_path: Any, freshness: Any, journal: str) -> None:
    path = ledgers.build(tmp_path / "ledger.db", journal=journal)
    with connect(path, freshness=freshness) as cache, EventLog(path) as other:
        marks = [cache.mark()]
        for append in (cache.append, other.append, cache.append):
            assert cache.mark() == marks[-1]
            append("user", "hello")
            assert cache.mark() not in marks
            marks.append(cache.mark())
            cache.frame(), cache.events(), cache.newest("user")
            assert cache.mark() == marks[-1]
    with pytest.raises(errors.ClosedError):
        cache.mark()


def test_a_mark_of_a_closed_connection_equals_no_later_one(ledger: str) -> None:
    with connect(ledger) as cache:
        mark = cache.mark()
        cache._reader.connection.close()  # as before a fork
        for _ in range(3):
            assert cache.mark() != mark


def test_a_mark_of_a_replaced_ledger(ledger: str, tmp_path: Any) -> None:
    with connect(ledger) as cache:
        mark = cache.mark()
        other = str(tmp_path / "other.db")
        ledgers.execute(ledger, "VACUUM INTO ?", other)
        ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)")
        os.replace(other, ledger)
        cache._freshness.distrust()
        assert cache.mark() != mark


def test_a_mark_reads_a_map_alone(ledger: str) -> None:
    with connect(ledger) as cache:
        if cache._freshness.header is None:
            pytest.skip("no wal-index mark here")
        mark = cache.mark()
        cache._freshness.trusted_until += 60.0
        with cache._reader.connection.lock:
            cache._reader._is_inside = True  # a full read would be refused
            assert cache.mark() == mark
            cache._reader._is_inside = False
