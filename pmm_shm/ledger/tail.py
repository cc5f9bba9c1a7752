"""The bounded, read-only tail: the anchor's row and the rows behind it, as of one moment.

Shared by the daemon, the clients' catch-up, full replays and verification. One call is bounded in rows, bytes and span
of ids; all rows are fetched before any is looked at, and no statement stays open: an unfinished one would block the
writer of a rollback-journal ledger, and let a WAL grow without end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from pmm_shm import limits
from pmm_shm.errors import NotALedgerError
from pmm_shm.late import late_imports
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import Batch, fetch_batch
from pmm_shm.ledger.opening import LedgerFile
from pmm_shm.ledger.rows import REQUIRED_COLUMNS, RawRow, not_integers, row_digest
from pmm_shm.typed import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from pmm_shm.ledger.sparse import SparseReader

_ID_MIN, _ID_MAX = -(1 << 63), (1 << 63) - 1
_NO_PLACES: Mapping[str, int] = MappingProxyType({})
_NO_ROWS: Sequence[RawRow] = ()
# The class of a named tuple takes three times as long, and code that a process which has slept has to fetch.
_new_tuple = tuple.__new__


class Positioned(Protocol):
    """What was read at one position of the log."""

    @property
    def position(self) -> Position: ...


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

    def is_before(self, other: Position) -> bool:
        """Whether events follow this position up to the other one."""
        mine, theirs = self.event_id, other.event_id
        return theirs is not None and (mine is None or mine < theirs)


START = Position(None, b"")


class Tail(NamedTuple):
    """The rows behind a position, as one call found them.

    Attributes:
        rows: raw rows behind the position, ascending. The first five columns are in all of them. A short tail holds
            whole rows of every kind; a long one holds those columns and the wanted kinds only, unless the reader was
            asked for whole rows.
        position: the position behind `rows`, and behind rows of other kinds.
        is_anchored: False when the row of the given position is gone or has changed: the log was truncated, replaced or
            edited, and everything folded so far is void.
        is_complete: whether `position` was the head of the log at that moment, or the last event to be read.
        left_out: number of rows of wanted kinds that are not in `rows`, because newer ones make them irrelevant.
        places: where in the rows the other columns are that a `WideTailReader` was asked for.
    """

    rows: Sequence[RawRow]
    position: Position
    is_anchored: bool
    is_complete: bool
    left_out: int = 0
    places: Mapping[str, int] = _NO_PLACES

    @property
    def event_count(self) -> int:
        """The number of events that the rows stand for."""
        return len(self.rows) + self.left_out


class TailReader:
    """Reads the tail through one read-only connection; call it with the connection's lock held.

    Parameters:
        connection: a `Connection` in mode `ro`.
        kinds: the event kinds to fetch; None for all. The position moves on over events of other kinds.
        whole_rows: fetch all columns of all rows, as seals need them; `kinds` must be None.
        newest: gives the kinds of which only so many of the newest rows of a tail are wanted, as long as each content
            is text. Of a long tail the others are left out.
    """

    # Whether it fetches other columns, too: long tails are not joined then, since their values may be no text.
    _is_wide = False

    def __init__(
        self,
        connection: Connection,
        kinds: Collection[str] | None,
        *,
        whole_rows: bool = False,
        newest: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        assert not (whole_rows and kinds is not None)
        self._connection = connection
        self._kinds = None if kinds is None else tuple(sorted(kinds))
        self._whole_rows = whole_rows
        self._newest = newest
        self._sparse: SparseReader | None = None
        # Of the connection, when its columns were looked at last.
        self._file: LedgerFile | None = None
        self._select = self._behind_sql = self._two_sql = ""
        self._first_sql = self._needed_sql(_FIRST_CONDITION)
        self._next_sql = self._needed_sql(_NEXT_CONDITION)

    def read(self, after: Position, rows_max: int = limits.TAIL_ROWS_MAX, until_id: int | None = None) -> Tail:
        """The rows behind `after`, at most `rows_max` of them; by default as many as make a good batch.

        Parameters:
            until_id: take the log to end with this event.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if self._whole_rows:
            return _cut(self._checked(self._whole_tail(after, rows_max)), after, until_id)
        is_long = self._sparse is not None
        if after.event_id is not None and until_id is None and rows_max >= limits.TAIL_FEW_ROWS and not is_long:
            # Usually few rows follow a position, or none, and one statement costs half of those below.
            short = self._short_tail(after)
            if short.is_complete or not short.is_anchored:
                return short
        return self._checked(self._needed_tail(after, rows_max, until_id))

    def read_holding(self, earlier: Position, after: Position) -> tuple[bool, Tail]:
        """Whether the log holds a position before `after`, and the rows behind `after`; one statement if they are few.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        try:
            handle = self._connection.handle()
            if self._file is not self._connection.file:
                self._look_at_columns()
            parameters = earlier.event_id, after.event_id, limits.TAIL_FEW_ROWS + 3
            rows = handle.execute(self._two_sql, parameters).fetchall()
        except sqlite3.Error:
            return self.holds(earlier), self.read(after)
        is_held = bool(rows) and _is_at(rows[0], earlier)
        if rows and rows[0][0] == earlier.event_id:
            del rows[0]
        tail = self._few(rows, after)
        return is_held, tail if tail.is_complete or not tail.is_anchored else self.read(after)

    def holds(self, position: Position) -> bool:
        """Whether the row of the position is still the same: the log continues it.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if position.event_id is None:
            return True
        rows = self._batch(_ONE_SQL, (position.event_id,), 1).rows
        return bool(rows) and _is_at(rows[0], position)

    def position_before(self, event_id: int) -> Position:
        """The position at the newest event with a lower id; the start of the log where there is none.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        rows = self._batch(_NEWEST_SQL, (event_id - 1,), 1).rows if event_id > _ID_MIN else []
        return position_of(rows[0]) if rows else START

    def _needed_tail(self, after: Position, rows_max: int, until_id: int | None) -> Tail:
        """Rows with the columns and of the kinds that folds need."""
        with self._connection.one_snapshot():
            if not self.holds(after):
                return Tail([], after, False, False)
            end_id = _ID_MAX if until_id is None else until_id
            if after.event_id is not None and end_id <= after.event_id:
                return Tail([], after, True, True)
            sql, lower_id = (self._first_sql, _ID_MIN) if after.event_id is None else (self._next_sql, after.event_id)
            sparse, rows = None, _NO_ROWS
            if self._sparse is not None and after.event_id is not None and rows_max >= limits.TAIL_ROWS_MAX:
                sparse = self._sparse.read(lower_id, end_id)
            if sparse is None:
                upper_id = self._upper(lower_id, end_id)
                parameters = (lower_id, upper_id, *(self._kinds or ()))
                rows, is_all = fetch_batch(self._connection, sql, parameters, rows_max)
                last_id = upper_id if is_all else rows[-1][0] if rows else lower_id
                is_all = is_all and upper_id == end_id
            else:
                rows, last_id, is_all, _ = sparse
            newest = self._batch(_NEWEST_SQL, (last_id,), 1).rows
            if not newest:
                return Tail([], after, True, is_all)
            position = position_of(newest[0])
            is_complete = is_all or self._is_head(position)
            if is_complete:
                self._sparse = None
            elif self._sparse is None and self._kinds is not None and not self._is_wide:
                # More rows follow.
                with late_imports:
                    from pmm_shm.ledger.sparse import SparseReader
                self._sparse = SparseReader(self._connection, self._kinds, self._newest())
            return Tail(rows, position, True, is_complete, 0 if sparse is None else sparse.left_out)

    def _short_tail(self, after: Position) -> Tail:
        """Up to `limits.TAIL_FEW_ROWS` whole rows of any kind."""
        # No retry and no decoding here: the whole tail has both, for a busy ledger and for text that is not UTF-8.
        try:
            handle = self._connection.handle()
            if self._file is not self._connection.file:
                self._look_at_columns()
            # One statement, one moment: the anchor's row, the tail, and one row more where the tail is longer.
            rows = handle.execute(self._behind_sql, (after.event_id, limits.TAIL_FEW_ROWS + 2)).fetchall()
        except sqlite3.Error:
            return self._checked(self._whole_tail(after, limits.TAIL_FEW_ROWS))
        return self._few(rows, after)

    def _few(self, rows: list[RawRow], after: Position) -> Tail:
        """The tail behind `after`, given whole rows: that of the position, and those of a short tail and one more."""
        if not rows or not _is_at(rows[0], after):
            return Tail([], after, False, False)
        if len(rows) == 1:
            return Tail([], after, True, True)
        few = rows[1 : limits.TAIL_FEW_ROWS + 1]
        tail = _new_tuple(Tail, (few, position_of(few[-1]), True, len(few) == len(rows) - 1, 0, _NO_PLACES))
        # As `_checked`, which few ledgers need.
        may_mix_ids = self._file is None or self._file.schema.may_mix_ids
        return self._checked(tail) if may_mix_ids or type(few[-1][0]) is not int else tail

    def _whole_tail(self, after: Position, rows_max: int) -> Tail:
        """Up to `rows_max` whole rows of any kind."""
        if after.event_id is None:
            rows, is_all = self._batch(_FIRST_SQL, (), rows_max)
        else:
            rows, is_all = self._batch(_BEHIND_SQL, (after.event_id,), rows_max + 1)
            if not rows or not _is_at(rows[0], after):
                return Tail([], after, False, False)
            del rows[0]
        position = position_of(rows[-1]) if rows else after
        return Tail(rows, position, True, is_all or self._is_head(position))

    def _is_head(self, position: Position) -> bool:
        """Whether no row follows the position."""
        head_id: object = fetch_batch(self._connection, _HEAD_SQL, (), 1).rows[0][0]
        return head_id == position.event_id

    def _upper(self, lower_id: int, end_id: int) -> int:
        """Up to which id one statement may go: a scan where few kinds match has to end, too."""
        if self._kinds is None:
            return end_id
        # Counted from the first row, so that a gap of any size is one step.
        first_id = fetch_batch(self._connection, _FIRST_ID_SQL, (lower_id,), 1).rows[0][0]
        if first_id is None:
            return end_id
        if type(first_id) is not int:
            raise self._not_integers(first_id)
        return min(first_id + limits.TAIL_SPAN_IDS, end_id)

    def _checked(self, tail: Tail) -> Tail:
        """The tail; raises where an id is no integer."""
        if tail.rows and self._connection.schema.may_mix_ids:
            for row in tail.rows:
                if type(row[0]) is not int:
                    raise self._not_integers(row[0])
        # Of an event that is not needed, only the id of the last is read.
        if type(tail.position.event_id) is not int and tail.position.event_id is not None:
            raise self._not_integers(tail.position.event_id)
        return tail

    def _not_integers(self, event_id: object) -> NotALedgerError:
        return not_integers(self._connection.path, f"holds {event_id!r:.80}, not an integer")

    def _batch(self, sql: str, parameters: tuple[Any, ...], rows_max: int) -> Batch:
        """Rows with all columns."""
        return fetch_batch(self._connection, lambda: self._sql(sql), parameters, rows_max)

    def _needed_sql(self, condition: str) -> str | Callable[[], str]:
        """The statement for the rows and columns that folds need."""
        return _events_sql(condition, self._kinds)

    def _sql(self, sql: str) -> str:
        if self._file is not self._connection.file:
            self._look_at_columns()
        return self._select + sql

    def _look_at_columns(self) -> None:
        self._file = self._connection.file
        columns = ", ".join(map(_quoted, ordered_columns(self._connection.columns)))
        self._select = f"SELECT {columns} FROM events "
        self._behind_sql = self._select + _BEHIND_SQL
        self._two_sql = f"{self._select}WHERE id = ? UNION ALL {self._select}WHERE id >= ? ORDER BY 1 LIMIT ?"


class WideTailReader(TailReader):
    """A tail reader that fetches other columns, too, and says in `Tail.places` where they are.

    Parameters:
        columns: their names; one that the table lacks has no place in whole rows, and is NULL in others.
    """

    _is_wide = True

    def __init__(
        self,
        connection: Connection,
        kinds: Collection[str] | None,
        columns: Sequence[str],
        *,
        whole_rows: bool = False,
    ) -> None:
        self._columns = tuple(columns)
        self._needed_places = {name: len(REQUIRED_COLUMNS) + number for number, name in enumerate(columns)}
        self._whole_places = _NO_PLACES
        self._has_whole_rows = True
        super().__init__(connection, kinds, whole_rows=whole_rows)

    def read(self, after: Position, rows_max: int = limits.TAIL_ROWS_MAX, until_id: int | None = None) -> Tail:
        self._has_whole_rows = True
        with self._connection.one_snapshot():
            if not set(self._columns) <= self._connection.schema.columns.keys():
                # It may have been added just now, and a value must not be taken for None.
                self._connection.follow_schema()
            tail = super().read(after, rows_max, until_id)
        return tail._replace(places=self._whole_places if self._has_whole_rows else self._needed_places)

    def read_holding(self, earlier: Position, after: Position) -> tuple[bool, Tail]:
        return self.holds(earlier), self.read(after)

    def _needed_tail(self, after: Position, rows_max: int, until_id: int | None) -> Tail:
        self._has_whole_rows = False
        return super()._needed_tail(after, rows_max, until_id)

    def _needed_sql(self, condition: str) -> str | Callable[[], str]:
        def sql() -> str:
            there = self._connection.columns
            others = "".join(f", {_quoted(name) if name in there else 'NULL'}" for name in self._columns)
            return _events_sql(condition, self._kinds, others)

        return sql

    def _look_at_columns(self) -> None:
        super()._look_at_columns()
        columns = ordered_columns(self._connection.columns)
        self._whole_places = {name: columns.index(name) for name in self._columns if name in columns}


def head_of(connection: Connection) -> int:
    """The newest event's id; 0 for an empty ledger."""
    with connection.lock:
        handle = connection.handle()
        rows = connection.retry(lambda: handle.execute("SELECT max(id) FROM events").fetchall())
    head_id = rows[0][0] or 0
    if type(head_id) is not int:
        raise not_integers(connection.path, f"holds {head_id!r:.80}, not an integer")
    return head_id


