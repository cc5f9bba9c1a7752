"""What comes in the middle: exceptions within a read or a batch, signal handlers that read, locks that merge.

Whatever it is, the next exact read equals a replay.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_cached.follower import Follower, all_folds
from pmm_cached.rebuild import Rebuild
from pmm_cached.status import Status
from pmm_shm import limits
from pmm_shm.errors import LedgerError
from pmm_shm.instance.paths import Instance
from pmm_shm.store.writer import StoreWriter
from pmm_shm_client import EventLog, connect
from tests.support.golden_cases import make_ledger
from tests.support.interruptions import equals_replay


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = tmp_path / "pmm.db"
    make_ledger(ledger)
    return ledger


def test_an_error_in_the_middle_of_a_batch_folds_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real lock between the follower's two reads of one batch."""
    # On a busy machine the first read alone may take the time of a batch.
    monkeypatch.setattr("pmm_cached.follower._BATCH_S", 60.0)
    path = tmp_path / "pmm.db"
    make_ledger(path, "delete")
    instance = Instance.of(path)
    instance.directory.mkdir()
    writer, status, folds = StoreWriter(instance), Status(str(path)), all_folds()
    follower = Follower(str(path), writer, folds, status)
    follower.connection.timeout_s = 0.1
    rebuild = Rebuild(str(path), writer, folds, lambda: None)
    rebuild.run()
    rebuild.finish(follower)
    count = limits.TAIL_ROWS_MAX + 100
    with EventLog(path) as log:
        log.append_many([("commitment_close", "", {})] * count)
    blocker = sqlite3.connect(path, isolation_level=None)
    read: Callable[..., Any] = follower._cursor._reader.read
    calls = []

    def read_and_be_blocked(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            blocker.execute("BEGIN EXCLUSIVE")
        return read(*arguments, **options)

    follower._cursor._reader.read = read_and_be_blocked  # type: ignore[method-assign]
    with pytest.raises(LedgerError):
        follower.step()
    blocker.execute("COMMIT")
    blocker.close()
    while not follower.step().is_complete:
        pass
    follower.close()
    writer.close()
    with connect(path) as cache:
        assert cache.verify()
        assert cache.metrics(consistency="snapshot").as_of == count
        assert equals_replay(cache)


def test_snapshot_reads_do_not_touch_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path, "delete")
    from tests.support.fork_daemon import ForkedDaemon

    with ForkedDaemon(path), connect(path, consistency="snapshot", timeout=0.2) as cache, EventLog(path) as log:
        cache.wait_for(log.append("autonomy_tick"))
        assert cache.metrics().as_of == 1
        cache.wait_for(log.append("autonomy_tick"))
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        try:
            assert cache.metrics().as_of == 2
        finally:
            blocker.close()
