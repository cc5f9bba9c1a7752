"""LMDB's files, read without LMDB: the size of the map, how much of it is used, and the readers.

LMDB itself registers in the table of readers as soon as it opens an environment, waits there for a process that was
stopped at the wrong moment, and makes the table anew where nobody has it open. This writes nothing, and waits for
nobody. The layout is that of LMDB 0.9 on 64-bit Linux; of any other, nothing is said.

Invariant: never opens the table of readers of an environment that this process has open, whose locks that would drop.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path
from typing import NamedTuple

from pmm_shm.instance.paths import DATA_FILE, LOCK_TABLE_FILE
from pmm_shm.store import environment

_MAGIC = 0xBEEFC0DE
_META = struct.Struct("=16xI4x8xQI92xQQ")
"""Of a meta page: magic, map size, page size, last page, transaction id."""
_READER = struct.Struct("=QI52x")
"""Transaction id and pid."""
_LINE_BYTES = 64
_MUTEX_BYTES = {"x86_64": 40, "aarch64": 48}
_NO_TRANSACTION = (1 << 64) - 1


class Slot(NamedTuple):
    """A reader slot that a process has taken; `transaction_id` None where it reads nothing now."""

    pid: int
    transaction_id: int | None


class Sizes(NamedTuple):
    """Of a store, as of its newest commit."""

    map_bytes: int
    used_bytes: int
    transaction_id: int


class ReaderTable(NamedTuple):
    """LMDB's table of readers."""

    slots_max: int
    slots: tuple[Slot, ...]


def sizes_of(directory: Path) -> Sizes | None:
    """The content of the newest meta page; None if there is none."""
    try:
        with open(directory / DATA_FILE, "rb") as file:
            first = file.read(_META.size)
            if len(first) < _META.size:
                return None
            file.seek(_META.unpack(first)[2])
            pages = (first, file.read(_META.size))
    except (OSError, ValueError):
        return None
    metas = [_META.unpack(page) for page in pages if len(page) == _META.size]
    magic, map_bytes, page_bytes, last_page, transaction_id = max(metas, key=lambda meta: int(meta[-1]))
    return Sizes(map_bytes, (last_page + 1) * page_bytes, transaction_id) if magic == _MAGIC else None


def reader_table(directory: Path) -> ReaderTable | None:
    """The reader table; None if it is missing or unreadable for this process.

    Raises:
        PermissionError: this user may not read it.
    """
    mutex_bytes = _MUTEX_BYTES.get(platform.machine())
    if mutex_bytes is None or environment.is_open_here(directory):
        return None
    try:
        data = (directory / LOCK_TABLE_FILE).read_bytes()
    except PermissionError:
        raise
    except OSError:
        return None
    # Magic, format, a mutex, the newest transaction, the number of slots that were ever taken; then another mutex.
    header = struct.Struct(f"=II{mutex_bytes}xQI")
    begin = -(-header.size // _LINE_BYTES) * _LINE_BYTES + _LINE_BYTES
    if len(data) < begin or header.unpack_from(data)[0] != _MAGIC:
        return None
    slots_max = (len(data) - begin) // _READER.size
    used = min(header.unpack_from(data)[3], slots_max)
    found = (_READER.unpack_from(data, begin + number * _READER.size) for number in range(used))
    slots = tuple(Slot(pid, None if txn == _NO_TRANSACTION else txn) for txn, pid in found if pid)
    return ReaderTable(slots_max, slots)
