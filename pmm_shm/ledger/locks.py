"""Asks the system which locks this process really holds.

SQLite keeps its own book of the locks it took, and that book can be wrong: it survives fork while the locks do not, and
any `close` of the file by other code of the process drops them. `/proc/self/fdinfo` is the truth; it lists the locks
that this process took through each of its descriptors. (`/proc/locks` knows them too, and those of other processes,
but reading it stops every lock operation of the machine for milliseconds.) Where there is no such directory, nothing
can be said, and `holds_lock` answers None.
"""

from __future__ import annotations

import os

_DESCRIPTORS = "/proc/self/fd"
_DESCRIPTOR_INFO = "/proc/self/fdinfo"

WAL_DMS_BYTE = 128
"""The byte of the `-shm` file that every connection in WAL mode keeps locked (SQLite's UNIX_SHM_DMS)."""

PENDING_BYTE = 0x40000000
"""The first of the bytes of the main file that SQLite locks; a reader locks a range behind it."""


def holds_lock(inode: int, first_byte: int) -> bool | None:
    """Whether this process holds a POSIX lock on the file `inode` that reaches `first_byte` or beyond.

    Returns None where the system does not tell. Devices are not compared: some file systems report another device
    here than `stat` does.
    """
    try:
        descriptors = os.listdir(_DESCRIPTORS)
    except OSError:
        return None
    for name in descriptors:
        try:
            if os.fstat(int(name)).st_ino != inode:
                continue
        except OSError:  # Closed meanwhile, by another thread or by `listdir` itself.
            continue
        try:
            with open(f"{_DESCRIPTOR_INFO}/{name}", "rb") as table:
                lines = table.read().splitlines()
        except FileNotFoundError:
            continue
        except OSError:
            return None
        if any(_is_lock(line, first_byte) for line in lines):
            return True
    return False


def pids_with_lock(inode: int, first_byte: int) -> set[int]:
    """The processes that hold a POSIX lock on the file `inode` that reaches `first_byte` or beyond.

    Empty where the system does not tell. Reads `/proc/locks`: for opening a ledger, not for reading from it.
    """
    try:
        with open("/proc/locks", "rb") as table:
            lines = table.read().splitlines()
    except OSError:
        return set()
    # "1: POSIX  ADVISORY  READ 1234 fe:00:567 128 128"; a waiting lock has "->" in the second place.
    pids = set()
    for line in lines:
        fields = line.split()
        if len(fields) < 8 or fields[1] != b"POSIX" or not fields[4].isdigit():
            continue
        if int(fields[5].rpartition(b":")[2]) == inode and _reaches(fields[7], first_byte):
            pids.add(int(fields[4]))
    return pids


def _is_lock(line: bytes, first_byte: int) -> bool:
    # "lock:	1: POSIX  ADVISORY  READ 1234 fe:00:567 128 128"
    fields = line.split()
    return len(fields) >= 9 and fields[0] == b"lock:" and fields[2] == b"POSIX" and _reaches(fields[8], first_byte)


def _reaches(last_byte: bytes, first_byte: int) -> bool:
    """Whether a lock that ends there covers something at or after `first_byte`.

    Its beginning says nothing: the system merges a process's neighbouring locks into one.
    """
    return last_byte == b"EOF" or int(last_byte) >= first_byte
