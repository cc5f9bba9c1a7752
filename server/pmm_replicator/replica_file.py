"""Writing the replica: whole batches, each behind the head that it was pulled for.

Invariant: only this module inserts into a replica or deletes from it, and each transaction looks at the head again: of
two followers on one replica, the later one starts over.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pmm_shm.crash_points import crash_point
from pmm_shm.errors import LedgerUnwritableError, NotALedgerError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.replicas import GUARD, ReplicaRecord, make_replica, read_record, write_record
from pmm_shm.ledger.rows import RawRow
from pmm_shm.ledger.schema import create_ledger
from pmm_shm.ledger.source.tables import EVENT_COLUMNS

_T = TypeVar("_T")
_COLUMNS = ", ".join(EVENT_COLUMNS)
_HEAD = f"SELECT {_COLUMNS} FROM events ORDER BY id DESC LIMIT 1"
_INSERT = f"INSERT INTO events ({_COLUMNS}) VALUES ({', '.join('?' * len(EVENT_COLUMNS))})"


class HeadMoved(Exception):
    """The replica's head is another than the one that a batch was pulled for."""


class ReplicaFile:
    """One replica, opened for writing; not thread-safe.

    Parameters:
        path: the ledger; made as a replica where there is no file, or an empty ledger.
        first_record: the record to begin with; None if the replica must exist.
        is_in_source: whether the source has a row: a ledger that was imported there becomes a replica as it is.

    Raises:
        NotALedgerError: the file is a ledger with events that the source does not have.
        LedgerError: in one of its kinds.
    """

    def __init__(
        self,
        path: str,
        first_record: ReplicaRecord | None = None,
        is_in_source: Callable[[RawRow], bool] = lambda row: False,
    ) -> None:
        if first_record is not None:
            create_ledger(path, 30.0)
        self._connection = Connection(path, "rw")
        self.path = self._connection.path
        self._prepared_epoch = -1
        if first_record is not None:
            self._transact(lambda handle: self._make(handle, first_record, is_in_source))
        record = self._with_handle(lambda handle: read_record(handle, self.path))
        if record is None:
            raise NotALedgerError(f"{self.path}: not a replica")
        self.record = record

    @property
    def reader(self) -> Connection:
        """The connection, for reads under its lock."""
        return self._connection

    def head(self) -> RawRow | None:
        """The newest row; None in an empty replica."""
        return self._with_handle(_head)

    def rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[RawRow]:
        """The rows of a SELECT over the replica."""
        return self._with_handle(lambda handle: handle.execute(sql, parameters).fetchall())

    def insert(self, rows: Sequence[RawRow], head: RawRow | None, timeline: int) -> None:
        """Insert rows behind `head`, and note the server's timeline.

        Raises:
            HeadMoved: the head is another by now; nothing was written.
        """

        def write(handle: sqlite3.Connection) -> None:
            if _head(handle) != head:
                raise HeadMoved
            handle.executemany(_INSERT, rows)
            crash_point("replica.inserted")
            self._note(handle, self.record._replace(timeline=max(timeline, self.record.timeline)))

        self._transact(write)
        crash_point("replica.committed")

    def replace_tail(self, kept: RawRow | None, rows: Sequence[RawRow], head: RawRow | None, timeline: int) -> None:
        """Delete all rows behind `kept` and insert others, in one transaction: a fork is resolved.

        Raises:
            HeadMoved: the head is not `head` any more; nothing was written.
        """

        def write(handle: sqlite3.Connection) -> None:
            if _head(handle) != head:
                raise HeadMoved
            kept_id = 0 if kept is None else kept[0]
            handle.execute("DELETE FROM events WHERE id > ?", (kept_id,))
            # The next ids are those of the source, lower than the highest that was used.
            handle.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'", (kept_id,))
            crash_point("replica.deleted")
            handle.executemany(_INSERT, rows)
            self._note(handle, self.record._replace(timeline=timeline, forks=self.record.forks + 1))

        self._transact(write)
        crash_point("replica.fork_resolved")

    def note(self, **values: Any) -> None:
        """Change the record."""
        self._transact(lambda handle: self._note(handle, self.record._replace(**values)))

    def close(self) -> None:
        self._connection.close()

    def _make(self, handle: sqlite3.Connection, record: ReplicaRecord, is_in_source: Callable[[RawRow], bool]) -> None:
        known, head = read_record(handle, self.path), _head(handle)
        if known is None and head is not None and not is_in_source(head):
            raise NotALedgerError(
                f"{self.path}: its event {head[0]} is not in the source {record.name!r}; nothing was changed. To move "
                "a ledger into PostgreSQL: pmm-shm cluster init DSN --name NAME --import LEDGER"
            )
        if known is None:
            make_replica(handle, record)
            return
        if known.identity != record.identity:
            raise NotALedgerError(
                f"{self.path}: a replica of another ledger ({known.name!r}, {known.identity}); nothing was changed"
            )
        self.record = known
        # A server may have moved; the name may have been given in another way.
        self._note(handle, known._replace(dsn=record.dsn, name=record.name))

    def _note(self, handle: sqlite3.Connection, record: ReplicaRecord) -> None:
        if record != getattr(self, "record", None):
            write_record(handle, record)
        self.record = record

    def _transact(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        def run(handle: sqlite3.Connection) -> _T:
            self._connection.retry(lambda: handle.execute("BEGIN IMMEDIATE"))
            before = getattr(self, "record", None)
            try:
                result = action(handle)
                handle.execute("COMMIT")
            except BaseException:
                if before is not None:
                    self.record = before
                if handle.in_transaction:
                    handle.execute("ROLLBACK")
                raise
            return result

        return self._with_handle(run)

    def _with_handle(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        connection = self._connection
        connection.follow_replacement()
        with connection.lock:
            connection.require_lock()
            handle = connection.handle()
            if connection.epoch != self._prepared_epoch:
                handle.create_function(GUARD, 0, lambda: None, deterministic=True)
                handle.execute("PRAGMA synchronous = NORMAL")
                self._prepared_epoch = connection.epoch
            try:
                return action(handle)
            except sqlite3.Error as error:
                raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> Exception:
        made = self._connection.translate(error)
        if isinstance(made, LedgerUnwritableError) and not os.access(self.path, os.W_OK):
            return LedgerUnwritableError(f"{self.path}: no permission to write the replica")
        return made


def _head(handle: sqlite3.Connection) -> RawRow | None:
    rows = handle.execute(_HEAD).fetchall()
    return rows[0] if rows else None
