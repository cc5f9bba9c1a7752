"""Appending to the log of record in PostgreSQL: one transaction per call, linear under any number of hosts.

Invariant: the newest hash is read behind the row lock of the ledger, in a statement of its own: at READ COMMITTED it
sees what the holder before has committed. The primary key refuses a row that was computed from an older head.
Invariant: a commit whose answer was lost is decided by the last row's hash, under the same lock: the old transaction
has ended by then. So an event is written once, never twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pmm_shm.errors import (
    HeadMovedError,
    InvalidEventError,
    LedgerBusyError,
    LedgerError,
    LedgerUnwritableError,
    SourceUnreachableError,
    UnknownOutcomeError,
)
from pmm_shm.ledger.append import ExpectedHead
from pmm_shm.ledger.chain import canonical_json, hash_of_parts
from pmm_shm.ledger.new_events import NewEvent
from pmm_shm.ledger.rows import ID_MAX, RawRow, row_digest
from pmm_shm.ledger.source.dsn import psycopg
from pmm_shm.ledger.source.server import Server, one_line
from pmm_shm.ledger.source.tables import EVENT_COLUMNS, channel
from pmm_shm.ledger.sqlite_errors import sleep_between
from pmm_shm.ledger.tail import Position

if TYPE_CHECKING:
    from psycopg import Connection

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_TIMEOUT = "SELECT set_config('lock_timeout', %s, true)"
_LOCK = "SELECT 1 FROM pmm_ledgers WHERE ledger = %s FOR UPDATE"
# One clock for all hosts, read under the lock.
_HEAD = (
    "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"'), head.* "
    f"FROM (SELECT 1) AS one LEFT JOIN LATERAL (SELECT {', '.join(EVENT_COLUMNS)} FROM pmm_events "
    "WHERE ledger = %s ORDER BY id DESC LIMIT 1) AS head ON true"
)
_INSERT = (
    f"INSERT INTO pmm_events (ledger, {', '.join(EVENT_COLUMNS)}) SELECT %s::int, * FROM unnest(%s::bigint[], "
    "%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])"
)
_NEWEST = "SELECT id, hash FROM pmm_events WHERE ledger = %s ORDER BY id DESC LIMIT 1"
_FIND = "SELECT id FROM pmm_events WHERE ledger = %s AND id = %s AND hash = %s"
_NOTIFY = "SELECT pg_notify(%s, '')"
_NOTHING = "; nothing was written"
_RETRY_S_MIN, _RETRY_S_MAX = 0.05, 0.25


class SourceAppender:
    """The writing half of an `EventLog` on a replica; thread-safe, safe across fork.

    Parameters:
        server: the primary.
        timeout_s: how long to wait for other writers and for a lost server.
    """

    def __init__(self, server: Server, timeout_s: float) -> None:
        self._server = server
        self._timeout_s = timeout_s

    def append(self, events: Sequence[NewEvent], expected_head: ExpectedHead | None = None) -> list[RawRow]:
        """Write all events in one transaction, or none. Returns their rows, as PostgreSQL has them.

        Raises:
            HeadMovedError: the log's head is not the expected one.
            InvalidEventError: PostgreSQL cannot store one of them: a text with a NUL.
            SourceUnreachableError: no primary within the timeout; nothing was written.
            UnknownOutcomeError: the connection was lost in the commit, and the outcome could not be found out.
            LedgerError: in one of its other kinds; nothing was written.
        """
        _refuse_nul(events)
        deadline_s = time.monotonic() + self._timeout_s
        driver = psycopg()
        sent: list[RawRow] = []
        with self._server.lock:
            while True:
                try:
                    return self._attempt(events, expected_head, deadline_s, sent)
                except (LedgerError, driver.Error) as error:
                    if not self._may_pass(error) or time.monotonic() >= deadline_s:
                        self._raise(error, sent)
                sleep_between(_RETRY_S_MIN, _RETRY_S_MAX)

    def head(self) -> tuple[int, str] | None:
        """The newest event's id and hash; None for an empty log.

        Raises:
            SourceUnreachableError: no primary, or it does not answer.
        """
        driver = psycopg()
        with self._server.lock:
            try:
                connection = self._server.connection()
                row = connection.execute(_NEWEST, (self._server.known_ledger().number,)).fetchone()
            except driver.Error as error:
                self._server.close()
                raise SourceUnreachableError(f"the ledger {self._server.name!r}: {one_line(error)}") from error
        return None if row is None else (row[0], row[1])

    def close(self) -> None:
        """Close the connection; the next append opens it anew."""
        with self._server.lock:
            self._server.close()

    def _attempt(
        self, events: Sequence[NewEvent], expected_head: ExpectedHead | None, deadline_s: float, sent: list[RawRow]
    ) -> list[RawRow]:
        """One attempt. `sent` gets the rows before the commit is sent: it has them if this is another attempt."""
        connection = self._server.connection()
        ledger = self._server.known_ledger()
        try:
            wait_ms = max(1, int((deadline_s - time.monotonic()) * 1_000))
            with connection.pipeline():
                connection.execute(_BEGIN)
                connection.execute(_TIMEOUT, (f"{wait_ms}ms",))
                connection.execute(_LOCK, (ledger.number,))
                head = connection.execute(_HEAD, (ledger.number,))
            found = head.fetchone()
            assert found is not None
            now, newest = found[0], None if found[1] is None else tuple(found[1:])
            if sent:
                if self._is_written(connection, ledger.number, sent[-1]):
                    connection.execute("ROLLBACK")
                    return sent
                sent.clear()
            if expected_head is not None:
                self._require_head(newest, expected_head)
            if not events:
                connection.execute("ROLLBACK")
                return []
            rows = _rows(events, newest, now, ledger.formula, self._server.name)
            sent[:] = rows
            columns = [list(column) for column in zip(*rows, strict=True)]
            commit = connection.cursor()
            try:
                with connection.pipeline():
                    connection.execute(_INSERT, (ledger.number, *columns))
                    commit.execute("COMMIT")
                    # Within the transaction, it would take a lock of the whole instance.
                    connection.execute(_NOTIFY, (channel(ledger.number),))
            except psycopg().Error as error:
                if commit.statusmessage != "COMMIT":
                    if error.diag.severity_nonlocalized == "ERROR":
                        # An answer: the transaction was rolled back.
                        sent.clear()
                    raise
                # Written; only the notification failed, and followers also look by themselves.
                self._server.close()
            return rows
        except BaseException as error:
            if isinstance(error, LedgerError) and not isinstance(error, SourceUnreachableError):
                connection.execute("ROLLBACK")
            else:
                # In the middle of a transaction, or of a pipeline: another connection is clean.
                self._server.close()
            raise

    def _is_written(self, connection: Connection, number: int, row: RawRow) -> bool:
        return connection.execute(_FIND, (number, row[0], row[-1])).fetchone() is not None

    def _require_head(self, newest: RawRow | None, expected: ExpectedHead) -> None:
        head_id = 0 if newest is None else newest[0]
        if isinstance(expected, Position):
            expected_id = expected.as_of
            is_same = newest is None or row_digest(newest) == expected.anchor
        else:
            expected_id, is_same = expected, True
        if head_id == expected_id and is_same:
            return
        found = (
            f"event {head_id} is another one than the one that was read"
            if head_id == expected_id
            else f"expected event {expected_id} to be the newest, and it is {head_id}"
        )
        raise HeadMovedError(f"the ledger {self._server.name!r}: {found}{_NOTHING}", head_id)

    def _may_pass(self, error: Exception) -> bool:
        """Whether another attempt may succeed."""
        driver = psycopg()
        passing = (SourceUnreachableError, driver.OperationalError, driver.InterfaceError)
        return isinstance(error, passing) and not isinstance(error, driver.errors.LockNotAvailable)

    def _raise(self, error: Exception, sent: list[RawRow]) -> NoReturn:
        """Give up, with the error for the caller. `sent` are rows whose commit was not answered."""
        where, reason = f"the ledger {self._server.name!r}", one_line(error)
        if sent:
            raise UnknownOutcomeError(
                f"{where}: the connection was lost in the commit of event {sent[-1][0]}, and whether it was written "
                f"could not be found out within {self._timeout_s:g} s: {reason}. Look for the event before you append "
                "it again",
                str(sent[-1][-1]),
            ) from error
        if isinstance(error, SourceUnreachableError):
            raise SourceUnreachableError(f"{reason}{_NOTHING}") from error
        if isinstance(error, LedgerError):
            raise error
        if isinstance(error, psycopg().errors.LockNotAvailable):
            raise LedgerBusyError(f"{where}: others held it for {self._timeout_s:g} s{_NOTHING}") from error
        kind = SourceUnreachableError if self._may_pass(error) else LedgerUnwritableError
        raise kind(f"{where}: PostgreSQL: {reason}{_NOTHING}") from error


def _refuse_nul(events: Sequence[NewEvent]) -> None:
    for ts, kind, content, meta, *_ in events:
        if "\0" in kind or "\0" in content or "\0" in meta or (ts is not None and "\0" in ts):
            raise InvalidEventError("a text holds a NUL, which PostgreSQL cannot store; nothing was written")


def _rows(events: Sequence[NewEvent], newest: Any, now: str, formula: Any, name: str) -> list[RawRow]:
    """The rows of events that follow the row `newest`; those without a time get `now`."""
    last_id, last_hash = (0, None) if newest is None else (newest[0], newest[-1])
    if last_id + len(events) > ID_MAX:
        raise LedgerUnwritableError(f"the ledger {name!r}: its ids are used up{_NOTHING}")
    now_json = canonical_json(now)
    rows: list[RawRow] = []
    for event_id, (ts, kind, content, meta, kind_json, content_json, meta_json) in enumerate(events, last_id + 1):
        previous, ts_json = last_hash, now_json if ts is None else canonical_json(ts)
        last_hash = hash_of_parts(
            formula, event_id, ts_json, kind_json, content_json, meta_json, canonical_json(previous)
        )
        rows.append((event_id, now if ts is None else ts, kind, content, meta, previous, last_hash))
    return rows
