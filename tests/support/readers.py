"""Readers that hold LMDB's table of readers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
