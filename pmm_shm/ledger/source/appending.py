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

from pmm_shm import limits
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
from pmm_shm.ledger.new_events import NewEvent, hashed_rows
from pmm_shm.ledger.rows import ID_MAX, RawRow, row_digest
from pmm_shm.ledger.source.dsn import psycopg
from pmm_shm.ledger.source.server import Server, first_line
from pmm_shm.ledger.source.statements import Statement, array, row_of
from pmm_shm.ledger.source.tables import EVENT_COLUMNS, channel
from pmm_shm.ledger.sqlite_errors import sleep_between
from pmm_shm.ledger.tail import Position

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from pmm_shm.ledger.source.session import SourceSession

_BEGIN = Statement("pmm_begin", "BEGIN ISOLATION LEVEL READ COMMITTED")
# The timeout is set before a row is looked for, and so before the lock is waited for.
_LOCK = Statement(
    "pmm_lock",
    "SELECT 1 FROM pmm_ledgers WHERE ledger = $1 AND (SELECT set_config('lock_timeout', $2, true)) IS NOT NULL "
    "FOR UPDATE",
)
# One clock for all hosts, read under the lock.
_HEAD = Statement(
    "pmm_head",
    "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"'), head.* "
    f"FROM (SELECT 1) AS one LEFT JOIN LATERAL (SELECT {', '.join(EVENT_COLUMNS)} FROM pmm_events "
    "WHERE ledger = $1 ORDER BY id DESC LIMIT 1) AS head ON true",
)
_INSERT = Statement(
    "pmm_insert",
    f"INSERT INTO pmm_events (ledger, {', '.join(EVENT_COLUMNS)}) SELECT $1::int, * FROM unnest($2::bigint[], "
    "$3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])",
)
_COMMIT = Statement("pmm_commit", "COMMIT")
_NOTIFY = Statement("pmm_notify", "SELECT pg_notify($1, '')")
_NEWEST = Statement("pmm_newest", "SELECT id, hash FROM pmm_events WHERE ledger = $1 ORDER BY id DESC LIMIT 1")
_FIND = "SELECT id FROM pmm_events WHERE ledger = %s AND id = %s AND hash = %s"
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
        with self._server.held(deadline_s):
            while True:
                try:
                    return self._attempt(events, expected_head, deadline_s, sent)
                except (LedgerError, driver.Error) as error:
                    if not self._may_pass(error) or time.monotonic() >= deadline_s:
                        self._raise(error, sent)
                sleep_between(_RETRY_S_MIN, _RETRY_S_MAX)

    def head(self, deadline_s: float) -> tuple[int, str] | None:
        """The newest event's id and hash; None for an empty log.

        Parameters:
            deadline_s: how long a lost server is waited for, in monotonic seconds.

        Raises:
            SourceUnreachableError: no primary, or it does not answer.
            LedgerBusyError: another thread of this process uses the connection until then.
        """
        driver = psycopg()
        with self._server.held(deadline_s):
            while True:
                try:
                    session = self._server.connection(deadline_s)
                    results, error = session.send((_NEWEST, (self._server.known_ledger().number,)))
                    if error is not None:
                        self._server.close()
                        raise error
                except (LedgerError, driver.Error) as failure:
                    if self._may_pass(failure) and time.monotonic() < deadline_s:
                        pass
                    elif isinstance(failure, LedgerError):
                        raise
                    else:
                        where = f"the ledger {self._server.name!r}"
                        raise SourceUnreachableError(f"{where}: {first_line(failure)}") from failure
                else:
                    row = row_of(results[0])
                    return None if row is None else (int(row[0]), row[1])
                sleep_between(_RETRY_S_MIN, _RETRY_S_MAX)

    def close(self) -> None:
        """Close the connection; the next append opens it anew."""
        with self._server.lock:
            self._server.close()

    def _attempt(
        self, events: Sequence[NewEvent], expected_head: ExpectedHead | None, deadline_s: float, sent: list[RawRow]
    ) -> list[RawRow]:
        """One attempt. `sent` gets the rows before the commit is sent: it has them if this is another attempt."""
        session = self._server.connection(deadline_s)
        ledger = self._server.known_ledger()
        try:
            wait_s = min(deadline_s - time.monotonic(), limits.SOURCE_SILENCE_S / 2)
            results, error = session.send(
                (_BEGIN, ()),
                (_LOCK, (ledger.number, f"{max(1, int(wait_s * 1_000))}ms")),
                (_HEAD, (ledger.number,)),
            )
            if error is not None:
                raise error
            now, newest = _head_of(results[-1])
            if sent:
                if self._is_written(session, ledger.number, sent[-1]):
                    session.execute("ROLLBACK")
                    return sent
                sent.clear()
            if expected_head is not None:
                self._require_head(newest, expected_head)
            if not events:
                session.execute("ROLLBACK")
                return []
            rows = _rows(events, newest, now, ledger.formula, ledger.name)
            sent[:] = rows
            columns = [array(column) for column in zip(*rows, strict=True)]
            # Within the transaction, the notification would take a lock of the whole instance.
            results, error = session.send(
                (_INSERT, (ledger.number, *columns)), (_COMMIT, ()), (_NOTIFY, (channel(ledger.number),))
            )
            if error is not None:
                if len(results) < 2:
                    if error.diag.severity_nonlocalized == "ERROR":
                        # An answer: the transaction was rolled back.
                        sent.clear()
                    raise error
                # Written; only the notification failed, and followers also look by themselves.
                self._server.close()
            return rows
        except BaseException as error:
            is_refused = isinstance(error, LedgerError) and not isinstance(error, SourceUnreachableError)
            if is_refused or isinstance(error, psycopg().errors.LockNotAvailable):
                session.execute("ROLLBACK")
            else:
                # In the middle of a transaction, or of a pipeline: another connection is clean.
                self._server.close()
            raise

    def _is_written(self, session: SourceSession, number: int, row: RawRow) -> bool:
        return session.execute(_FIND, (number, row[0], row[-1])).fetchone() is not None

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
        return isinstance(error, passing)

    def _raise(self, error: Exception, sent: list[RawRow]) -> NoReturn:
        """Give up, with the error for the caller. `sent` are rows whose commit was not answered."""
        where, reason = f"the ledger {self._server.name!r}", first_line(error)
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


def _head_of(result: PGresult) -> tuple[str, RawRow | None]:
    """The server's time, and the newest row."""
    now, *row = row_of(result) or ()
    assert now is not None
    return now, None if row[0] is None else (int(row[0]), *row[1:])


def _refuse_nul(events: Sequence[NewEvent]) -> None:
    for ts, kind, content, meta, *_ in events:
        if "\0" in kind or "\0" in content or "\0" in meta or (ts is not None and "\0" in ts):
            raise InvalidEventError("a text holds a NUL, which PostgreSQL cannot store; nothing was written")


def _rows(events: Sequence[NewEvent], newest: Any, now: str, formula: Any, name: str) -> list[RawRow]:
    """The rows of events that follow the row `newest`; those without a time get `now`."""
    last_id, last_hash = (0, None) if newest is None else (newest[0], newest[-1])
    if last_id + len(events) > ID_MAX:
        raise LedgerUnwritableError(f"the ledger {name!r}: its ids are used up{_NOTHING}")
    return hashed_rows(events, last_id + 1, now, formula, last_hash)
