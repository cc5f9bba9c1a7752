"""Restoring a backup over a ledger that is in use, by SQLite's backup interface.

Owns: the checks of the backup, the safety copy of the ledger's former content, and the writing. Only this module and
`EventLog` write a ledger. Never writes the backup, and opens a ledger's files only through SQLite.

`sqlite3.Connection.backup` sleeps and retries for ever if a database is busy. Here its progress callback ends each
attempt instead, and `retry_busy` sets the deadline.

Invariant: for all others a restore is one transaction: they see the old ledger or the new one, and so does who opens it
after the restoring process was killed.
Invariant: the safety copy is made under the lock under which the ledger is written over, so it holds every event that
was committed before.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pmm_shm import limits
from pmm_shm.errors import (
    ChainError,
    ConfigError,
    LedgerBusyError,
    LedgerError,
    LedgerNotFoundError,
    LedgerReplacedError,
    LedgerUnreadableError,
    LedgerUnwritableError,
    NotALedgerError,
    ReplicaError,
)
from pmm_shm.instance.paths import real_path
from pmm_shm.ledger.chain import broken_at, verify_chain
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.files import bytes_of, has_wal
from pmm_shm.ledger.new_file import SIDE_FILES, put_in_place
from pmm_shm.ledger.opening import Mode
from pmm_shm.ledger.replicas import is_replica
from pmm_shm.ledger.sqlite_errors import BlankLedgerError, HotJournalError, is_busy, retry_busy, translated
from pmm_shm.ledger.tail import ordered_columns

_PRIMARY_CODE = 0xFF
_BUSY, _LOCKED = 5, 6


@dataclass(frozen=True)
class Restored:
    """The result of a restore.

    Attributes:
        ledger, backup: the real paths.
        events: number of events in it now.
        head_id: the newest event's id; 0 without events.
        safety_copy: the file with the ledger's former content; None if it was empty, or no copy was wanted.
    """

    ledger: str
    backup: str
    events: int
    head_id: int
    safety_copy: str | None


def restore(
    backup: str | os.PathLike[str],
    ledger: str | os.PathLike[str],
    *,
    timeout: float = limits.LEDGER_TIMEOUT_S,
    chain: bool = True,
    keep: bool = True,
) -> Restored:
    """Replace the content of `ledger` by that of `backup`, in one transaction, while others use it.

    A missing ledger is made.

    Parameters:
        timeout: seconds to wait for a busy backup or ledger.
        chain: check the backup's hash chain first.
        keep: make a safety copy of the ledger beside it.

    Raises:
        ConfigError: backup and ledger are one file.
        ChainError: the backup's hash chain is broken.
        NotALedgerError: the backup is damaged, one of the two is no ledger, or their columns or encodings differ.
        LedgerBusyError: the backup or the ledger was busy for `timeout` seconds.
        LedgerError: any other kind. In all cases nothing was changed.
    """
    deadline_s = time.monotonic() + timeout
    target = real_path(ledger)
    Connection(target, "ro", timeout).refuse_foreign()
    source = _opened_backup(real_path(backup), target, timeout)
    try:
        before = _status(source)
        with source.lock, source.one_snapshot():
            events, head_id = _check(source, chain)
            if os.path.exists(target):
                safety_copy = _write_over(source, before, target, deadline_s, keep)
            else:
                safety_copy = None
                _make(source, before, target)
    finally:
        source.close()
    return Restored(target, source.path, events, head_id, safety_copy)


# The backup.


def _opened_backup(backup: str, ledger: str, timeout_s: float) -> Connection:
    try:
        is_same = os.path.samefile(backup, ledger)
    except OSError:
        is_same = backup == ledger
    if is_same:
        raise ConfigError(f"{backup}: backup and ledger are the same file")
    if not os.path.exists(backup):
        raise LedgerNotFoundError(f"{backup}: no such file")
    connection = Connection(backup, _mode_for(backup), timeout_s)
    try:
        with connection.lock:
            handle = connection.handle()
            if connection.mode == "rw":
                handle.execute("PRAGMA query_only = ON")
    except BaseException as error:
        connection.close()
        is_unreadable = isinstance(error, LedgerUnreadableError)
        if is_unreadable and has_wal(backup) and not os.access(os.path.dirname(backup), os.W_OK):
            raise LedgerUnreadableError(
                f"{backup}: its -wal cannot be read without permission to write in its directory; "
                "copy both files elsewhere and restore from there"
            ) from None
        raise
    return connection


def _mode_for(backup: str) -> Mode:
    """The mode to open the backup in, so that it is not written and no file stays beside it.

    A read-only connection leaves `-wal` and `-shm` behind, a writable one removes them. But a writable one would also
    write the commits of a `-wal`, or the journal of a dead writer, into the backup, which must stay as it is.
    """
    if has_wal(backup) or bytes_of(backup + "-journal"):
        return "ro"
    if os.access(backup, os.W_OK) and os.access(os.path.dirname(backup), os.W_OK):
        return "rw"
    return "immutable"


def _check(source: Connection, chain: bool) -> tuple[int, int]:
    """Check the backup; returns (events, newest id).

    Raises:
        NotALedgerError: it is damaged.
        ChainError: its hash chain is broken.
    """
    handle = source.handle()
    found = source.retry(lambda: handle.execute("PRAGMA quick_check(1)").fetchall()[0][0])
    if found != "ok":
        raise NotALedgerError(f"{source.path}: damaged: {' '.join(found.split())}; nothing was changed")
    if chain:
        links = verify_chain(source)
        # A fork damages no event: a backup of such a ledger is as good as the ledger.
        if links.first_bad_id is not None:
            raise ChainError(f"{source.path}: {broken_at(links.first_bad_id)}; nothing was changed")
    events, head_id = source.retry(lambda: handle.execute("SELECT count(*), max(id) FROM events").fetchall()[0])
    return events, head_id or 0


def _status(source: Connection) -> tuple[int, ...]:
    status = os.stat(source.path)
    journals = (bytes_of(source.path + "-wal"), bytes_of(source.path + "-journal"))
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, *journals


def _refuse_changed(source: Connection, before: tuple[int, ...]) -> None:
    """Raise if a backup that is read without locks was written meanwhile."""
    if source.mode == "immutable" and _status(source) != before:
        raise LedgerBusyError(f"{source.path}: it was written while it was read; nothing was changed")


# A missing ledger.


def _make(source: Connection, before: tuple[int, ...], ledger: str) -> None:
    for suffix in ("-wal", "-journal"):
        if bytes_of(ledger + suffix):
            raise LedgerReplacedError(
                f"{ledger}: not there, but its {suffix} is: making a ledger would destroy what that holds. "
                "Put the ledger back beside it; if it is gone, stop all its users, move "
                f"{ledger}{suffix} away, then restore again"
            )
    with _staged(source, ledger) as (handle, path):
        _refuse_changed(source, before)
        handle.close()
        try:
            # The ledger must be writable, also if the backup is not.
            with contextlib.suppress(PermissionError):
                os.chmod(path, stat.S_IMODE(os.stat(source.path).st_mode) | stat.S_IWUSR)
            put_in_place(path, ledger)
        except FileExistsError:
            raise LedgerBusyError(f"{ledger}: made by somebody else meanwhile; nothing was changed") from None
        except OSError as error:
            raise _cannot_write(ledger, error) from error


# An existing ledger.


def _write_over(source: Connection, before: tuple[int, ...], ledger: str, deadline_s: float, keep: bool) -> str | None:
    """Returns the safety copy's path."""
    # The reader first: it proves that the ledger may be opened, and closing it never empties a -wal.
    reader = Connection(ledger, "ro", _left_s(deadline_s))
    writer: Connection | None = None
    try:
        writer = _opened_ledger(reader)
        with writer.lock:
            _refuse_replica(writer)
            _refuse_unlike(source, writer)
            with _fitting(source, before, writer) as handle:
                attempt = _Attempt(handle, reader, writer, keep and bool(writer.columns))
                try:
                    retry_busy(attempt.run, _left_s(deadline_s), ledger)
                except sqlite3.Error as error:
                    raise writer.translate(error) from error
                return attempt.safety_copy
    finally:
        # In this order: the writable connection, closed last, removes -wal and -shm.
        reader.close()
        if writer is not None:
            _close(writer)


