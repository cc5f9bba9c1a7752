"""New database files: whole or absent, and never in the place of an existing one.

A file is written under a temporary name, with a `flock` on it that ends with its writer. So files that a killed writer
has left can be told from those of a living one, and the next writer of the same name removes them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator

from pmm_shm.errors import ConfigError, LedgerUnwritableError
from pmm_shm.instance.paths import real_path

SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database, by suffix."""

_NAME_BYTES_MAX = 150
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def new_path(path: str | os.PathLike[str], ledger_files: Collection[str] = ()) -> str:
    """The real path of a database that can be made.

    Parameters:
        ledger_files: paths that belong to a ledger, whether they exist or not.

    Raises:
        ConfigError: not the path of a file.
        LedgerUnwritableError: the file or one of its side files exists or belongs to the ledger, or its directory
            cannot be written.
    """
    name = os.fsdecode(path)
    if not name or name == ":memory:" or name.startswith("file:") or "\0" in name or name.endswith("/"):
        raise ConfigError(f"{name!r}: give the path of a file")
    target = real_path(name)
    if target in ledger_files:
        raise LedgerUnwritableError(f"{target}: this is the ledger or one of its own files; choose another path")
    for suffix in ("", *SIDE_FILES):
        # SQLite would replay a journal left by another database into the new one.
        if os.path.lexists(target + suffix):
            raise _exists(target + suffix)
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise LedgerUnwritableError(f"{parent}: no such directory; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise LedgerUnwritableError(f"{parent}: no permission to write; nothing was written")
    return target


@contextlib.contextmanager
def staged(target: str, mode: int = 0o644) -> Iterator[str]:
    """The name of an empty file beside `target` to write to; when the block ends, it is synced and renamed to `target`.

    After an error neither file exists. An exception of a signal handler in the last step may leave the whole `target`.
    What killed writers of the same target have left is removed.

    Parameters:
        mode: of the file, before the process's umask; by default as SQLite makes databases.

    Raises:
        LedgerUnwritableError: `target` exists by now.
        OSError: the file cannot be made, synced or renamed.
    """
    parent, name = os.path.split(target)
    prefix = f".{os.fsdecode(os.fsencode(name)[:_NAME_BYTES_MAX])}."
    _remove_abandoned(parent, prefix)
    # A name that no other writer has: pids repeat where containers share a volume.
    temporary, descriptor = f"{parent}/{prefix}{secrets.token_hex(4)}.new", None
    try:
        descriptor = _make_locked(temporary, mode)
        yield temporary
        sync(temporary)
        try:
            put_in_place(temporary, target)
        except FileExistsError:
            raise _exists(target) from None
        # The file is complete. In a directory that may be written but not read, its name is not synced.
        with contextlib.suppress(PermissionError):
            sync(parent)
    finally:
        _remove(temporary)
        if descriptor is not None:
            os.close(descriptor)


def _make_locked(path: str, mode: int) -> int:
    """A descriptor of a new file, with the lock of its writer."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
        # Not every file system has such locks: there, nobody finds this file abandoned, either.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(path):
            return descriptor
        # Another writer has taken it for an abandoned one, before it was locked.
        os.close(descriptor)


def _remove_abandoned(parent: str, prefix: str) -> None:
    """Remove the temporary files that killed writers of one target have left."""
    left = re.compile(re.escape(prefix) + r"[0-9a-f]{8}\.new")
    with contextlib.suppress(OSError):
        for path in [f"{parent}/{name}" for name in os.listdir(parent) if left.fullmatch(name)]:
            with contextlib.suppress(OSError):
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        return
    if status.st_nlink > 1:
        # It has got its name, under which it may be in use: to open it would drop SQLite's locks.
        os.unlink(path)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # With the lock: a writer that has just made it finds it gone, and makes another.
        _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    for suffix in ("", *SIDE_FILES):
        with contextlib.suppress(OSError):
            os.unlink(path + suffix)


def sync(path: str) -> None:
    """Flush a file or directory to disk. For a database: only while no connection of this process has it open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: str, target: str) -> None:
    """Give a complete file the name `target`; the old name may be left.

    Raises:
        FileExistsError: a file has that name by now.
        OSError: it cannot be renamed.
    """
    try:
        # A link, unlike a rename, never replaces a file that appeared meanwhile.
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # This file system has no hard links: reserve the name, then replace our own empty file.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        try:
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(target)
            raise


def _exists(path: str) -> LedgerUnwritableError:
    return LedgerUnwritableError(f"{path}: exists already; choose another path")
