"""Appending: one transaction per call, linear under any number of processes.

Invariant: the newest hash is read under the write lock, in the transaction that inserts.
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
from typing import TYPE_CHECKING, TypeVar

from pmm_shm.crash_points import crash_point
from pmm_shm.errors import (
    ChainError,
    HeadMovedError,
    InvalidEventError,
    LedgerBusyError,
    LedgerError,
    LedgerUnwritableError,
    ReplicaError,
)
from pmm_shm.late import late_imports
from pmm_shm.ledger.chain import HASHED_ROW_SQL, Formula, HashedRow, canonical_json, detect_formula, fits, hash_of_parts
from pmm_shm.ledger.connection import Connection, Durability
from pmm_shm.ledger.fetch import UNDECODABLE
from pmm_shm.ledger.files import LedgerMoved, file_identity
from pmm_shm.ledger.instants import now_text
from pmm_shm.ledger.new_events import NewEvent, new_event, new_events
from pmm_shm.ledger.opening import Schema
from pmm_shm.ledger.rows import HASH_COLUMNS, ID_MAX, RawRow, decode_text
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
_COLUMNS_HASHED = "id, ts, kind, content, meta, prev_hash, hash"
_COLUMNS_PLAIN = "id, ts, kind, content, meta"
_OTHER_SCHEMA = ("no such ", "table events has no column")
# A constraint that has them would drop the new row, or remove old ones, and say nothing.
_SPACE = rb"(?:\s|--[^\n]*\n|/\*.*?\*/)+"
_SILENT_CONFLICT = re.compile(rb"\bon%sconflict%s(ignore|replace)\b" % (_SPACE, _SPACE), re.IGNORECASE | re.DOTALL)


ExpectedHead = int | Position
"""The newest event's id (0 in an empty ledger), or the position of what was read."""