def _opened_ledger(reader: Connection) -> Connection:
    mode: Mode = "rw"
    try:
        with reader.lock:
            reader.handle()
    except BlankLedgerError:
        mode = "rwc"
    except HotJournalError:
        pass  # The writable connection rolls it back.
    except NotALedgerError as error:
        raise NotALedgerError(f"{error}; to restore in its place, move it away first") from None
    writer = Connection(reader.path, mode, reader.timeout_s)
    try:
        with writer.lock:
            writer.handle()
    except BaseException:
        writer.close()
        raise
    return writer


def _refuse_replica(writer: Connection) -> None:
    if is_replica(writer.schema.definition):
        raise ReplicaError(
            f"{writer.path}: a replica of a log in PostgreSQL: restore the log there, or make this an ordinary ledger "
            "first (pmm-shm cluster detach); nothing was changed"
        )


def _refuse_unlike(source: Connection, writer: Connection) -> None:
    """Raise if columns or encoding differ: open connections to the ledger would not notice the change."""
    if not writer.columns:
        return
    for quality, ours, theirs in (
        ("columns", ordered_columns(writer.columns), ordered_columns(source.columns)),
        ("text encoding", _pragma(writer, "encoding"), _pragma(source, "encoding")),
    ):
        if list(ours) != list(theirs):
            raise NotALedgerError(
                f"{source.path}: not the {quality} of {writer.path}; stop all users of the ledger, move it, its -wal "
                "and its -shm away, then restore again"
            )


