"""Appending: one transaction per call, linear under any number of processes.

Invariant: the newest hash is read under the write lock, in the transaction that inserts; or SQLite says there that
nobody else has committed since the last own append, whose hash is known.
Invariant: no id is returned unless the row is in the ledger as it was given: SQLite's counts prove it where nothing but
the insert has changed a row, otherwise the rows are read back before the commit.
Invariant: what is remembered of the last own append dies with the connection's epoch.
Invariant: a thread within a call of an `Appender` begins no other (from a signal handler, say): it would work in the
transaction of the first.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from threading import TIMEOUT_MAX, get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.errors import (
    ChainError,
    HeadMovedError,
    InvalidEventError,
    LedgerBusyError,
    LedgerError,
    LedgerUnreadableError,
    LedgerUnwritableError,
    PmmShmError,
    ReplicaError,
)
from pmm_shm.late import late_imports
from pmm_shm.ledger.chain import HASHED_ROW_SQL, HashedRow, detect_formula, fits
from pmm_shm.ledger.connection import Connection, Durability
from pmm_shm.ledger.fetch import UNDECODABLE
from pmm_shm.ledger.files import LedgerMoved
from pmm_shm.ledger.new_events import Formula, NewEvent, hashed_rows, now_text
from pmm_shm.ledger.opening import LedgerFile
from pmm_shm.ledger.rows import HASH_COLUMNS, ID_MAX, REQUIRED_COLUMNS, RawRow, decode_text
from pmm_shm.ledger.schema import create_indexes
from pmm_shm.ledger.sqlite_errors import busy_for, holder_of, is_busy, retry_busy
from pmm_shm.ledger.tail import Position, TailReader

if TYPE_CHECKING:
    from pmm_shm.ledger.shape import Shape

_T = TypeVar("_T")
_REPLACEMENTS_MAX = 5
_FIRST_HASHED = f"{HASHED_ROW_SQL} WHERE hash IS NOT NULL ORDER BY id LIMIT 1"
_HEAD = "SELECT max(id) FROM events"
_NEWEST = f"{HASHED_ROW_SQL} ORDER BY id DESC LIMIT 1"
_NEWEST_HASHED = f"{HASHED_ROW_SQL} WHERE hash IS NOT NULL ORDER BY id DESC LIMIT 1"
_SEQUENCE = "(SELECT seq FROM sqlite_sequence WHERE name = 'events' COLLATE NOCASE)"
_NEWEST_AND_SEQUENCE = f"SELECT {', '.join(HashedRow._fields)}, {_SEQUENCE} FROM events ORDER BY id DESC LIMIT 1"
_NEWEST_ID = f"SELECT coalesce(max(id), 0), {_SEQUENCE} FROM events"
_NEWEST_ID_ALONE = "SELECT coalesce(max(id), 0), NULL FROM events"
_NOTHING = "; nothing was written"
_OTHER_SCHEMA = ("no such ", "table events has no column")
# A constraint that has them would drop the new row, or remove old ones, and say nothing.
_SPACE = rb"(?:\s|--[^\n]*\n|/\*.*?\*/)+"
_SILENT_CONFLICT = re.compile(rb"\bon%sconflict%s(ignore|replace)\b" % (_SPACE, _SPACE), re.IGNORECASE | re.DOTALL)


ExpectedHead = int | Position
"""The newest event's id (0 in an empty ledger), or the position of what was read."""


class _Prepared(NamedTuple):
    """A handle with the statements for its schema.

    Attributes:
        file: of the connection; another object after every open, and whenever the schema was looked at again.
        is_hashed: whether the ledger has the columns of the hash chain.
        keeps_text: whether all columns store every text as it is.
    """

    handle: sqlite3.Connection
    file: LedgerFile
    is_hashed: bool
    keeps_text: bool
    insert_sql: str
    read_back_sql: str


