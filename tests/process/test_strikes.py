"""An exception out of a signal handler behind any call of an append or a read: no lock is left, nothing old is read."""

from __future__ import annotations

import functools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import lmdb
import pytest

from pmm_shm import late, limits
from pmm_shm.folds.recent import RecentFold
from pmm_shm.ledger import append, connection, freshness
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.source import server
from pmm_shm.store import environment, locator, snapshot
from pmm_shm_client import connect, reader
from tests.support.answers import everything, replayed
from tests.support.publishing import Publisher, foreign
from tests.support.striking import Struck, strikes

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info < (3, 11), reason="traces each step of CPython"
)


def test_an_append_leaves_no_lock(ledger: str) -> None:
    with EventLog(ledger, timeout=0.2) as log, ThreadPoolExecutor(1) as thread:
        log.append("own", "first")
        places = []
        for place in strikes(append, lambda: log.append("own", "struck")):
            places.append(place)
            # Of this process and, in `foreign`, of another connection.
            assert thread.submit(log.append, "own", place).result(), place
            foreign(ledger)
            assert log.append("own", place), place
        assert log.verify_chain().ok
    assert any("_run" in place for place in places)
    assert any("_append" in place for place in places)


@pytest.mark.parametrize("module", [snapshot, locator, environment])
def test_a_read_leaves_no_lock_and_nothing_old(
    ledger: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TRUST_PERIOD_S", 0.0)  # Each read looks at the path.
    publisher = Publisher(ledger)
    struck = 0

    def commit() -> None:
        foreign(ledger, "user", f"message {struck}")
        publisher.publish()

    with connect(ledger) as cache, ThreadPoolExecutor(1) as thread:
        cache.metrics()
        commit()
        for place in strikes(module, cache.metrics):
            struck += 1
            assert thread.submit(everything, cache).result(timeout=30.0) == replayed(ledger), place
            commit()
    publisher.close()
    assert struck


@pytest.mark.parametrize("module", [snapshot, environment])
def test_a_read_leaves_no_transaction_open(ledger: str, module: ModuleType) -> None:
    """While somebody keeps the exception, too."""
    foreign(ledger)
    publisher = Publisher(ledger)
    publisher.publish()
    publisher.close()
    with connect(ledger) as cache:
        cache.metrics()
        exceptions = []

        def read() -> None:
            foreign(ledger)
            try:
                cache.metrics()
            except Struck as error:
                exceptions.append(error)
                raise

        for place in strikes(module, read):
            opened = cache._reader.snapshots.locator.environment
            assert opened is not None
            assert [one for one in opened.reader_slots() if one[1] is not None] == [], place
        assert exceptions


# Of a file that was open when it struck.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_comparison_of_the_map_with_its_file_leaves_no_lock(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRUST_PERIOD_S", 0.0)
    publisher = Publisher(ledger)
    publisher.publish()
    publisher.close()
    places = []
    with connect(ledger) as cache, ThreadPoolExecutor(1) as thread:
        assert cache.metrics(consistency="snapshot").as_of == 0
        for place in strikes(environment, cache.metrics):
            places.append(place)
            foreign(ledger)
            assert thread.submit(cache.metrics).result(timeout=30.0).as_of == len(places), place
    assert any("follow_copy_up" in place for place in places)


def test_a_read_model_that_is_dropped_is_not_read(ledger: str) -> None:
    count = 0
    with connect(ledger) as cache:
        everything(cache)
        for place in strikes(reader, cache._reader.begin_anew):
            count += 1
            foreign(ledger, "commitment_open", "", f'{{"cid": "c{count}", "text": "x"}}')
            assert everything(cache) == replayed(ledger), place
    assert count


def test_a_fold_that_is_added_is_in_the_next_frame(ledger: str) -> None:
    count = 0
    with connect(ledger) as cache:
        cache.frame()

        @functools.cache
        def fold(number: int) -> type[RecentFold]:
            return type("Added", (RecentFold,), {"name": f"added{number}"})

        def add() -> None:
            cache.add_fold(fold(count))

        for place in strikes(reader, add):
            # It may have struck before anything was done.
            add()
            # A frame without it would replay the log when asked.
            assert f"added{count}" in cache.frame()._views, place
            count += 1
    assert count


# In a hook, which Python reports and passes over.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fork_closes_all_connections_and_leaves_no_lock(ledger: str) -> None:
    with connect(ledger) as cache, EventLog(ledger) as log, ThreadPoolExecutor(1) as thread:
        connections = [cache._reader.connection, log._appender.connection]
        exit_codes, places = [], []

        def fork() -> None:
            pid = os.fork()
            if not pid:
                os._exit(sum(one._handle is not None for one in connections))
            exit_codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        for place in strikes(connection, fork):
            places.append(place)
            assert exit_codes == [0] * len(places), place
            assert thread.submit(log.append, "own", place).result(timeout=30.0) == 2 * len(places) - 1, place
            assert log.append("own", place) == cache.metrics().as_of == 2 * len(places), place
    for part in ("_before_fork", "close", "_after_fork"):
        assert any(place.startswith(part) for place in places)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fork_leaves_no_lock_on_a_log_in_postgresql() -> None:
    here = server.Server("host=nowhere", None)

    def fork() -> None:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

    count = 0
    with ThreadPoolExecutor(1) as thread:
        for place in strikes(server, fork):
            count += 1
            assert thread.submit(here.lock.acquire, timeout=1.0).result(), place
            thread.submit(here.lock.release).result()
    assert count


def test_a_late_import_leaves_no_lock() -> None:
    def use() -> None:
        with late.late_imports:
            pass

    places = []
    for place in strikes(late, use):
        if place.startswith("__exit__") and not any(known.startswith("__exit__") for known in places):
            # Before its first line, where no code can help; but this thread has the lock, and can give it back.
            late.late_imports.__exit__(None, None, None)
        places.append(place)
        # Not of a pool, whose end would wait for it.
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(30.0)
        assert not thread.is_alive(), place
    assert any("__enter__" in place for place in places)


def test_a_handler_reads_through_another_cache_while_its_thread_opens_the_store(
    ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(ledger)
    publisher = Publisher(ledger)
    publisher.publish()
    publisher.close()
    opener, read = lmdb.open, []

    def interrupted(*arguments: Any, **options: Any) -> lmdb.Environment:
        if not read:
            read.append(0)
            with connect(ledger) as other:
                read.append(other.metrics().as_of)
        return opener(*arguments, **options)

    monkeypatch.setattr(lmdb, "open", interrupted)
    with connect(ledger) as cache:
        assert cache.metrics(consistency="snapshot").as_of == 1
    assert read == [0, 1]


def test_a_handler_reads_through_another_cache_while_its_thread_maps_the_mark(
    ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(ledger)
    mapped, read = freshness._map, []

    def interrupted(descriptor: int, size_bytes: int) -> Any:
        if not read:
            read.append(0)
            with connect(ledger) as other:
                read.append(other.metrics().as_of)
        return mapped(descriptor, size_bytes)

    def read_here() -> None:
        with connect(ledger) as cache:
            read.append(cache.metrics().as_of)

    monkeypatch.setattr(freshness, "_map", interrupted)
    # Not the main thread, which could not report that it waits for itself.
    thread = threading.Thread(target=read_here, daemon=True)
    thread.start()
    thread.join(30.0)
    assert read == [0, 1, 1]


@pytest.mark.parametrize("is_before", [True, False])
def test_a_handler_closes_deleted_maps_while_its_thread_does(
    ledger: str, monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    with EventLog(ledger) as log, connect(ledger) as cache:
        assert log.append("own") == cache.metrics().as_of
    identity = next(one for one in freshness._mapped if os.fstat(freshness._mapped[one].descriptor).st_nlink == 0)
    status_of, struck = os.fstat, 0

    def interrupted(descriptor: int) -> os.stat_result:
        nonlocal struck
        struck += 1
        if struck == 1 and is_before:
            freshness._forget_deleted((0, 0))
        status = status_of(descriptor)
        if struck == 1 and not is_before:
            freshness._forget_deleted((0, 0))
        return status

    monkeypatch.setattr(os, "fstat", interrupted)
    freshness._forget_deleted((0, 0))
    assert struck > 1
    assert identity not in freshness._mapped
