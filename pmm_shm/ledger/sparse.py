"""Long tails, read in few steps: rows joined into texts by SQLite, and of some kinds only the newest rows.

A row that comes by itself costs a step of SQLite and several objects. Thousands that come joined cost one step, and
meanwhile other threads run Python. They stay columns until somebody asks for a row. Of some kinds only the newest rows
of a batch make a difference: of the others it has to be known that their content is text, so it is joined, too, and
thrown away.

Invariant: the rows are those of a plain statement. Where other values could give the same texts, or a value is
unusual, none is returned, and the caller fetches them one by one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.text_rows import TextRows

_SEPARATOR = "\x1f"
_TS_BYTES_MAX = 64
_RANGE = "FROM events WHERE id > ? AND id <= ?"
_ZERO_SQL = "SELECT group_concat(char(0) || 'a')"
_FIRST_ID_SQL = f"SELECT min(id) {_RANGE} LIMIT ?"
# By the index on the kinds, where there is one. Nobody wants the meta of these kinds.
_NEWEST_SQL = f"""
SELECT * FROM (
    SELECT id, ts, kind, content, '' AS meta {_RANGE} AND kind = ? COLLATE BINARY ORDER BY id DESC LIMIT ?
)"""


def _joined(column: str, condition: str = "TRUE") -> str:
    """The values of a column as one text; not valid as UTF-8 unless all are texts that meet the condition."""
    is_usual = f"typeof({column}) = 'text' AND {condition}"
    return f"group_concat(CASE WHEN {is_usual} THEN {column} ELSE x'ff' END, char({ord(_SEPARATOR)}))"


_CONTENTS = _joined("content", "length(CAST(content AS BLOB)) <= ?")
_JOINED_ROWS = ", ".join(
    (
        f"count(*), group_concat(id, char({ord(_SEPARATOR)}))",
        _joined("ts", f"length(CAST(ts AS BLOB)) <= {_TS_BYTES_MAX}"),
        _joined("kind"),
        _joined("content", "length(CAST(content AS BLOB)) + length(CAST(meta AS BLOB)) <= ?"),
        _joined("meta"),
    )
)


class SparseBatch(NamedTuple):
    """The rows up to `last_id`, in the order of their ids; whether the range ends there; how many were left out."""

    rows: TextRows
    last_id: int
    complete: bool
    left_out: int


class _SeparatorError(ValueError):
    """Joined values cannot be told apart: one holds the separator."""


class SparseReader:
    """Reads ranges of ids, with the newest rows alone of some kinds.

    Parameters:
        connection: a read-only connection; the caller holds its lock, and one snapshot.
        kinds: all kinds that are wanted.
        newest: those of which only so many of the newest rows are wanted.
    """

    def __init__(self, connection: Connection, kinds: Collection[str], newest: Mapping[str, int]) -> None:
        self._connection = connection
        self._newest = newest
        self._others = tuple(kind for kind in kinds if kind not in newest)
        self._rows_sql = f"SELECT {_JOINED_ROWS} {_RANGE} {_of_kinds(self._others)}"
        self._texts_sql = f"SELECT count(*), {_CONTENTS} {_RANGE} {_of_kinds(newest)}"
        self._newest_sql = f"SELECT {_JOINED_ROWS} FROM ({' UNION ALL '.join([_NEWEST_SQL] * len(newest))})"
        self._span = limits.JOINED_IDS_MIN
        self._known_of: tuple[int, int] | None = None
        self._is_exact = False

    def read(self, lower_id: int, upper_id: int) -> SparseBatch | None:
        """The rows behind `lower_id`, up to `upper_id` or an earlier event; None where every row has to be looked at: a
        value is not text, or very long.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if self._connection.shape is not None or self._connection.schema.may_mix_ids:
            # The columns of another program's table are expressions, which no index serves.
            return None
        if not self._can_join():
            return None
        while True:
            try:
                return self._read(lower_id, upper_id)
            except (sqlite3.Error, _SeparatorError):
                if self._span == limits.JOINED_IDS_MIN:
                    return None
                # Because of one value, only few rows are fetched one by one.
                self._span = limits.JOINED_IDS_MIN

    def _read(self, lower_id: int, upper_id: int) -> SparseBatch:
        span = self._span
        # Counted from the first row, so that a gap of any size is one step.
        first_id = fetch_batch(self._connection, _FIRST_ID_SQL, (lower_id, upper_id), 1).rows[0][0]
        if first_id is None:
            return SparseBatch(_rows(0, ()), upper_id, True, 0)
        last_id = min(first_id + span - 1, upper_id)
        ids = (first_id - 1, last_id)
        bytes_max = limits.JOINED_BYTES_MAX // span
        count, *columns = self._run(self._rows_sql, (bytes_max, *ids, *self._others))
        rows = _rows(count, columns)
        left_out, *texts = self._run(self._texts_sql, (bytes_max, *ids, *self._newest))
        if left_out:
            wanted = [value for kind, number in self._newest.items() for value in (*ids, kind, number)]
            count, *newest = self._run(self._newest_sql, (bytes_max, *wanted))
            rows.merge(_rows(count, newest))
            left_out -= count
        chars = sum(len(text) for text in (*columns, *texts) if text is not None)
        if chars > limits.JOINED_CHARS:
            self._span = max(span // 2, limits.JOINED_IDS_MIN)
        elif chars < limits.JOINED_CHARS // 2:
            self._span = min(span * 2, limits.JOINED_IDS_MAX)
        return SparseBatch(rows, last_id, last_id == upper_id, left_out)

    def _run(self, sql: str, parameters: tuple[Any, ...]) -> Any:
        # Without a retry: if it fails, the caller fetches the rows one by one, with retries.
        return self._connection.handle().execute(sql, parameters).fetchall()[0]

    def _can_join(self) -> bool:
        """Whether what SQLite joins is what the rows hold: not in UTF-16, since a conversion replaces what is invalid,
        nor by a version that ends a joined text at a zero.
        """
        if self._known_of != self._connection.identity:
            handle = self._connection.handle()
            encoding, zero = handle.execute("PRAGMA encoding").fetchall(), handle.execute(_ZERO_SQL).fetchall()
            self._known_of = self._connection.identity
            self._is_exact = (encoding, zero) == ([("UTF-8",)], [("\0a",)])
        return self._is_exact


def _rows(count: int, columns: Sequence[str | None]) -> TextRows:
    """`count` rows, given each column as one text."""
    if not count:
        return TextRows([[], [], [], [], []])
    found: list[list[Any]] = [(column or "").split(_SEPARATOR) for column in columns]
    if any(len(values) != count for values in found):
        raise _SeparatorError
    found[0] = list(map(int, found[0]))
    return TextRows(found)


def _of_kinds(kinds: Collection[str]) -> str:
    # `+kind` keeps SQLite from an index on the kinds, which would turn the walk by ids into a sort. In a column that
    # takes capitals for small letters, rows of kinds that nobody wants would be among the newest.
    return f"AND +kind COLLATE BINARY IN ({', '.join('?' * len(kinds))})"