class Appender:
    """The writing half of an `EventLog`. Opens its connection at the first append.

    Attributes:
        last_row: the newest row that it has appended; None where that is not known, and in a ledger without hashes.
    """

    def __init__(self, path: str, timeout_s: float, durability: Durability, shape: Shape | None = None) -> None:
        self._durability = durability
        self.connection = Connection(path, "rw", timeout_s, shape)
        self.connection.on_close(self._forget)
        self._inside: int | None = None
        self._forget()

    def _forget(self) -> None:
        self.last_row: RawRow | None = None
        self._formula: Formula | None = None
        # The monotonic time until which the look at the path behind the last append counts for the next one.
        self._looked_until_s = 0.0
        # `PRAGMA data_version` at the last own append: others' commits change it. None if it is not known.
        self._version: int | None = None
        self._prepared: _Prepared | None = None
        self._indexed = False

    def append(self, events: Sequence[NewEvent], expected_head: ExpectedHead | None = None) -> list[int]:
        """Write all events in one transaction, or none. Returns their ids.

        Raises:
            HeadMovedError: the ledger's head is not the expected one.
            LedgerError: in one of its kinds; nothing was written.
        """
        if self._prepared is None:
            self.connection.refuse_foreign()
        return self._run(self._append, events, expected_head)

    def recover(self) -> None:
        """Take and release the write lock: SQLite then rolls back the transaction of a dead writer."""
        # It has no other look at the path.
        self._looked_until_s = 0.0
        self._run(self._recover)

    def close(self) -> None:
        """Close the connection; in WAL mode, after a checkpoint if nothing blocks it.

        Raises:
            LedgerBusyError: an append of this thread is under way.
        """
        self._refuse_reentry()
        connection = self.connection
        with connection.lock:
            if connection.is_open and connection.is_wal:
                try:
                    # Beside a new file the old -wal stays: it may hold events that are still needed.
                    if connection.is_at_path():
                        connection.handle().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                except (sqlite3.Error, LedgerError):
                    pass
            connection.close()

    def _run(self, action: Callable[..., _T], *arguments: Any) -> _T:
        """Run `action(deadline, *arguments)` under the connection's lock, again where the ledger was replaced.

        The wait for another thread counts as waiting.
        """
        self._refuse_reentry()
        connection = self.connection
        lock, timeout_s = connection.lock, connection.timeout_s
        # An old file is let go before it is used again: its index may be that of the new one by now.
        if time.monotonic() >= self._looked_until_s:
            connection.follow_replacement()
        thread = get_ident()
        for _ in range(_REPLACEMENTS_MAX):
            deadline_s = time.monotonic() + timeout_s
            try:
                if not lock.acquire(False) and not lock.acquire(timeout=min(max(0.0, timeout_s), TIMEOUT_MAX)):
                    raise LedgerBusyError(busy_for(connection.path, timeout_s, "another thread of this process"))
                self._inside = thread
                connection.require_lock()
                return action(deadline_s, *arguments)
            except LedgerMoved:
                pass
            except LedgerBusyError as error:
                raise LedgerBusyError(f"{error}{_NOTHING}") from None
            except LedgerError:
                # What is found in a file that was moved away, or that its -shm is gone, says nothing of the ledger.
                if not connection.is_open or connection.is_at_path():
                    raise
            finally:
                if self._inside == thread:
                    self._inside = None
                # An exception of a signal handler may strike right behind `acquire`, or while it waits.
                try:
                    lock.release()
                except RuntimeError:
                    # Another thread has it.
                    pass
            connection.close_if_switched()
            connection.follow_replacement()
        raise LedgerBusyError(
            f"{connection.path}: replaced or redefined {_REPLACEMENTS_MAX} times during this call; nothing was written"
        )

    def _refuse_reentry(self) -> None:
        """Raise if this thread is within a call: the lock, which is re-entrant, would let it in."""
        if self._inside == get_ident():
            raise LedgerBusyError(
                f"{self.connection.path}: an append of this thread is under way, and this call came in between (from a "
                "signal handler, a finalizer or a green thread); nothing was written"
            )

    def _prepare(self) -> _Prepared:
        connection = self.connection
        handle = connection.handle()
        if handle.in_transaction:  # Left by a call that was interrupted before its rollback.
            connection.close()
            handle = connection.handle()
        file = connection.file
        assert file is not None
        if self._durability == "full":
            # As FULL, and the removal of a rollback journal, which commits, is synced, too.
            handle.execute("PRAGMA synchronous = EXTRA")
        elif file.is_wal:
            handle.execute("PRAGMA synchronous = NORMAL")
        types = file.schema.columns
        is_hashed = set(HASH_COLUMNS) <= set(types)
        columns = REQUIRED_COLUMNS + HASH_COLUMNS if is_hashed else REQUIRED_COLUMNS
        is_silent = any(_SILENT_CONFLICT.search(sql) for sql in file.schema.definition)
        names, places = ", ".join(columns), ", ".join("?" * len(columns))
        self._prepared = _Prepared(
            handle,
            file,
            is_hashed,
            all(_keeps_text(types[name]) for name in columns[1:]),
            f"INSERT {'OR ABORT ' if is_silent else ''}INTO events ({names}) VALUES ({places})",
            f"SELECT {names} FROM events WHERE id >= ? AND id <= ? ORDER BY id",
        )
        return self._prepared

    def _execute(self, handle: sqlite3.Connection, sql: str, deadline_s: float) -> None:
        """Run a statement without rows, as soon as the ledger is not busy."""
        try:
            handle.execute(sql)
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        # Nobody waits for a file that is no longer the ledger.
        connection = self.connection
        if not connection.is_at_path():
            raise LedgerMoved
        try:
            retry_busy(lambda: handle.execute(sql), deadline_s - time.monotonic(), connection.path)
        except LedgerBusyError:
            # All of the time, not what was left of it.
            raise LedgerBusyError(busy_for(connection.path, connection.timeout_s, holder_of(connection.path))) from None

    def _recover(self, deadline_s: float) -> None:
        handle = self._prepare().handle
        try:
            self._execute(handle, "BEGIN IMMEDIATE", deadline_s)
        except sqlite3.Error as error:
            raise self.connection.translate(error) from error
        finally:
            self._roll_back(handle)

    def _append(self, deadline_s: float, events: Sequence[NewEvent], expected_head: ExpectedHead | None) -> list[int]:
        connection, prepared = self.connection, self._prepared
        if prepared is None or prepared.file is not connection.file or prepared.handle.in_transaction:
            prepared = self._prepare()
        if prepared.file.schema.is_of_pmm2:
            if not connection.is_at_path():
                raise LedgerMoved
            with late_imports:
                from pmm_shm.ledger.obstacles import NEEDS_LEASE
            # Before the write lock, which the lease holder may be waiting for.
            raise LedgerUnwritableError(f"{connection.path}: {NEEDS_LEASE}{_NOTHING}")
        handle = prepared.handle
        try:
            self._execute(handle, "BEGIN IMMEDIATE", deadline_s)
            if expected_head is not None:
                self._require_head(handle, expected_head)
                if not events:
                    if not connection.is_at_path():
                        raise LedgerMoved
                    handle.execute("ROLLBACK")
                    return []
            if not self._indexed:
                create_indexes(handle)
            rows, formula, version = self._insert(prepared, events)
            if not handle.in_transaction:
                raise LedgerUnwritableError(
                    f"{connection.path}: other code ended the append's transaction; check the newest events before "
                    "appending them again"
                )
            # Lately, or while this waited for the lock, the file may have been replaced, or switched to WAL mode.
            if not connection.is_at_path() or (not prepared.file.is_wal and connection.is_switched()):
                raise LedgerMoved
            crash_point("append.inside")
            self._execute(handle, "COMMIT", deadline_s)
            crash_point("append.committed")
        except BaseException as error:
            self._roll_back(handle)
            is_refused = isinstance(error, (sqlite3.Error, PmmShmError)) and not isinstance(error, LedgerBusyError)
            if is_refused and not connection.is_at_path():
                # SQLite refuses to write a journal beside another file, and an old file may hold anything.
                raise LedgerMoved from error
            if isinstance(error, (sqlite3.DataError, OverflowError)):
                raise InvalidEventError(f"too large for SQLite: {error}") from error
            if isinstance(error, sqlite3.Error):
                if str(error).startswith(UNDECODABLE) and handle.text_factory is str:
                    # The newest row is not UTF-8: again, with a factory that takes it, and more time for each text.
                    handle.text_factory = decode_text
                    raise LedgerMoved from error
                if str(error).startswith(_OTHER_SCHEMA) and connection.follow_schema():
                    raise LedgerMoved from error
                raise self._refused(error) from error
            raise
        self._indexed = True
        self.last_row, self._formula = (rows[-1], formula) if formula else (None, None)
        self._version = version
        # An id that is returned is in the ledger: an event that went into the old file is appended again.
        try:
            is_at_path = connection.is_at_path()
        except LedgerUnreadableError:
            # Nobody can look there now, and it was there a moment ago. An error would say that nothing was written.
            is_at_path = True
        if not is_at_path:
            raise LedgerMoved
        self._looked_until_s = time.monotonic() + limits.LOOK_BEHIND_APPEND_S
        return [row[0] for row in rows]

    def _require_head(self, handle: sqlite3.Connection, expected: ExpectedHead) -> None:
        """Raise where the ledger's head is another one; within the transaction that appends."""
        newest: int | None = handle.execute(_HEAD).fetchone()[0]
        if isinstance(expected, Position):
            expected_id, is_there = expected.as_of, newest == expected.event_id
            if is_there and TailReader(self.connection, None).holds(expected):
                return
        else:
            expected_id, is_there = expected, (newest or 0) == expected
            if is_there:
                return
        head_id = newest or 0
        found = (
            f"event {head_id} is another one than the one that was read"
            if is_there
            else f"expected event {expected_id} to be the newest, and it is {head_id}"
        )
        raise HeadMovedError(f"{self.connection.path}: {found}; nothing was written", head_id)

    def _refused(self, error: sqlite3.Error) -> LedgerError:
        """Our error for one of SQLite's, with the trigger that is behind it."""
        made = self.connection.translate(error)
        if type(made) is not LedgerUnwritableError or not self.connection.is_open:
            return made
        with late_imports:
            from pmm_shm.ledger.obstacles import refusal
            from pmm_shm.ledger.replicas import is_replica
        if is_replica(self.connection.schema.definition):
            return ReplicaError(f"{self.connection.path}: a replica, which takes appends in PostgreSQL only{_NOTHING}")
        try:
            reason = refusal(self.connection.handle(), error)
        except sqlite3.Error:
            return made
        return LedgerUnwritableError(f"{self.connection.path}: {reason}; nothing was written")

    def _roll_back(self, handle: sqlite3.Connection) -> None:
        try:
            if handle.in_transaction:
                handle.execute("ROLLBACK")
        except sqlite3.Error:
            self.connection.close()

    def _insert(
        self, prepared: _Prepared, events: Sequence[NewEvent]
    ) -> tuple[list[RawRow], Formula | None, int | None]:
        """Insert the events behind the newest one.

        Returns:
            Their rows; the formula of their hashes, None in a ledger without hashes; the number of others' commits,
            None where it is not known, or where a trigger may have written more.
        """
        handle, newest, version = prepared.handle, self.last_row, self._version
        # Known again when this is committed: SQLite does not count own commits.
        self._version = None
        formula = last_hash = None
        if newest is not None and version is not None and _version(handle) == version:
            newest_id, formula, last_hash = newest[0], self._formula, newest[-1]
        elif prepared.is_hashed:
            newest, newest_id = _newest(handle)
            # Among other writers the number would be asked for in vain.
            version = _version(handle) if newest is not None and newest == self.last_row else None
            formula, last_hash = self._chain_end(handle, newest)
        else:
            newest, newest_id = None, _newest_id(handle)
        if newest_id + len(events) > ID_MAX:
            raise LedgerUnwritableError(f"{self.connection.path}: its ids are used up; nothing was written")
        now = now_text()
        if formula is not None:
            rows = hashed_rows(events, newest_id + 1, now, formula, last_hash)
        else:
            rows = [(event_id, event[0] or now, *event[1:4]) for event_id, event in enumerate(events, newest_id + 1)]
        changes = handle.total_changes
        if len(rows) == 1:
            inserted = handle.execute(prepared.insert_sql, rows[0]).rowcount
        else:
            inserted = handle.executemany(prepared.insert_sql, rows).rowcount
        if inserted == handle.total_changes - changes == len(rows) and prepared.keeps_text:
            return rows, formula, version
        self._read_back(prepared, rows if newest is None else [newest, *rows], rows[-1][0])
        return rows, formula, None

    def _read_back(self, prepared: _Prepared, expected: list[RawRow], last_id: int) -> None:
        """Prove that the rows up to `last_id` are in the ledger as they were given.

        Raises:
            LedgerUnwritableError: a trigger or a constraint has dropped or changed one of them, or the one before.
        """
        found = prepared.handle.execute(prepared.read_back_sql, (expected[0][0], last_id)).fetchall()
        if found != expected:
            with late_imports:
                from pmm_shm.ledger.obstacles import interference
            reason = interference(prepared.handle, is_dropped=len(found) < len(expected))
            raise LedgerUnwritableError(f"{self.connection.path}: {reason}; nothing was written")

    def _chain_end(self, handle: sqlite3.Connection, newest: RawRow | None) -> tuple[Formula, str | None]:
        """The formula to append with, and the hash to append to.

        Raises:
            ChainError: the newest hashed event fits no formula.
        """
        if newest is not None and self._formula is not None and newest == self.last_row:
            return self._formula, newest[-1]
        if newest is not None and newest[-1] is None:
            newest = handle.execute(_NEWEST_HASHED).fetchone()
        if newest is None:
            self._formula = None
            return "full", None
        if self._formula is None or not fits(self._formula, newest):
            own = detect_formula(newest)
            if own is None:
                raise ChainError(
                    f"{self.connection.path}: the hash of event {newest[0]} fits no known formula; nothing was "
                    "written. `verify_chain()` names the first bad event"
                )
            self._formula = detect_formula(handle.execute(_FIRST_HASHED).fetchone()) or own
        previous: str = newest[-1]
        return self._formula, previous


