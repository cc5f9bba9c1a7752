"""New database files: whole or absent, and never in the place of an existing one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pmm_shm.errors import ConfigError, LedgerUnwritableError

SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database, by suffix."""

_NAME_CHARS_MAX = 150


def new_path(path: str | os.PathLike[str]) -> str:
    """The real path of a database that can be made.

    Raises:
        ConfigError: not the path of a file.
        LedgerUnwritableError: the file or one of its side files exists, or its directory cannot be written.
    """
    name = os.fsdecode(path)
    if not name or name == ":memory:" or name.startswith("file:") or "\0" in name or name.endswith("/"):
        raise ConfigError(f"{name!r}: give the path of a file")
    target = os.path.realpath(name)
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

    After an error or a signal's exception neither file exists.

    Raises:
        LedgerUnwritableError: `target` exists by now.
        OSError: the file cannot be synced or renamed.
    """
    parent, name = os.path.split(target)
    temporary = f"{parent}/.{name[:_NAME_CHARS_MAX]}.{os.getpid()}.new"
    try:
        yield temporary
        sync(temporary)
        _rename(temporary, target)
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


def _rename(temporary: str, target: str) -> None:
    try:
        # A link, unlike a rename, never replaces a file that appeared meanwhile.
        os.link(temporary, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:
        # This file system has no hard links: reserve the name, then replace our own empty file.
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise _exists(target) from None
        os.replace(temporary, target)


def _exists(path: str) -> LedgerUnwritableError:
    return LedgerUnwritableError(f"{path}: exists already; remove it or choose another path")
