"""An exception out of a signal handler behind any call of an append or a read: no lock is left, nothing old is read."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lmdb
import pytest

from pmm_shm import limits
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.support.answers import everything, replayed
from tests.support.publishing import Publisher, foreign
from tests.support.striking import strikes

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info < (3, 11), reason="traces each step of CPython"
)


def test_an_append_leaves_no_lock(ledger: str) -> None:
    with EventLog(ledger, timeout=0.2) as log, ThreadPoolExecutor(1) as thread:
        log.append("own", "first")
        places = []
        for place in strikes("ledger/append.py", lambda: log.append("own", "struck")):
            places.append(place)
            # Of this process and, in `foreign`, of another connection.
            assert thread.submit(log.append, "own", place).result(), place
            foreign(ledger)
            assert log.append("own", place), place
        assert log.verify_chain().ok
    assert any("_run" in place for place in places)
    assert any("_append" in place for place in places)


@pytest.mark.parametrize("module", ["store/snapshot.py", "store/locator.py", "store/environment.py"])
def test_a_read_leaves_no_lock_and_nothing_old(ledger: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        for place in strikes("store/environment.py", cache.metrics):
            places.append(place)
            foreign(ledger)
            assert thread.submit(cache.metrics).result(timeout=30.0).as_of == len(places), place
    assert any("follow_copy_up" in place for place in places)


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
