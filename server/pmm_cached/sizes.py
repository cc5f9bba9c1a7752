"""Sizes of the store, the ledger and this process in bytes. Files are looked up by name, so none is opened."""

from __future__ import annotations

import os

from pmm_cached.memory import process_memory
from pmm_shm.instance.paths import Instance
from pmm_shm.store.writer import StoreWriter

_BLOCK_BYTES = 512
"""The unit of `st_blocks`, on every file system."""


def sizes(writer: StoreWriter, instance: Instance) -> dict[str, int]:
    """Sizes in bytes by name; 0 for files that do not exist."""
    data, ledger, wal = (_stat(path) for path in (instance.data_file, instance.ledger, instance.ledger + "-wal"))
    return {
        "store_used_bytes": writer.used_bytes(),
        "store_disk_bytes": data.st_blocks * _BLOCK_BYTES if data else 0,
        "ledger_bytes": ledger.st_size if ledger else 0,
        "wal_bytes": wal.st_size if wal else 0,
        "resident_bytes": process_memory().resident_bytes,
    }


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