def _keeps_text(declared: str) -> bool:
    """Whether a column of this declared type stores every text as it is (https://sqlite.org/datatype3.html, 3.1)."""
    kind = declared.upper()
    if "INT" in kind:
        return False
    return not kind or any(word in kind for word in ("CHAR", "CLOB", "TEXT", "BLOB"))


def _version(handle: sqlite3.Connection) -> int:
    """A number that changes with every commit of another connection (https://sqlite.org/pragma.html#pragma_data_version)."""
    version: int = handle.execute("PRAGMA data_version").fetchone()[0]
    return version


def _newest(handle: sqlite3.Connection) -> tuple[RawRow | None, int]:
    """The newest row with its hashes (None in an empty ledger), and the highest id that was ever used."""
    try:
        row = handle.execute(_NEWEST_AND_SEQUENCE).fetchone()
    except sqlite3.OperationalError:  # A table without AUTOINCREMENT.
        row = None
    if row is None:
        return handle.execute(_NEWEST).fetchone(), _newest_id(handle)
    return row[:-1], _newest_of(row[0] or 0, row[-1])


def _newest_id(handle: sqlite3.Connection) -> int:
    try:
        found = handle.execute(_NEWEST_ID).fetchone()
    except sqlite3.OperationalError:  # A table without AUTOINCREMENT.
        found = handle.execute(_NEWEST_ID_ALONE).fetchone()
    return _newest_of(*found)


def _newest_of(newest_id: int, sequence: object) -> int:
    if type(newest_id) is not int:
        raise sqlite3.DatabaseError(f"the column `id` holds {newest_id!r:.80}, not an integer")
    return max(0, newest_id, sequence if isinstance(sequence, int) else 0)