@contextlib.contextmanager
def _fitting(source: Connection, before: tuple[int, ...], writer: Connection) -> Iterator[sqlite3.Connection]:
    """The backup, or a copy of it that SQLite can write over the ledger without changing its page or journal mode."""
    page_bytes = int(_pragma(writer, "page_size"))
    is_fixed = bool(writer.columns) or writer.is_wal
    is_other_size = is_fixed and page_bytes != int(_pragma(source, "page_size"))
    # A rollback-journal ledger would get the mode of a WAL backup; a WAL ledger keeps its own.
    is_other_mode = bool(writer.columns) and not writer.is_wal and source.is_wal
    if source.mode != "immutable" and not is_other_size and not is_other_mode:
        yield source.handle()
        return
    with _staged(source, writer.path) as (handle, path):
        _refuse_changed(source, before)
        try:
            handle.execute("PRAGMA journal_mode = DELETE").fetchall()
            if is_other_size:
                handle.execute(f"PRAGMA page_size = {page_bytes}")
                handle.execute("VACUUM")
        except sqlite3.Error as error:
            raise translated(error, path, is_reader=False) from error
        yield handle


class _Attempt:
    """Repeated attempts to overwrite the ledger.

    Parameters:
        source: the content to write, within its transaction.
        reader, writer: two connections to the ledger; the first is only used in WAL mode.
        keep: whether a safety copy is wanted.
    """

    def __init__(self, source: sqlite3.Connection, reader: Connection, writer: Connection, keep: bool) -> None:
        self._source = source
        self._reader = reader
        self._writer = writer
        self._keep = keep
        self.safety_copy: str | None = None

    def run(self) -> None:
        """Write, or raise and leave the ledger unchanged.

        Raises:
            sqlite3.Error, LedgerError: and the safety copy is removed. After any other exception (a signal's) it stays,
                because the last step may have been done.
        """
        handle = self._writer.handle()
        # While SQLite waits here for readers to end, no new one begins. Waiting longer would starve it among writers.
        handle.execute(f"PRAGMA busy_timeout = {limits.RESTORE_BUSY_MS}").fetchall()
        try:
            if self._writer.is_wal:
                self._transfer(handle, lambda: self._under_lock(self._reader))
            else:
                # Exclusive until the connection closes: a backup cannot begin within a transaction. The mode is set
                # after the lock was taken: otherwise a failed attempt would lock others out, too.
                handle.execute("BEGIN EXCLUSIVE")
                handle.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
                handle.execute("COMMIT")
                self._under_lock(self._writer)
                self._transfer(handle, lambda: None)
        except (sqlite3.Error, LedgerError):
            if self.safety_copy is not None:
                _remove(self.safety_copy)
                self.safety_copy = None
            raise

    def _under_lock(self, connection: Connection) -> None:
        """Make the safety copy; called while nobody else can commit."""
        path = self._writer.path
        if not self._writer.is_at_path():
            raise LedgerBusyError(f"{path}: another file took its place meanwhile; nothing was changed")
        if self._keep:
            self.safety_copy = _safety_copy(connection.handle(), path)

    def _transfer(self, handle: sqlite3.Connection, under_lock: Callable[[], None]) -> None:
        """Write page by page and commit; `under_lock` is called once, between the first pages and the commit."""
        is_locked = False

        def progress(code: int, remaining: int, total: int) -> None:
            nonlocal is_locked
            _refuse_to_sleep(code)
            if code == sqlite3.SQLITE_OK and not is_locked:
                is_locked = True
                under_lock()

        # The last step commits, so at least two are needed. A ledger has more than one page.
        pages = max(1, min(limits.RESTORE_PAGES_PER_STEP, self._source.execute("PRAGMA page_count").fetchone()[0] - 1))
        self._source.backup(handle, pages=pages, progress=progress, sleep=0)


