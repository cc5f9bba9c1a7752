"""Asks the system which locks a process really holds.

SQLite keeps its own table of the locks it took, and that table can be wrong: it survives fork while the locks do not,
and any `close` of the file by other code of the process drops them. `/proc/self/fdinfo` is right: it lists the locks
that this process took through each of its descriptors. (`/proc/locks` lists them too, with those of other processes,
but reading it stops every lock operation of the machine for milliseconds.) On a system without this directory,
`holds_lock` returns None.
"""

from __future__ import annotations

import os

from pmm_shm.instance.paths import FileId

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


def holds_lock(file: FileId, first_byte: int, pid: int | None = None) -> bool | None:
    """Whether this process, or the one named, holds a POSIX lock on a file that reaches `first_byte` or beyond.

    Returns None if the system does not tell, or there is no such process.
    """
    process = "/proc/self" if pid is None else f"/proc/{pid}"
    known = _descriptors.get(file) if pid is None else None
    # Try the descriptor of last time first, to avoid listing all of them.
    if known is not None and _is_locked_through(known, process, file, first_byte):
        return True
    try:
        names = os.listdir(f"{process}/fd")
    except OSError:
        return None
    for name in names:
        is_locked = _is_locked_through(name, process, file, first_byte)
        if is_locked is None:
            return None
        if is_locked:
            if pid is None:
                _descriptors[file] = name
            return True
    return False


_descriptors: dict[FileId, str] = {}
"""File to the descriptor of this process that last showed a lock on it; a guess, one per ledger."""


def _is_locked_through(name: str, process: str, file: FileId, first_byte: int) -> bool | None:
    """Whether a process holds such a lock through this descriptor; None if the system does not tell."""
    try:
        found = os.fstat(int(name)) if process == "/proc/self" else os.stat(f"{process}/fd/{name}")
    except OSError:  # Closed meanwhile, by another thread or by `listdir` itself.
        return False
    if (found.st_dev, found.st_ino) != file:
        return False
    try:
        table = b"".join(_pieces(f"{process}/fdinfo/{name}"))
    except FileNotFoundError:
        return False
    except OSError:
        return None
    locks = [line for line in table.splitlines() if line.startswith(b"lock:")]
    return any(_is_lock(line, first_byte) for line in locks)


Holder = tuple[int, bytes]
"""A process, and the device of a file that it has locked, as the system's table of locks spells it."""


def holders_of(inode: int, first_byte: int) -> set[Holder]:
    """Who holds a POSIX lock on a file `inode`, of any device, that reaches `first_byte` or beyond.

    Some file systems report another device in the table than `stat` does: `holds_lock` tells which file it is.

    Empty if the system does not tell. Reads `/proc/locks`: for opening a ledger, not for reading from it. A long table
    comes in pieces, and its lines shift while other processes lock and unlock: on a busy machine, one reading may miss
    a lock that is held all the time. So a long table is read twice; `holds_lock` finds those that are still missing.
    """
    holders = set()
    for _ in range(_LOOKS):
        lines, is_whole = _table()
        holders |= _holders_in(lines, inode, first_byte)
        if is_whole:
            break
    return holders


def pids_with_lock(file: FileId, first_byte: int) -> set[int]:
    """The processes that hold a POSIX lock on a file that reaches `first_byte` or beyond; otherwise as `holders_of`."""
    return _of_file(file, first_byte, holders_of(file[1], first_byte))


def writers_of(file: FileId, first_byte: int, last_byte: int) -> set[int]:
    """The processes that hold an exclusive POSIX lock on one of these bytes of a file; otherwise as `holders_of`."""
    return _of_file(file, first_byte, _holders_in(_table()[0], file[1], first_byte, last_byte))


def _of_file(file: FileId, first_byte: int, holders: set[Holder]) -> set[int]:
    """The processes among them whose lock is on this file, as far as the system tells."""
    return {pid for pid, _ in holders if holds_lock(file, first_byte, pid) is not False}


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


def _holders_in(lines: list[bytes], inode: int, first_byte: int, last_byte: int | None = None) -> set[Holder]:
    # "1: POSIX  ADVISORY  READ 1234 fe:00:567 128 128"; a waiting lock has "->" in the second place.
    holders = set()
    for line in lines:
        fields = line.split()
        if len(fields) < 8 or fields[1] != b"POSIX" or not fields[4].isdigit():
            continue
        is_meant = last_byte is None or (fields[3] == b"WRITE" and int(fields[6]) <= last_byte)
        device, _, number = fields[5].rpartition(b":")
        if is_meant and int(number) == inode and _reaches(fields[7], first_byte):
            holders.add((int(fields[4]), device))
    return holders


def _is_lock(line: bytes, first_byte: int) -> bool:
    # "lock:	1: POSIX  ADVISORY  READ 1234 fe:00:567 128 128"
    fields = line.split()
    return len(fields) >= 9 and fields[0] == b"lock:" and fields[2] == b"POSIX" and _reaches(fields[8], first_byte)


def _reaches(last_byte: bytes, first_byte: int) -> bool:
    """Whether a lock that ends there covers something at or after `first_byte`.

    Its first byte tells nothing: the system merges a process's neighbouring locks into one.
    """
    return last_byte == b"EOF" or int(last_byte) >= first_byte
