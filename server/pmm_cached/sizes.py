"""What the store, the ledger and this process take, in bytes; looked up by name, so that no file is opened."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from pmm_shm.instance.paths import Instance
from pmm_shm.store.writer import StoreWriter

_BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the file system's blocks are."""


def sizes(writer: StoreWriter, instance: Instance) -> dict[str, int]:
    """Bytes by what takes them; 0 for what is not there."""
    return {
        "store_used_bytes": writer.used_bytes(),
        "store_disk_bytes": _disk(instance.data_file),
        "ledger_bytes": _length(instance.ledger),
        "wal_bytes": _length(instance.ledger + "-wal"),
        "resident_bytes": _resident(),
    }


def _disk(path: Path) -> int:
    try:
        return os.stat(path).st_blocks * _BLOCK_BYTES
    except OSError:
        return 0


def _length(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
