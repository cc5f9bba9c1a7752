"""Translates SQLite's errors into ours, and waits for a busy ledger."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable

from pmm_shm import limits
from pmm_shm.errors import (
    ConfigError,
    LedgerBusyError,
    LedgerError,
    LedgerUnreadableError,
    LedgerUnwritableError,
    NotALedgerError,
)
from pmm_shm.instance.paths import file_id, folders_above
from pmm_shm.late import late_imports
from pmm_shm.ledger.locks import (
    PENDING_BYTE,
    SHARED_LAST_BYTE,
    WAL_RECOVER_BYTE,
    WAL_WRITE_BYTE,
    pids_with_lock,
    writers_of,
)
from pmm_shm.typed import TypeVar

_T = TypeVar("_T")
_BUSY = ("database is locked", "database table is locked", "database schema is locked", "locking protocol")
_NOT_A_DATABASE = ("file is not a database", "malformed", "unsupported file format")
_NO_ROLLBACK = "attempt to write a readonly database"
_CANNOT_OPEN = "unable to open database file"


class BlankLedgerError(NotALedgerError):
    """A database without tables: not a ledger, but one can be created in it."""


class HotJournalError(LedgerUnreadableError):
    """A writer died within a transaction; a reader may not roll it back, a connection that writes does."""


def check_timeout(timeout: object) -> None:
    """Raise `ConfigError` where this is not a number of seconds."""
    if not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ConfigError(f"timeout: {timeout!r:.80} is not a number of seconds")


def retry_busy(action: Callable[[], _T], timeout_s: float, path: str) -> _T:
    """Repeat `action` until the ledger is not busy.

    Short jittered sleeps replace SQLite's busy handler, whose long sleeps starve a writer among busy ones.

    Raises:
        LedgerBusyError: another process held the ledger for `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    longest_s = limits.BUSY_FIRST_SLEEP_S_MAX
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        if time.monotonic() >= deadline:
            raise LedgerBusyError(busy_for(path, timeout_s, holder_of(path)))
        sleep_between(limits.BUSY_SLEEP_S_MIN, longest_s)
        longest_s = min(2 * longest_s, limits.BUSY_SLEEP_S_MAX)


def busy_for(path: str, timeout_s: float, holder: str) -> str:
    """The words of every message about a ledger that was busy for too long."""
    return f"{path}: busy for {round(timeout_s, 2):g} s, held by {holder}"


def holder_of(path: str) -> str:
    """Who keeps this process's connection out of the ledger, as far as the system tells."""
    ledger, index = file_id(path), file_id(path + "-shm")
    writers = set() if ledger is None else writers_of(ledger, PENDING_BYTE, SHARED_LAST_BYTE)
    if index is not None:
        writers |= writers_of(index, WAL_WRITE_BYTE, WAL_RECOVER_BYTE)
    others = writers - {os.getpid()}
    if not others and index is None and ledger is not None:
        # With a rollback journal, a writer waits for readers, and may have such a lock itself.
        writers |= pids_with_lock(ledger, PENDING_BYTE)
        others = writers - {os.getpid()}
    if others:
        pid = min(others)
        return f"process {pid}{_name_of(pid)}"
    return "another connection of this process" if writers else "another process"


def _name_of(pid: int) -> str:
    try:
        name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        # Of another user, say.
        return ""
    return f" ({name})" if name.isprintable() else ""


def sleep_between(least_s: float, most_s: float) -> None:
    """Sleep for a random time, so that several that wait do not wake together."""
    # Not `random`: readers import it for nothing else, and it needs a new seed after a fork.
    time.sleep(least_s + (most_s - least_s) * int.from_bytes(os.urandom(2), "big") / 0xFFFF)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether SQLite says that another process holds a lock."""
    return str(error).startswith(_BUSY)


def no_index(path: str) -> LedgerUnreadableError:
    """The error of a reader that may not create the `-shm` file of a WAL ledger, while no writer keeps one."""
    return LedgerUnreadableError(
        f"{path}: without permission to write in its directory, a WAL ledger can be read only while a program that has "
        "this permission keeps the ledger open"
    )


def _may_make_index(path: str) -> bool:
    index = path + "-shm"
    return os.access(index if os.path.exists(index) else os.path.dirname(path), os.W_OK)


def why_not_opened(path: str) -> str | None:
    """Why SQLite could not open the ledger or a file beside it, which it does not tell; None if it is not known."""
    with late_imports:
        from pmm_shm.resources import shortage

    # SQLite opens two more files beside the main one.
    found = shortage(descriptors=3)
    if found is not None:
        return found
    for name in (path, path + "-wal", path + "-shm", path + "-journal"):
        try:
            status = os.stat(name)
        except OSError:
            continue
        if not os.access(name, os.R_OK, effective_ids=True):
            return _no_permission(f"read {name}", status)
    folder = os.path.dirname(path)
    if not os.path.lexists(folder):
        return f"no such directory: {folder}; make it first"
    if os.path.isdir(folder) and os.statvfs(folder).f_flag & os.ST_RDONLY:
        return (
            f"{folder} is on a read-only file system, where a WAL ledger can be read only while a program that may "
            "write keeps it open"
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return f"no permission to write in {folder}; share a group"
    return None


def why_not_reached(path: str, error: OSError) -> str:
    """Why a look at the path failed; where a folder above it may not be entered, which one."""
    if isinstance(error, PermissionError):
        for folder in reversed(folders_above(path)):
            if not os.access(folder, os.X_OK, effective_ids=True):
                return _no_permission(f"enter {folder}", os.stat(folder))
    return error.strerror or str(error)


def _no_permission(to_do: str, status: os.stat_result) -> str:
    with late_imports:
        import pwd

    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    mode = f"{status.st_mode & 0o777:04o}"
    return f"no permission to {to_do}, which belongs to user {owner} and has mode {mode}; share a group"


def translated(error: sqlite3.Error, path: str, *, is_reader: bool) -> LedgerError:
    """Our error for one of SQLite's; `is_reader` says whether the connection only reads."""
    text = str(error)
    if is_busy(error):
        return LedgerBusyError(f"{path}: {text}")
    if text == _CANNOT_OPEN:
        text = why_not_opened(path) or text
    if getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHMMAP":
        text += ": its -shm cannot be mapped; WAL mode needs a local file system with shared memory, and room"
    if any(part in text for part in _NOT_A_DATABASE):
        return NotALedgerError(f"{path}: {text}")
    if text == _NO_ROLLBACK and is_reader:
        if not os.path.exists(path + "-journal") and not _may_make_index(path):
            return no_index(path)
        return HotJournalError(f"{path}: a writer died within a transaction; the next append, or sqlite3, repairs it")
    if is_reader:
        return LedgerUnreadableError(f"{path}: {text}")
    return LedgerUnwritableError(f"{path}: {text}; nothing was written")
