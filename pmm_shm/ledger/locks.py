"""Asks the system which locks a process really holds.

SQLite keeps its own table of the locks it took, and that table can be wrong: it survives fork while the locks do not,
and any `close` of the file by other code of the process drops them. `/proc/self/fdinfo` is right: it lists the locks
that this process took through each of its descriptors. (`/proc/locks` lists them too, with those of other processes,
but reading it stops every lock operation of the machine for milliseconds.) On a system without this directory,
`holds_lock` returns None.
"""

from __future__ import annotations

import os

_TABLE = "/proc/locks"
_TABLE_BYTES = 1 << 20
_LOOKS = 2

WAL_DMS_BYTE = 128
"""The byte of the `-shm` file that every connection in WAL mode keeps locked (SQLite's UNIX_SHM_DMS)."""

WAL_WRITE_BYTE, WAL_RECOVER_BYTE = 120, 122
"""The bytes of the `-shm` file that a writer, and whoever mends the index, locks (and a checkpoint, between them)."""

PENDING_BYTE = 0x40000000
"""The first of the bytes of the main file that SQLite locks; a reader locks a range behind it."""

SHARED_LAST_BYTE = PENDING_BYTE + 511
"""The last of those bytes."""


def inode_of(path: str) -> int | None:
    """The inode of a file; None if it does not exist."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def holds_lock(inode: int, first_byte: int, pid: int | None = None) -> bool | None:
    """Whether this process, or the one named, holds a POSIX lock on the file `inode` that reaches `first_byte` or
    beyond.

    Returns None if the system does not tell, or there is no such process. Devices are not compared: some file systems
    report another device here than `stat` does.
    """
    process = "/proc/self" if pid is None else f"/proc/{pid}"
    known = _descriptors.get(inode) if pid is None else None
    # Try the descriptor of last time first, to avoid listing all of them.
    if known is not None and _is_locked_through(known, process, inode, first_byte):
        return True
    try:
        names = os.listdir(f"{process}/fd")
    except OSError:
        return None
    for name in names:
        is_locked = _is_locked_through(name, process, inode, first_byte)
        if is_locked is None:
            return None
        if is_locked:
            if pid is None:
                _descriptors[inode] = name
            return True
    return False


_descriptors: dict[int, str] = {}
"""Inode to the descriptor of this process that last showed a lock on it; a guess, one per ledger."""


def _is_locked_through(name: str, process: str, inode: int, first_byte: int) -> bool | None:
    """Whether a process holds such a lock through this descriptor; None if the system does not tell."""
    try:
        found = os.fstat(int(name)) if process == "/proc/self" else os.stat(f"{process}/fd/{name}")
    except OSError:  # Closed meanwhile, by another thread or by `listdir` itself.
        return False
    if found.st_ino != inode:
        return False
    try:
        table = b"".join(_pieces(f"{process}/fdinfo/{name}"))
    except FileNotFoundError:
        return False
    except OSError:
        return None
    locks = [line for line in table.splitlines() if line.startswith(b"lock:")]
    return any(_is_lock(line, first_byte) for line in locks)


def pids_with_lock(inode: int, first_byte: int) -> set[int]:
    """The processes that hold a POSIX lock on the file `inode` that reaches `first_byte` or beyond.

    Empty if the system does not tell. Reads `/proc/locks`: for opening a ledger, not for reading from it. A long table
    comes in pieces, and its lines shift while other processes lock and unlock: on a busy machine, one reading may miss
    a lock that is held all the time. So a long table is read twice; `holds_lock` finds those that are still missing.
    """
    pids = set()
    for _ in range(_LOOKS):
        lines, is_whole = _table()
        pids |= _pids_in(lines, inode, first_byte)
        if is_whole:
            break
    return pids


def writers_of(inode: int, first_byte: int, last_byte: int) -> set[int]:
    """The processes that hold an exclusive POSIX lock on one of these bytes of the file `inode`; otherwise as
    `pids_with_lock`.
    """
    return _pids_in(_table()[0], inode, first_byte, last_byte)


def _table() -> tuple[list[bytes], bool]:
    """The lines of the system's table of locks, and whether they are of one moment."""
    try:
        pieces = _pieces(_TABLE)
    except OSError:
        return [], True
    return b"".join(pieces).splitlines(), len(pieces) <= 1


def _pieces(path: str) -> list[bytes]:
    """A file of the system, in the pieces in which it comes; at half the cost of a file object."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(descriptor, _TABLE_BYTES):
            pieces.append(piece)
    finally:
        os.close(descriptor)
    return pieces


def _pids_in(lines: list[bytes], inode: int, first_byte: int, last_byte: int | None = None) -> set[int]:
    # "1: POSIX  ADVISORY  READ 1234 fe:00:567 128 128"; a waiting lock has "->" in the second place.
    pids = set()
    for line in lines:
        fields = line.split()
        if len(fields) < 8 or fields[1] != b"POSIX" or not fields[4].isdigit():
            continue
        is_meant = last_byte is None or (fields[3] == b"WRITE" and int(fields[6]) <= last_byte)
        if is_meant and int(fields[5].rpartition(b":")[2]) == inode and _reaches(fields[7], first_byte):
            pids.add(int(fields[4]))
    return pids


def _is_lock(line: bytes, first_byte: int) -> bool:
    # "lock:	1: POSIX  ADVISORY  READ 1234 fe:00:567 128 128"
    fields = line.split()
    return len(fields) >= 9 and fields[0] == b"lock:" and fields[2] == b"POSIX" and _reaches(fields[8], first_byte)


def _reaches(last_byte: bytes, first_byte: int) -> bool:
    """Whether a lock that ends there covers something at or after `first_byte`.

    Its first byte tells nothing: the system merges a process's neighbouring locks into one.
    """
    return last_byte == b"EOF" or int(last_byte) >= first_byte
