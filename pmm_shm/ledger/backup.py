"""A backup of a ledger that is in use: one consistent copy by SQLite's `VACUUM INTO`.

The copy is one statement on one snapshot, so it ends under any number of appends; SQLite's stepped backup interface
starts again after each. Only reads the ledger. A dead writer's journal is rolled back first, as other commands do.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from dataclasses import dataclass

from pmm_shm import limits
from pmm_shm.errors import LedgerUnwritableError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.new_file import SIDE_FILES, new_path, staged
from pmm_shm.ledger.recovery import open_recovered
from pmm_shm.ledger.sqlite_errors import is_busy
from pmm_shm.resources import shortage, shortage_of

_INTERRUPT_EVERY_S = 0.02
_NO_ROOM = ("database or disk is full", "disk I/O error", "unable to open database")


@dataclass(frozen=True)
class BackedUp:
    """What a backup holds.

    Attributes:
        ledger, backup: the real paths.
        events: how many.
        head_id: the newest event's id; 0 without events.
        size_bytes: of the backup.
    """

    ledger: str
    backup: str
    events: int
    head_id: int
    size_bytes: int


def backup(
    ledger: str | os.PathLike[str], file: str | os.PathLike[str], *, timeout: float = limits.LEDGER_TIMEOUT_S
) -> BackedUp:
    """Copy a ledger to a new file, as of one moment, while others append and read.

    In WAL mode nobody waits. With a rollback journal, commits wait until the copy is complete. Ids, hashes and text are
    kept byte by byte; the copy has mode 0600 and a rollback journal, and is synced to disk.

    Parameters:
        timeout: seconds to wait for a busy ledger.

    Raises:
        ConfigError: `file` is not the path of a file.
        LedgerUnwritableError: `file` exists, or cannot be written.
        LedgerBusyError: the ledger was busy for `timeout` seconds.
        LedgerError: the ledger cannot be read. In all cases `file` is not made.
    """
    source = open_recovered(ledger, timeout)
    try:
        if source.shape is not None:
            # A vacuum may give rows other rowids, which are positions here.
            raise LedgerUnwritableError(
                f"{source.path}: a log of another program, read by the shape {source.shape.name!r}: back it up as that "
                "program says, or by `.backup` of sqlite3; nothing was written"
            )
        target = new_path(file, [source.path + suffix for suffix in ("", *SIDE_FILES)])
        try:
            with staged(target, 0o600) as temporary:
                _copy(source, temporary, target)
                events, head_id = _contents(temporary)
        except (OSError, sqlite3.Error) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            raise LedgerUnwritableError(f"{target}: {text}; nothing was written") from error
        except UnicodeEncodeError as error:
            raise LedgerUnwritableError(
                f"{target}: SQLite copies only to a path that is UTF-8; nothing was written"
            ) from error
        except (MemoryError, RuntimeError) as error:
            lacking = shortage_of(error)
            if lacking is None:
                raise
            raise LedgerUnwritableError(f"{target}: {lacking}; nothing was written") from error
        return BackedUp(source.path, target, events, head_id, os.stat(target).st_size)
    finally:
        source.close()


def _copy(source: Connection, temporary: str, target: str) -> None:
    def attempt() -> None:
        # SQLite writes into an empty file.
        os.truncate(temporary, 0)
        try:
            _execute(handle, "VACUUM INTO ?", temporary)
        except sqlite3.OperationalError as error:
            if not is_busy(error) and str(error).startswith(_NO_ROOM):
                # SQLite opens three more files.
                why = shortage(descriptors=3) or error
                raise LedgerUnwritableError(
                    f"{target}: {source.path} cannot be copied to it: {why}; nothing was written"
                ) from error
            raise

    with source.lock:
        handle = source.handle()
        source.retry(attempt)


def _execute(handle: sqlite3.Connection, sql: str, *parameters: str) -> None:
    """Execute a long statement; an exception of a signal handler ends it within milliseconds.

    Python runs signal handlers only between the main thread's own instructions, so another thread waits for SQLite.
    """
    failures: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            handle.execute(sql, parameters).fetchall()
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="backup")
    thread.start()
    try:
        # Not `join`: interrupted by an exception, it takes the running thread for ended.
        done.wait()
    finally:
        # Again and again: the first call may come before SQLite begins.
        while not done.wait(_INTERRUPT_EVERY_S):
            handle.interrupt()
        thread.join()
    if failures:
        raise failures[0]


def _contents(path: str) -> tuple[int, int]:
    """(events, newest id) of the copy."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as handle:
        events, head_id = handle.execute("SELECT count(*), max(id) FROM events").fetchall()[0]
    return events, head_id or 0
