"""New database files: whole or absent, and never in the place of an existing one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
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
def staged(target: str) -> Iterator[str]:
    """A name beside `target` to write to; when the block ends, the file is synced and gets the name `target`.

    After an error neither file exists. An exception of a signal handler in the last step may leave the whole `target`.

    Raises:
        LedgerUnwritableError: `target` exists by now.
        OSError: the file cannot be synced or renamed.
    """
    parent, name = os.path.split(target)
    short = os.fsdecode(os.fsencode(name)[:_NAME_BYTES_MAX])
    # A name that no other writer has: pids repeat where containers share a volume.
    temporary = f"{parent}/.{short}.{secrets.token_hex(4)}.new"
    try:
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
        for suffix in ("", *SIDE_FILES):
            with contextlib.suppress(OSError):
                os.unlink(temporary + suffix)


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
