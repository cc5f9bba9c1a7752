"""Sizes of the store, the ledger and this process in bytes.

Files are looked up by name, so none is opened. The file with this process's memory stays open, because a daemon must go
on where no file can be opened.
"""

from __future__ import annotations

import os
import resource
from functools import cache

from pmm_shm.instance.paths import Instance
from pmm_shm.store.writer import StoreWriter

_BLOCK_BYTES = 512
"""The unit of `st_blocks`, on every file system."""
_STATM_BYTES_MAX = 256


def sizes(writer: StoreWriter, instance: Instance) -> dict[str, int]:
    """Sizes in bytes by name; 0 for files that do not exist."""
    data, ledger, wal = (_stat(path) for path in (instance.data_file, instance.ledger, instance.ledger + "-wal"))
    return {
        "store_used_bytes": writer.used_bytes(),
        "store_disk_bytes": data.st_blocks * _BLOCK_BYTES if data else 0,
        "ledger_bytes": ledger.st_size if ledger else 0,
        "wal_bytes": wal.st_size if wal else 0,
        "resident_bytes": process_memory()[0],
    }


def process_memory() -> tuple[int, int]:
    """Memory of this process in RAM, in bytes: all of it, and the part that is not backed by files.

    Raises:
        OSError: `/proc` cannot be read.
    """
    resident, shared = map(int, os.pread(_statm(os.getpid()), _STATM_BYTES_MAX, 0).split()[1:3])
    return resident * resource.getpagesize(), (resident - shared) * resource.getpagesize()


@cache
def _statm(pid: int) -> int:
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
