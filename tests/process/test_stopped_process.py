"""A process that was stopped at the worst moment: within LMDB's lock on the table of readers.

LMDB takes that lock for a new reader slot, without a time limit. Reads must stay exact, and commands within their
deadline, as long as it is held.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pmm_shm.store.environment import HeldTableError, open_reader
from pmm_shm_client import connect
from tests.support.daemons import run_daemon
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import make_ledger
from tests.support.polling import until
from tests.support.readers import table_of_readers_held
from tests.support.search_oracle import tables


def test_first_reads_are_exact_while_the_table_is_held(tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path), connect(path) as other:
        event_id = other.append("reflection", "my name is Echo, and this is my identity")
        other.wait_for(event_id)
        with table_of_readers_held(path), connect(path) as cache:
            started = time.monotonic()
            assert cache.metrics() == other.metrics()
            assert cache.append("autonomy_tick") == cache.metrics().as_of
            for _ in range(20):
                cache.frame()
            assert time.monotonic() - started < 2.0
        with connect(path) as cache:
            until(lambda: cache.metrics(consistency="snapshot").as_of == event_id + 1, "the snapshot")


def test_a_process_that_has_read_goes_on_with_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path), connect(path) as cache:
        cache.wait_for(cache.append("autonomy_tick"))
        before = cache.metrics(consistency="snapshot")
        with table_of_readers_held(path):
            started = time.monotonic()
            assert cache.metrics(consistency="snapshot") == before
            newest = cache.append("autonomy_tick")
            until(lambda: cache.metrics(consistency="snapshot").as_of == newest, "the daemon to publish")
            assert cache.stats()["daemon"] is not None
            assert time.monotonic() - started < 3.0


def test_a_process_that_opens_the_store_meanwhile_reads_exactly_and_no_thread_of_it_stands(tmp_path: Path) -> None:
    """LMDB would wait within the open, with the lock of the interpreter: no other thread could run."""
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path) as daemon:
        until(lambda: tables(path)["tables"], "the first flip")
        with table_of_readers_held(path), connect(path) as cache:
            started, ticks, is_done = time.monotonic(), [0.0], threading.Event()

            def tick() -> None:
                while not is_done.wait(0.01):
                    ticks.append(time.monotonic())

            ticker = threading.Thread(target=tick)
            ticker.start()
            assert cache.append("autonomy_tick") == cache.metrics().as_of
            is_done.set()
            ticker.join()
            assert time.monotonic() - started < 2.0
            assert len(ticks) > 5
            # Nor does a daemon that starts wait for ever, and the store is not to blame.
            daemon.kill()
            ended = run_daemon(str(path))
            assert ended.returncode == 1
            assert "holds the lock of the reader table" in ended.stderr
        with ForkedDaemon(path), connect(path) as cache:
            assert cache.stats()["daemon"]["rebuilds"] == 0


def test_a_transaction_that_has_ended_keeps_its_slot_as_long_as_somebody_has_it(tmp_path: Path) -> None:
    """Another read then needs a slot of its own, and does not wait for ever for the lock that guards these."""
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path):
        until(lambda: tables(path)["tables"], "the first flip")
        environment = open_reader(Path(f"{path}-cache"))
        assert environment is not None
        try:
            kept = [environment.begin()]
            environment.end(kept[0])
            with table_of_readers_held(path):
                started = time.monotonic()
                with pytest.raises(HeldTableError):
                    environment.get(b"any")
                assert time.monotonic() - started < 2.0
                kept.clear()
                assert environment.get(b"any") is None
        finally:
            environment.close()


def test_a_lock_that_a_power_loss_has_left_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path) as daemon:
        until(lambda: tables(path)["tables"], "the first flip")
        daemon.stop()
    with open(f"{path}-cache/lock.mdb", "r+b") as table:
        table.seek(8)
        # No thread has such a number.
        table.write(((1 << 22) + 1).to_bytes(4, "little"))
    with connect(path) as cache:
        assert cache.metrics(consistency="snapshot") == cache.metrics()
    with ForkedDaemon(path), connect(path) as cache:
        assert cache.stats()["daemon"]["rebuilds"] == 0
