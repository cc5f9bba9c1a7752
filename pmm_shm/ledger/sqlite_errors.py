"""Translates SQLite's errors into ours, and waits for a busy ledger."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from pmm_shm import limits
from pmm_shm.errors import (
    LedgerBusyError,
    LedgerError,
    LedgerUnreadableError,
    LedgerUnwritableError,
    NotALedgerError,
)

_T = TypeVar("_T")
_BUSY = ("database is locked", "database table is locked", "database schema is locked", "locking protocol")
_NOT_A_DATABASE = ("file is not a database", "malformed", "unsupported file format")
_NO_ROLLBACK = "attempt to write a readonly database"


class BlankLedgerError(NotALedgerError):
    """A database without tables: not a ledger, but one can be created in it."""


class HotJournalError(LedgerUnreadableError):
    """A writer died within a transaction; a reader may not roll it back, a connection that writes does."""


def retry_busy(action: Callable[[], _T], timeout_s: float, path: str) -> _T:
    """Repeat `action` until the ledger is not busy.

    Short jittered sleeps replace SQLite's busy handler, whose long sleeps starve a writer among busy ones.

    Raises:
        LedgerBusyError: another process held the ledger for `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        if time.monotonic() >= deadline:
            raise LedgerBusyError(f"{path}: busy for {timeout_s:g} s; another process holds the write lock")
        sleep_between(limits.BUSY_SLEEP_S_MIN, limits.BUSY_SLEEP_S_MAX)


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


def translated(error: sqlite3.Error, path: str, *, is_reader: bool) -> LedgerError:
    """Our error for one of SQLite's; `is_reader` says whether the connection only reads."""
    text = str(error)
    if is_busy(error):
        return LedgerBusyError(f"{path}: {text}")
    if any(part in text for part in _NOT_A_DATABASE):
        return NotALedgerError(f"{path}: {text}")
    if text == _NO_ROLLBACK and is_reader:
        if not os.path.exists(path + "-journal") and not _may_make_index(path):
            return no_index(path)
        return HotJournalError(f"{path}: a writer died within a transaction; the next append, or sqlite3, repairs it")
    if is_reader:
        return LedgerUnreadableError(f"{path}: {text}")
    return LedgerUnwritableError(f"{path}: {text}; nothing was written")