class Appender:
    """The writing half of an `EventLog`. Opens its connection at the first append.

    Attributes:
        last_row: the newest row that it has appended; None where that is not known, and in a ledger without hashes.
    """

    # What makes the events to append: an `EventLog` that only reads does not import it.
    new_event = staticmethod(new_event)
    new_events = staticmethod(new_events)

    def __init__(self, path: str, timeout_s: float, durability: Durability, shape: Shape | None = None) -> None:
        self._durability = durability
        self.connection = Connection(path, "rw", timeout_s, shape)
        self.connection.on_close(self._forget)
        self._inside: int | None = None
        self._forget()

    def _forget(self) -> None:
        self.last_row: RawRow | None = None
        self._formula: Formula | None = None
        self._prepared_for: Schema | None = None
        self._indexed = False
        self._is_hashed = False
        self._keeps_text = False
        self._insert_sql = self._read_back_sql = ""

    def append(self, events: Sequence[NewEvent], expected_head: ExpectedHead | None = None) -> list[int]:
        """Write all events in one transaction, or none. Returns their ids.

        Raises:
            HeadMovedError: the ledger's head is not the expected one.
            LedgerError: in one of its kinds; nothing was written.
        """
        self._refuse_reentry()
        self.connection.refuse_foreign()
        for _ in range(_REPLACEMENTS_MAX):
            self.connection.follow_replacement()
            try:
                return self._locked(lambda deadline_s: self._append(events, expected_head, deadline_s))
            except LedgerMoved:
                self.connection.close_if_switched()
        raise LedgerBusyError(
            f"{self.connection.path}: replaced or redefined {_REPLACEMENTS_MAX} times during this append; nothing was "
            "written"
        )

    def recover(self) -> None:
        """Take and release the write lock: SQLite then rolls back the transaction of a dead writer."""
        self._refuse_reentry()
        self.connection.follow_replacement()
        self._locked(self._recover)

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
                    if file_identity(connection.path) == connection.identity:
                        connection.handle().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                except (sqlite3.Error, LedgerError):
                    pass
            connection.close()

    def _locked(self, action: Callable[[float], _T]) -> _T:
        """Run `action(deadline)` under the connection's lock; the wait for another thread counts as waiting."""
        connection = self.connection
        lock, timeout_s = connection.lock, connection.timeout_s
        deadline_s = time.monotonic() + timeout_s
        if not lock.acquire(blocking=False) and not lock.acquire(timeout=min(max(0.0, timeout_s), TIMEOUT_MAX)):
            raise LedgerBusyError(busy_for(connection.path, timeout_s, "another thread of this process") + _NOTHING)
        try:
            connection.require_lock()
            self._inside = get_ident()
            return action(deadline_s)
        except LedgerBusyError as error:
            raise LedgerBusyError(f"{error}{_NOTHING}") from None
        finally:
            self._inside = None
            lock.release()

    def _refuse_reentry(self) -> None:
        """Raise if this thread is within a call: the lock, which is re-entrant, would let it in."""
        if self._inside == get_ident():
            raise LedgerBusyError(
                f"{self.connection.path}: an append of this thread is under way, and this call came in between (from a "
                "signal handler, a finalizer or a green thread); nothing was written"
            )

    def _handle(self) -> sqlite3.Connection:
        handle = self.connection.handle()
        if handle.in_transaction:  # Left by a call that was interrupted before its rollback.
            self.connection.close()
            handle = self.connection.handle()
        if self._prepared_for is not self.connection.schema:
            if self._durability == "full":
                # As FULL, and the removal of a rollback journal, which commits, is synced, too.
                handle.execute("PRAGMA synchronous = EXTRA")
            elif self.connection.is_wal:
                handle.execute("PRAGMA synchronous = NORMAL")
            self._prepare_statements()
            self._prepared_for = self.connection.schema
        return handle

    def _prepare_statements(self) -> None:
        types, definition = self.connection.schema.columns, self.connection.schema.definition
        self._is_hashed = set(HASH_COLUMNS) <= set(types)
        columns = _COLUMNS_HASHED if self._is_hashed else _COLUMNS_PLAIN
        is_silent = any(_SILENT_CONFLICT.search(sql) for sql in definition)
        places = ", ".join("?" * len(columns.split(", ")))
        self._insert_sql = f"INSERT {'OR ABORT ' if is_silent else ''}INTO events ({columns}) VALUES ({places})"
        self._read_back_sql = f"SELECT {columns} FROM events WHERE id >= ? AND id <= ? ORDER BY id"
        self._keeps_text = all(_keeps_text(types[name]) for name in columns.split(", ")[1:])

    def _execute(self, handle: sqlite3.Connection, sql: str, deadline_s: float) -> None:
        """Run a statement without rows, as soon as the ledger is not busy."""
        try:
            handle.execute(sql)
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        connection = self.connection
        try:
            retry_busy(lambda: handle.execute(sql), deadline_s - time.monotonic(), connection.path)
        except LedgerBusyError:
            # All of the time, not what was left of it.
            raise LedgerBusyError(busy_for(connection.path, connection.timeout_s, holder_of(connection.path))) from None

    def _recover(self, deadline_s: float) -> None:
        handle = self._handle()
        try:
            self._execute(handle, "BEGIN IMMEDIATE", deadline_s)
        except sqlite3.Error as error:
            raise self.connection.translate(error) from error
        finally:
            self._roll_back(handle)

    def _append(self, events: Sequence[NewEvent], expected_head: ExpectedHead | None, deadline_s: float) -> list[int]:
        handle = self._handle()
        if self.connection.schema.is_of_pmm2:
            with late_imports:
                from pmm_shm.ledger.obstacles import NEEDS_LEASE
            # Before the write lock, which the lease holder may be waiting for.
            raise LedgerUnwritableError(f"{self.connection.path}: {NEEDS_LEASE}{_NOTHING}")
        try:
            self._execute(handle, "BEGIN IMMEDIATE", deadline_s)
            if expected_head is not None:
                self._require_head(handle, expected_head)
                if not events:
                    handle.execute("ROLLBACK")
                    return []
            if not self._indexed:
                create_indexes(handle)
            rows, formula = self._insert(handle, events)
            if not handle.in_transaction:
                raise LedgerUnwritableError(
                    f"{self.connection.path}: other code ended the append's transaction; check the newest events "
                    "before appending them again"
                )
            # While this waited for the lock, the file may have been replaced, or switched to WAL mode.
            self._refuse_moved()
            if self.connection.is_switched():
                raise LedgerMoved
            crash_point("append.inside")
            self._execute(handle, "COMMIT", deadline_s)
            crash_point("append.committed")
        except BaseException as error:
            self._roll_back(handle)
            if isinstance(error, (sqlite3.DataError, OverflowError)):
                raise InvalidEventError(f"too large for SQLite: {error}") from error
            if isinstance(error, sqlite3.Error):
                if str(error).startswith(UNDECODABLE) and handle.text_factory is str:
                    # The newest row is not UTF-8: again, with a factory that takes it, and more time for each text.
                    handle.text_factory = decode_text
                    raise LedgerMoved from error
                # SQLite refuses to write a journal beside another file.
                self._refuse_moved()
                if str(error).startswith(_OTHER_SCHEMA) and self.connection.follow_schema():
                    raise LedgerMoved from error
                raise self._refused(error) from error
            raise
        self._indexed = True
        self.last_row, self._formula = (rows[-1], formula) if formula else (None, None)
        # An id that is returned is in the ledger: an event that went into the old file is appended again.
        self._refuse_moved()
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

    def _refuse_moved(self) -> None:
        if file_identity(self.connection.path) != self.connection.identity:
            raise LedgerMoved

    def _roll_back(self, handle: sqlite3.Connection) -> None:
        try:
            if handle.in_transaction:
                handle.execute("ROLLBACK")
        except sqlite3.Error:
            self.connection.close()

    def _insert(self, handle: sqlite3.Connection, events: Sequence[NewEvent]) -> tuple[list[RawRow], Formula | None]:
        """Insert the events; returns their rows, and the formula of their hashes (None in a ledger without hashes)."""
        newest, newest_id = _newest(handle) if self._is_hashed else (None, _newest_id(handle))
        if newest_id + len(events) > ID_MAX:
            raise LedgerUnwritableError(f"{self.connection.path}: its ids are used up; nothing was written")
        now = now_text()
        if self._is_hashed:
            formula, last_hash = self._chain_end(handle, newest)
            rows = _hashed_rows(events, newest_id + 1, now, formula, last_hash)
            self._insert_rows(handle, rows, newest)
            return rows, formula
        rows = [(event_id, event[0] or now, *event[1:4]) for event_id, event in enumerate(events, newest_id + 1)]
        self._insert_rows(handle, rows, None)
        return rows, None

    def _insert_rows(self, handle: sqlite3.Connection, rows: list[RawRow], newest: RawRow | None) -> None:
        """Insert the rows behind the row `newest`, and prove that they are there.

        Raises:
            LedgerUnwritableError: a trigger or a constraint has dropped or changed one of them, or the one before.
        """
        changes = handle.total_changes
        inserted = handle.executemany(self._insert_sql, rows).rowcount
        if inserted == handle.total_changes - changes == len(rows) and self._keeps_text:
            return
        expected = rows if newest is None else [newest, *rows]
        found = handle.execute(self._read_back_sql, (expected[0][0], rows[-1][0])).fetchall()
        if found != expected:
            with late_imports:
                from pmm_shm.ledger.obstacles import interference
            reason = interference(handle, is_dropped=len(found) < len(expected))
            raise LedgerUnwritableError(f"{self.connection.path}: {reason}; nothing was written")

    def _chain_end(self, handle: sqlite3.Connection, newest: RawRow | None) -> tuple[Formula, str | None]:
        """The formula to append with, and the hash to append to.

        Raises:
            ChainError: the newest hashed event fits no formula.
        """
        if newest is not None and newest == self.last_row and self._formula is not None:
            return self._formula, newest[-1]
        if newest is not None and newest[-1] is None:
            newest = handle.execute(_NEWEST_HASHED).fetchone()
        if newest is None:
            self._formula = None
            return "full", None
        hashed = HashedRow._make(newest)
        if self._formula is None or not fits(self._formula, hashed):
            own = detect_formula(hashed)
            if own is None:
                raise ChainError(
                    f"{self.connection.path}: the hash of event {hashed.id} fits no known formula; nothing was "
                    "written. `verify_chain()` names the first bad event"
                )
            first = handle.execute(_FIRST_HASHED).fetchone()
            self._formula = detect_formula(HashedRow._make(first)) or own
        previous: str = hashed.hash
        return self._formula, previous


def _keeps_text(declared: str) -> bool:
    """Whether a column of this declared type stores every text as it is (https://sqlite.org/datatype3.html, 3.1)."""
    kind = declared.upper()
    if "INT" in kind:
        return False
    return not kind or any(word in kind for word in ("CHAR", "CLOB", "TEXT", "BLOB"))


def _hashed_rows(
    events: Sequence[NewEvent], first_id: int, now: str, formula: Formula, last_hash: str | None
) -> list[RawRow]:
    """The rows of events that follow the row with `last_hash`; those without a time get `now`."""
    rows = []
    now_json = canonical_json(now)
    for event_id, (ts, kind, content, meta, kind_json, content_json, meta_json) in enumerate(events, first_id):
        ts_json = now_json if ts is None else canonical_json(ts)
        previous, previous_json = last_hash, canonical_json(last_hash)
        last_hash = hash_of_parts(formula, event_id, ts_json, kind_json, content_json, meta_json, previous_json)
        rows.append((event_id, now if ts is None else ts, kind, content, meta, previous, last_hash))
    return rows


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