def _close(writer: Connection) -> None:
    """Close, after emptying the WAL if nobody is in the way: it holds the whole ledger once more."""
    if writer.is_open and writer.is_wal:
        with contextlib.suppress(sqlite3.Error):
            if writer.is_at_path():
                writer.handle().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    writer.close()


# Copies.


def _safety_copy(handle: sqlite3.Connection, ledger: str) -> str:
    """A new file with the content of the ledger; complete or absent.

    Raises:
        sqlite3.OperationalError: busy.
        LedgerUnwritableError: it cannot be written.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    path = _new_file(f"{ledger}.before-restore-{now:%Y%m%dT%H%M%SZ}", ledger)
    try:
        _copy(handle, path).close()
    except BaseException:
        _remove(path)
        raise
    return path


@contextlib.contextmanager
def _staged(source: Connection, ledger: str) -> Iterator[tuple[sqlite3.Connection, str]]:
    """A copy of the backup beside the ledger, and its path; removed at the end of the block."""
    path = _new_file(f"{ledger}.restoring", None)
    try:
        handle = retry_busy(lambda: _copy(source.handle(), path), source.timeout_s, source.path)
        try:
            yield handle, path
        finally:
            handle.close()
    finally:
        _remove(path)


def _copy(source: sqlite3.Connection, path: str) -> sqlite3.Connection:
    """Copy `source` to `path`, an empty file that this process has just made; returns a connection to it."""
    handle = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        source.backup(handle, progress=lambda code, remaining, total: _refuse_to_sleep(code), sleep=0)
    except BaseException as error:
        handle.close()
        if isinstance(error, sqlite3.Error) and not is_busy(error):
            raise translated(error, path, is_reader=False) from error
        raise
    return handle


def _refuse_to_sleep(code: int) -> None:
    if code & _PRIMARY_CODE in (_BUSY, _LOCKED):
        raise sqlite3.OperationalError("database is locked")


def _new_file(name: str, like: str | None) -> str:
    """An empty file of this name, numbered if it exists; with the mode and owners of `like`, or mode 0600."""
    path, number = name, 1
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            break
        except FileExistsError:
            number += 1
            path = f"{name}-{number}"
        except OSError as error:
            raise _cannot_write(path, error) from error
    try:
        if like is not None:
            status = os.stat(like)
            with contextlib.suppress(OSError):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            # A file system without permissions may refuse it.
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    finally:
        os.close(descriptor)
    return path


def _remove(path: str) -> None:
    for name in (path, *(path + suffix for suffix in SIDE_FILES)):
        with contextlib.suppress(OSError):
            os.unlink(name)


# Helpers.


def _left_s(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())


def _cannot_write(path: str, error: OSError) -> LedgerUnwritableError:
    return LedgerUnwritableError(f"{path}: {error.strerror}; nothing was changed")


def _pragma(connection: Connection, name: str) -> str:
    handle = connection.handle()
    return str(connection.retry(lambda: handle.execute(f"PRAGMA {name}").fetchall()[0][0]))
