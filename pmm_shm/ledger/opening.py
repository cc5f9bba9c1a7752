"""Opens a ledger with SQLite, and proves that the handle is safe to use.

Checks the file at the path, that no process still uses a file which this one replaced, the schema, and that SQLite's
locks are really held. Never opens the ledger's files itself: closing any descriptor of them would drop those locks.
"""

from __future__ import annotations

import os
import sqlite3
import urllib.parse
from collections.abc import Collection
from typing import Literal, NamedTuple

from pmm_shm.errors import (
    LedgerError,
    LedgerReplacedError,
    LedgerUnreadableError,
    LedgerUnwritableError,
    LockLostError,
    NotALedgerError,
)
from pmm_shm.instance.file_systems import network_file_system
from pmm_shm.ledger.files import beside_old_wal, check_file, file_identity, has_wal, old_users
from pmm_shm.ledger.locks import PENDING_BYTE, WAL_DMS_BYTE, holds_lock, inode_of
from pmm_shm.ledger.rows import REQUIRED_COLUMNS
from pmm_shm.ledger.sqlite_errors import BlankLedgerError, no_index, retry_busy, translated, why_not_opened

Mode = Literal["ro", "rw", "rwc", "immutable"]
_URI_MODES: dict[Mode, str] = {"ro": "ro", "rw": "rw", "rwc": "rwc", "immutable": "ro&immutable=1"}


class LedgerFile(NamedTuple):
    """The ledger's files as they were when a handle was opened.

    Attributes:
        identity: (device, inode) of the main file.
        columns: those of the table `events`; none in a database without tables.
        is_wal: whether the journal mode is WAL.
        shm_inode: inode of the `-shm` file; None outside WAL mode.
        wal_inode: inode of the `-wal` file; outside WAL mode, of one that was left there.
    """

    identity: tuple[int, int]
    columns: tuple[str, ...]
    is_wal: bool
    shm_inode: int | None
    wal_inode: int | None


class HeldByOldUsersError(Exception):
    """Processes use, or used, a file that this one replaced, and left their index; `pids` are those that are known."""

    def __init__(self, pids: Collection[int]) -> None:
        self.pids = sorted(pids)

    def final(self, path: str) -> LedgerError:
        """The error to raise if they have not closed it in time."""
        if not self.pids and isinstance(self.__cause__, LedgerError):
            return self.__cause__
        if has_wal(path):
            return beside_old_wal(path)
        holder = f"process {self.pids[0]}" if self.pids else "a process"
        return LedgerReplacedError(
            f"{path}: {holder} still has the file open that this one replaced; stop it, or make it reopen the ledger; "
            "the right way next time: `pmm-shm restore`"
        )


def reads_only(mode: Mode) -> bool:
    """Whether a connection of this mode never writes."""
    return mode in ("ro", "immutable")


def check_path(path: str, mode: Mode) -> None:
    """Check the file at the path and its file system, before SQLite opens it.

    Raises:
        LedgerError: in one of its kinds.
    """
    check_file(path, may_be_made=mode == "rwc")
    name = network_file_system(os.path.dirname(path))
    if name is not None:
        raise _cannot_open(
            path,
            mode,
            f"it is on {name}, a network file system, which shares neither memory nor locks as SQLite needs; "
            "stop all its users, then move it and its -wal to a local disk",
        )


def open_ledger(
    path: str, mode: Mode, timeout_s: float, known_files: Collection[tuple[int, int | None]]
) -> tuple[sqlite3.Connection, LedgerFile]:
    """Open the ledger and inspect it.

    Parameters:
        known_files: (inode, inode of the `-shm` file) of this process's open files: these were inspected before.

    Raises:
        HeldByOldUsersError: a file that this one replaced is in use; its users may close it soon.
        LedgerError: in one of its kinds.
    """
    shm_before = inode_of(path + "-shm")
    is_known = (inode_of(path), shm_before) in known_files
    # Before opening, too: old users may end while we open, and leave us their index.
    users_before = set() if is_known else old_users(path, shm_before)
    if users_before and has_wal(path):
        # Do not even look: they use the -wal, and a lock of ours on the new file would tell them that it is ours.
        raise HeldByOldUsersError(users_before)
    uri = f"file:{urllib.parse.quote(os.fsencode(path))}?mode={_URI_MODES[mode]}"
    try:
        handle = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _cannot_open(path, mode, why_not_opened(path) or error) from error
    try:
        try:
            return handle, _inspect(handle, path, mode, timeout_s)
        except (NotALedgerError, LockLostError) as error:
            is_unreadable = isinstance(error, LockLostError) or isinstance(error.__cause__, sqlite3.Error)
            if shm_before is not None and is_unreadable:
                # Perhaps read through the index of a replaced file; if not, the next attempt fails in the same way.
                raise HeldByOldUsersError(users_before) from error
            raise
        finally:
            if not is_known and shm_before is not None and shm_before == inode_of(path + "-shm"):
                _refuse_old_index(handle, path, users_before | old_users(path, shm_before))
    except BaseException:
        handle.close()
        raise