def oldest_of(connection: Connection) -> int | None:
    """The oldest event's id; None for an empty ledger."""
    with connection.lock:
        found: int | None = fetch_batch(connection, "SELECT min(id) FROM events LIMIT ?", (), 1).rows[0][0]
    return found


def position_of(row: RawRow) -> Position:
    """The position at a row with all its columns."""
    return _new_tuple(Position, (row[0], row_digest(row)))


def _is_at(row: RawRow, position: Position) -> bool:
    """Whether the position was taken at this row with all its columns.

    Columns that were added to the table since then are the last ones, and the digest does not cover them.
    """
    if row[0] != position.event_id:
        return False
    return row_digest(row) == position.anchor or any(
        row_digest(row[:count]) == position.anchor for count in range(len(REQUIRED_COLUMNS), len(row))
    )


def _cut(tail: Tail, after: Position, until_id: int | None) -> Tail:
    """A tail of whole rows that ends with event `until_id`."""
    if until_id is None or not tail.rows or tail.rows[-1][0] < until_id:
        return tail
    rows = [row for row in tail.rows if row[0] <= until_id]
    return Tail(rows, position_of(rows[-1]) if rows else after, True, True)


_FIRST_CONDITION = "id >= ?"
_NEXT_CONDITION = "id > ?"
_ONE_SQL = "WHERE id = ? LIMIT ?"
_NEWEST_SQL = "WHERE id <= ? ORDER BY id DESC LIMIT ?"
_FIRST_SQL = f"WHERE id >= {_ID_MIN} ORDER BY id LIMIT ?"
_BEHIND_SQL = "WHERE id >= ? ORDER BY id LIMIT ?"
_HEAD_SQL = "SELECT max(id) FROM events LIMIT ?"
_FIRST_ID_SQL = "SELECT min(id) FROM events WHERE id > ? LIMIT ?"


def _events_sql(condition: str, kinds: tuple[str, ...] | None, others: str = "") -> str:
    """The columns that folds need; the position is read beside them, since whole rows cost as much again.

    `+kind` keeps SQLite from the (kind, id) index, which would turn the walk in rowid order into a sort.
    """
    wanted = "" if kinds is None else f" AND +kind IN ({', '.join('?' for _ in kinds)})"
    columns = f"id, ts, kind, content, meta{others}"
    return f"SELECT {columns} FROM events WHERE {condition} AND id <= ?{wanted} ORDER BY id LIMIT ?"


def ordered_columns(columns: Collection[str]) -> list[str]:
    """The columns of a raw row: the five of every ledger first, then any others of the table."""
    first = ["id", "ts", "kind", "content", "meta"]
    return first + [name for name in columns if name not in first]


def _quoted(name: str) -> str:
    # With the table's name: SQLite takes a quoted name alone, if there is no such column any more, for a text.
    return 'events."' + name.replace('"', '""') + '"'
