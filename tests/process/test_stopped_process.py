"""A process that was stopped at the worst moment: within LMDB's lock on the table of readers.

LMDB takes that lock for a new reader slot, without a time limit. Reads must stay exact, and commands within their
deadline, as long as it is held.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pmm_shm import limits
from pmm_shm.store.environment import HeldTableError, close, open_reader
from pmm_shm.store.making import open_writer
from pmm_shm_client import connect
from tests.support.daemons import run_daemon
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import make_ledger
from tests.support.polling import until
from tests.support.readers import table_of_readers_held
from tests.support.search_oracle import tables
from tests.support.waiting import at_most


def test_first_reads_are_exact_while_the_table_is_held(tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path), connect(path) as other:
        event_id = other.append("reflection", "my name is Echo, and this is my identity")
        other.wait_for(event_id)
        with table_of_readers_held(path), connect(path) as cache, at_most(2.0):
            assert cache.metrics() == other.metrics()
            assert cache.append("autonomy_tick") == cache.metrics().as_of
            for _ in range(20):
                cache.frame()
        with connect(path) as cache:
            until(lambda: cache.metrics(consistency="snapshot").as_of == event_id + 1, "the snapshot")


def test_a_process_that_has_read_goes_on_with_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path), connect(path) as cache:
        cache.wait_for(cache.append("autonomy_tick"))
        before = cache.metrics(consistency="snapshot")
        with table_of_readers_held(path):
            assert cache.metrics(consistency="snapshot") == before
            newest = cache.append("autonomy_tick")
            until(lambda: cache.metrics(consistency="snapshot").as_of == newest, "the daemon to publish")
            assert cache.stats()["daemon"] is not None


def test_a_daemon_takes_its_slots_before_it_needs_them(tmp_path: Path) -> None:
    """Not one more, whatever its threads do: so none of them ever waits for a stopped process."""
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path) as daemon, connect(path) as cache:

        def slots() -> int:
            store = cache._reader.snapshots.locator.environment
            assert store is not None
            return sum(line.split()[:1] == [str(daemon.pid)] for line in store.env.readers().splitlines())

        until(lambda: tables(path)["tables"], "the first flip")
        cache.metrics(consistency="snapshot")
        assert slots() == limits.DAEMON_READER_SLOTS
        for number in range(20):
            cache.append("user", f"message {number}")
            cache.embed(f"text {number}")
            cache.stats()
        assert cache.verify().ok
        cache.invalidate()
        cache.wait_for(cache.append("autonomy_tick"))
        assert cache.search("message", mode="hybrid").is_complete
        assert slots() == limits.DAEMON_READER_SLOTS


def test_as_many_reads_as_the_daemon_has_slots_need_nobody(tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    environment = open_writer(Path(f"{path}-cache"))
    try:
        with table_of_readers_held(path):
            kept = [environment.begin(buffers=number % 2 == 0) for number in range(limits.DAEMON_READER_SLOTS)]
            with pytest.raises(HeldTableError):
                environment.begin()
            for transaction in kept:
                environment.end(transaction)
    finally:
        close(environment)


def test_a_daemon_that_finds_the_slots_of_killed_ones_clears_them(tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    pids = []
    for _ in range(2):
        daemon = ForkedDaemon(path)
        pids.append(daemon.pid)
        daemon.kill()
    with ForkedDaemon(path) as daemon, connect(path) as cache:
        until(lambda: tables(path)["tables"], "the first flip")
        cache.metrics(consistency="snapshot")
        store = cache._reader.snapshots.locator.environment
        assert store is not None
        found = {line.split()[0] for line in store.env.readers().splitlines()[1:]}
        assert found == {str(daemon.pid), str(os.getpid())}


def test_a_process_that_opens_the_store_meanwhile_reads_exactly_and_no_thread_of_it_stands(tmp_path: Path) -> None:
    """LMDB would wait within the open, with the lock of the interpreter: no other thread could run."""
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with ForkedDaemon(path) as daemon:
        until(lambda: tables(path)["tables"], "the first flip")
        with table_of_readers_held(path), connect(path) as cache:
            ticks, is_done = 0, threading.Event()

            def tick() -> None:
                nonlocal ticks
                while not is_done.wait(0.01):
                    ticks += 1

            ticker = threading.Thread(target=tick)
            ticker.start()
            with at_most(2.0):
                assert cache.append("autonomy_tick") == cache.metrics().as_of
            is_done.set()
            ticker.join()
            assert ticks > 5
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
                with at_most(2.0), pytest.raises(HeldTableError):
                    environment.get(b"any")
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
