"""The freshness mark: a value that stays the same as long as nobody commits to the ledger.

A changed mark only means "read again": rollbacks, checkpoints and a `VACUUM` may change it too. Two implementations:

- *wal-index*: the first 48 bytes of the `-shm` file, SQLite's documented wal-index header (https://sqlite.org/walformat.html,
  "The WAL-Index File Format"). A commit changes them before COMMIT returns. Read straight from the map, in 0.1 µs.
- *data_version*: `PRAGMA data_version` on a connection that only reads; works in both journal modes, 2 to 4 µs.

Invariant: the descriptor of a `-shm` file is opened once per process and inode, and never closed as long as the file
exists or a connection uses it; closing it would drop SQLite's locks of the whole process.
Invariant: a wal-index mark counts only while this process holds SQLite's lock on that file.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref

from pmm_shm import limits
from pmm_shm.errors import LockLostError
from pmm_shm.instance.paths import FileId
from pmm_shm.ledger.connection import Connection, shm_files_in_use
from pmm_shm.ledger.files import LedgerMoved
from pmm_shm.typed import Literal, NamedTuple

Choice = Literal["auto", "data_version"]
Mark = bytes | tuple[int, int]
WAL_INDEX_HEADER_BYTES = 48
_COMMITS = slice(8, 12)
_MAP_BYTES = 4096
_PROT_READ, _MAP_SHARED = 1, 1
"""Of mmap(2), the same on every Linux: Python's module `mmap` is needed for nothing else."""
_FRAMES = slice(16, 20)
"""Of the header: the number of frames in the WAL."""


class _Mapped(NamedTuple):
    """A mapped `-shm` file: the live header, and the descriptor that must stay open with it."""

    header: ctypes.Array[ctypes.c_char] | None
    descriptor: int


_mapped: dict[FileId, _Mapped] = {}
# Re-entrant: a signal handler may read through another cache while its thread maps a file.
_mapped_lock = threading.RLock()
_libc = ctypes.CDLL(None, use_errno=True)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)


def _map_header(shm_path: str, identity: FileId) -> ctypes.Array[ctypes.c_char] | None:
    """The live header of the `-shm` file with this identity; None where it cannot be mapped.

    `mmap.mmap` is unusable here: it closes a duplicate of the descriptor when it is deleted.
    """
    with _mapped_lock:
        if identity not in _mapped:
            _forget_deleted(identity)
            try:
                descriptor = os.open(shm_path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
            status = os.fstat(descriptor)
            _mapped[status.st_dev, status.st_ino] = _Mapped(_map(descriptor, status.st_size), descriptor)
        found = _mapped.get(identity)
        return None if found is None else found.header


def _map(descriptor: int, size_bytes: int) -> ctypes.Array[ctypes.c_char] | None:
    if size_bytes < _MAP_BYTES:
        return None
    address = _libc.mmap(None, _MAP_BYTES, _PROT_READ, _MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    header = (ctypes.c_char * WAL_INDEX_HEADER_BYTES).from_address(address)
    # A read without a lock may still use it: it is unmapped with its last reference.
    weakref.finalize(header, _libc.munmap, address, _MAP_BYTES).atexit = False
    return header


def _forget_deleted(wanted: FileId) -> None:
    """Close the descriptors of `-shm` files that are deleted and that no connection of this process uses.

    SQLite deletes the file with the ledger's last connection and makes a new one for the next. Nobody can open a
    deleted file, so no lock on it can be dropped.
    """
    in_use = shm_files_in_use()
    for identity, mapped in list(_mapped.items()):
        if identity == wanted or identity in in_use or not _is_deleted(mapped.descriptor):
            continue
        # Once, though a signal handler may do the same in between.
        if _mapped.pop(identity, None) is not None:
            os.close(mapped.descriptor)


def _is_deleted(descriptor: int) -> bool:
    """Whether the file has no name any more; not where a signal handler has closed the descriptor meanwhile."""
    try:
        return os.fstat(descriptor).st_nlink == 0
    except OSError:
        return False


def commit_count(mark: object) -> int | None:
    """The number of commits so far, modulo 2^32, in a wal-index mark; None in another mark.

    It counts within one epoch of a connection that stays open, from an unknown start: compare two of them.
    """
    if not isinstance(mark, bytes) or len(mark) != WAL_INDEX_HEADER_BYTES:
        return None
    return int.from_bytes(mark[_COMMITS], sys.byteorder)


class Freshness:
    """The mark of one read-only connection; call its methods with the connection's lock held.

    Attributes:
        header: the mapped wal-index header, for reads without the lock; None where data_version is the mark.
        trusted_until: the monotonic time until which `header` may be compared without checking the guards again.
    """

    def __init__(self, connection: Connection, choice: Choice = "auto") -> None:
        self._connection = connection
        self._choice = choice
        self._epoch = -1
        self._file = b""
        self.header: ctypes.Array[ctypes.c_char] | None = None
        self.trusted_until = 0.0
        connection.on_close(self._forget)

    def is_trusted(self) -> bool:
        """Whether the guards were checked lately, in this epoch."""
        return time.monotonic() < self.trusted_until and self._epoch == self._connection.epoch

    def take(self) -> Mark:
        """The mark as of now; take it before reading the rows that it stands for.

        Raises:
            LedgerError: the ledger cannot be read, or its lock is gone.
            LedgerMoved: the ledger was replaced.
        """
        # As `is_trusted`.
        if time.monotonic() >= self.trusted_until or self._epoch != self._connection.epoch:
            self._check_guards()
        if self.header is not None:
            return self.header.raw
        handle = self._connection.handle()
        # Fetched to the end: an unfinished statement would pin an old snapshot under a new mark.
        version = self._connection.retry(lambda: handle.execute("PRAGMA data_version").fetchall()[0][0])
        return self._connection.epoch, version

    def shared(self, mark: Mark) -> bytes:
        """A mark in a form that other processes can compare with theirs; empty where they cannot.

        It names the `-shm` file. With frames in the WAL, the header has a checksum over all of them. The header of an
        empty WAL is a constant, and counts for nothing here.
        """
        if type(mark) is not bytes or mark[_FRAMES] == b"\0\0\0\0":
            return b""
        return self._file + mark

    def distrust(self) -> None:
        """Check the guards at the next use: something does not fit, and what is trusted may be old."""
        self.trusted_until = 0.0

    def _check_guards(self) -> None:
        connection = self._connection
        if connection.file is not None and not connection.is_at_path():
            raise LedgerMoved
        connection.close_if_switched()
        connection.handle()
        trusted_until = time.monotonic() + limits.TRUST_PERIOD_S
        if self._epoch != connection.epoch:
            self._begin_epoch()
        else:
            proved_until = connection.lock_trusted_until()
            if proved_until is None:
                connection.close()
                raise LockLostError(
                    f"{connection.path}: SQLite's lock was lost: other code of this process closed the file"
                )
            connection.follow_schema()
            trusted_until = min(trusted_until, proved_until)
        self.trusted_until = trusted_until

    def _begin_epoch(self) -> None:
        connection = self._connection
        self.header = None
        file = connection.shm_id
        if self._choice == "auto" and file is not None:
            self.header = _map_header(connection.path + "-shm", file)
            self._file = b"".join(number.to_bytes(8, "big") for number in file)
        self._epoch = connection.epoch

    def _forget(self) -> None:
        self.header = None
        self.trusted_until = 0.0
        self._epoch = -1
