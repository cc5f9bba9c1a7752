"""A process that was stopped at the worst moment: within LMDB's lock on the table of readers.

LMDB takes that lock for a new reader slot, without a time limit. Reads must stay exact, and commands within their
deadline, as long as it is held.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmm_shm_client import connect
from tests.support.fork_daemon import ForkedDaemon, wait_until
from tests.support.golden_cases import make_ledger

# The mutex stands behind two 32-bit numbers at the beginning of lock.mdb (MDB_txbody in LMDB 0.9).
HOLD_THE_TABLE = """
import ctypes, mmap, sys
file = open(sys.argv[1], "r+b")
table = mmap.mmap(file.fileno(), 0)
mutex = ctypes.addressof(ctypes.c_char.from_buffer(table, 8))
assert ctypes.CDLL(None).pthread_mutex_lock(ctypes.c_void_p(mutex)) == 0
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def table_of_readers_held(ledger: Path) -> Iterator[None]:
    command = [sys.executable, "-c", HOLD_THE_TABLE, f"{ledger}-cache/lock.mdb"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.kill()


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
            wait_until(lambda: cache.metrics(consistency="snapshot").as_of == event_id + 1, "the snapshot")


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
            wait_until(lambda: cache.metrics(consistency="snapshot").as_of == newest, "the daemon to publish")
            assert cache.stats()["daemon"] is not None
            assert time.monotonic() - started < 3.0