def _refuse_old_index(handle: sqlite3.Connection, path: str, users: set[int]) -> None:
    """Raise where the `-shm` file belongs to users of a file that this one replaced.

    Its header gives the size of another database, and pages written by it destroy this one. A process that holds the
    lock on the `-shm` file and none on the ledger has the old file open. Our own processes close it at their next
    read; until then, no harm is done where both databases have the same size.
    """
    if users and not _index_fits(handle, path):
        raise HeldByOldUsersError(users)


def _index_fits(handle: sqlite3.Connection, path: str) -> bool:
    """Whether the wal-index that `handle` reads gives the size of the file at the path, and the `-wal` is empty."""
    try:
        pages = handle.execute("PRAGMA page_count").fetchall()[0][0]
        page_bytes = handle.execute("PRAGMA page_size").fetchall()[0][0]
        return bool(not has_wal(path) and pages * page_bytes == os.stat(path).st_size)
    except (sqlite3.Error, OSError):
        return False


def _inspect(handle: sqlite3.Connection, path: str, mode: Mode, timeout_s: float) -> LedgerFile:
    """Read the schema in one transaction, and prove within it that SQLite's locks are held."""

    def inspect() -> LedgerFile:
        handle.execute("BEGIN")
        try:
            columns = [row[1] for row in handle.execute("PRAGMA table_info(events)").fetchall()]
            table_count = handle.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            is_wal = handle.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            shm_inode = inode_of(path + "-shm") if is_wal else None
            file = LedgerFile(file_identity(path), tuple(columns), is_wal, shm_inode, inode_of(path + "-wal"))
            if mode != "immutable":
                _check_locks(path, file)
        finally:
            if handle.in_transaction:
                handle.execute("ROLLBACK")
        _check_columns(path, columns, table_count, may_be_blank=mode == "rwc")
        return file

    try:
        return retry_busy(inspect, timeout_s, path)
    except sqlite3.Error as error:
        raise translated(error, path, is_reader=reads_only(mode)) from error


def _check_locks(path: str, file: LedgerFile) -> None:
    """Raise where, within a transaction, the lock on the ledger or, in WAL mode, on the `-shm` file is missing."""
    if holds_lock(file.identity[1], PENDING_BYTE) is False:
        raise _lock_lost(path)
    if not file.is_wal or (file.shm_inode is not None and holds_lock(file.shm_inode, WAL_DMS_BYTE) is not False):
        return
    if file.shm_inode is None or not os.access(path + "-shm", os.W_OK):
        # SQLite then reads by an index of its own in memory, which follows no writer.
        raise no_index(path)
    raise _lock_lost(path)


def _lock_lost(path: str) -> LockLostError:
    return LockLostError(
        f"{path}: SQLite's lock is not held by this process. A connection to the ledger was open across a fork, or "
        "another SQLite library closed the file: close all connections before forking, and restart this process"
    )


def _check_columns(path: str, columns: list[str], table_count: int, *, may_be_blank: bool) -> None:
    if not table_count:
        if may_be_blank:
            return
        raise BlankLedgerError(f"{path}: a database without tables, not a ledger")
    if not columns:
        raise NotALedgerError(f"{path}: a database without a table `events`, not a ledger")
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise NotALedgerError(f"{path}: the table `events` lacks the columns {', '.join(missing)}")


def _cannot_open(path: str, mode: Mode, reason: object) -> LedgerError:
    return (LedgerUnreadableError if reads_only(mode) else LedgerUnwritableError)(f"{path}: {reason}")
