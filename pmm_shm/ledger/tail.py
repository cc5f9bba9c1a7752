"""The bounded, read-only tail: the anchor's row and what follows it, in one statement.

Shared by the daemon, the clients' catch-up, full replays and verification. One call is one statement, bounded in rows,
bytes and span of ids; all rows are fetched before any is looked at, and no statement stays open: an unfinished one
would block the writer of a rollback-journal ledger, and let a WAL grow without end.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.rows import RawRow, row_digest

_BEFORE_ALL = -(1 << 63)


class Position(NamedTuple):
    """A place in the log: the newest event that is folded, and the digest of its row (the anchor).

    `event_id` is None before the first event.
    """

    event_id: int | None
    anchor: bytes

    @property
    def as_of(self) -> int:
        """The event id as results report it: 0 before the first event."""
        return self.event_id or 0


START = Position(None, b"")


class Tail(NamedTuple):
    """What one call found.

    Attributes:
        rows: raw rows after the position, ascending, one more column behind each (the head's id).
        position: where the log stands after `rows`.
        is_anchored: False when the row of the given position is not there, or is another one: the log was truncated,
            replaced or edited, and what was folded so far counts for nothing.
        is_complete: whether `position` was the head of the log in this statement.
    """

    rows: list[RawRow]
    position: Position
    is_anchored: bool
    is_complete: bool


class TailReader:
    """Reads the tail through one read-only connection; call it with the connection's lock held.

    Parameters:
        connection: a `Connection` in mode `ro`.
        kinds: the event kinds to fetch; None for all. The head's row is fetched whatever its kind, so that the position
            always is the head.
    """

    def __init__(self, connection: Connection, kinds: Collection[str] | None) -> None:
        self._connection = connection
        self._kinds = None if kinds is None else tuple(sorted(kinds))
        self._statement: tuple[int, str] = (-1, "")
        self._few: tuple[int, str] = (-1, "")

    def read(self, after: Position, rows_max: int = limits.TAIL_ROWS_MAX) -> Tail:
        """The rows behind `after`, at most `rows_max` of them.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        rows = self._fetch(after.event_id, rows_max + 1)
        if after.event_id is None:
            return self._tail(rows, after)
        return self._behind(rows, after)

    def _behind(self, rows: list[RawRow], after: Position) -> Tail:
        if not rows or rows[0][0] != after.event_id or self._digest(rows[0]) != after.anchor:
            return Tail([], after, False, False)
        head = rows[0][-1]
        tail = self._tail(rows[1:], after)
        return tail._replace(is_complete=tail.position.event_id == head)

    def read_few(self, after: Position) -> Tail:
        """Up to `limits.TAIL_FEW_ROWS` rows behind `after`, of whatever kind: half the cost of `read` for as many.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        assert after.event_id is not None
        rows = fetch_batch(self._connection, self._sql_few, (after.event_id,), limits.TAIL_FEW_ROWS + 1).rows
        return self._behind(rows, after)

    def position_of(self, row: RawRow) -> Position:
        """The position at a row that `read` gave."""
        return Position(row[0], self._digest(row))

    def _tail(self, rows: list[RawRow], after: Position) -> Tail:
        if not rows:
            return Tail([], after, True, True)
        last = rows[-1]
        return Tail(rows, self.position_of(last), True, last[0] == last[-1])

    def _digest(self, row: RawRow) -> bytes:
        return row_digest(row[:-1])

    def _fetch(self, after_id: int | None, rows_max: int) -> list[RawRow]:
        lower = _BEFORE_ALL if after_id is None else after_id
        parameters: tuple[Any, ...] = (lower, lower, limits.TAIL_SPAN_IDS, lower)
        if self._kinds is not None:
            parameters += (*self._kinds, lower)
        return fetch_batch(self._connection, self._sql, parameters, rows_max).rows

    def _sql(self) -> str:
        epoch, sql = self._statement
        if epoch != self._connection.epoch:
            sql = _select(ordered_columns(self._connection.columns), self._kinds)
            self._statement = (self._connection.epoch, sql)
        return sql

    def _sql_few(self) -> str:
        epoch, sql = self._few
        if epoch != self._connection.epoch:
            columns = ", ".join(map(_quoted, ordered_columns(self._connection.columns)))
            sql = f"SELECT {columns}, (SELECT max(id) FROM events) FROM events WHERE id >= ? ORDER BY id LIMIT ?"
            self._few = (self._connection.epoch, sql)
        return sql


def ordered_columns(columns: Collection[str]) -> list[str]:
    """The columns of a raw row: the five of every ledger first, then whatever else the table has."""
    first = ["id", "ts", "kind", "content", "meta"]
    return first + [name for name in columns if name not in first]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _select(columns: list[str], kinds: tuple[str, ...] | None) -> str:
    """One statement, one snapshot: the anchor's row, the tail, the head's id.

    `hi` bounds the scan where few kinds match, counted from the first row behind the anchor, so that a gap of any size
    is one step. `+kind` keeps SQLite from the (kind, id) index, which would turn the walk in rowid order into a sort.
    Values are bound by their place: Python 3.14 takes numbered ones for names.
    """
    marks = ", ".join("?" for _ in kinds or ())
    wanted = (
        ""
        if kinds is None
        else f" AND (+kind IN ({marks}) OR id = ? OR id = (SELECT max(id) FROM events WHERE id <= hi))"
    )
    return (
        "WITH bound(hi) AS (SELECT coalesce((SELECT min(id) FROM events WHERE id > ?), ?) + ?) "
        f"SELECT {', '.join(_quoted(name) for name in columns)}, (SELECT max(id) FROM events) "
        f"FROM bound CROSS JOIN events WHERE id >= ? AND id <= hi{wanted} ORDER BY id LIMIT ?"
    )
