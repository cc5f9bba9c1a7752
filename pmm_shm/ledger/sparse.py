"""Long tails in which most rows make no difference: of some kinds, only the newest rows of a batch count.

The others would be fetched only to see that their content is text. One concatenation in SQLite shows that for hundreds
of rows at once: with a separator of one ASCII character between them, it is UTF-8 exactly if all of them are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.rows import RawRow

_CONCATENATED_IDS = 256
_CONTENT_BYTES_MAX = 1 << 16
_EVENTS_SQL = "SELECT id, ts, kind, content, meta FROM events WHERE id > ? AND id <= ? AND "
# By the index on the kinds, where the ledger has one. Nobody wants the meta of these kinds.
_NEWEST_SQL = (
    "SELECT id, ts, kind, content, NULL FROM events WHERE id > ? AND id <= ? AND kind = ? ORDER BY id DESC LIMIT ?"
)
# Two statements in one: each of them alone needs no scan.
_IDS_SQL = "SELECT (SELECT min(id) FROM events WHERE id > ?), (SELECT max(id) FROM events WHERE id <= ?) LIMIT ?"
# A blob of this one byte is not UTF-8, so that content of another type, or longer, makes the whole invalid.
_TEXTS_SQL = f"""
SELECT count(*), group_concat(
    CASE WHEN typeof(content) = 'text' AND length(CAST(content AS BLOB)) <= {_CONTENT_BYTES_MAX}
    THEN content ELSE x'ff' END, char(10))
FROM events WHERE id > ? AND id <= ? AND """


class SparseBatch(NamedTuple):
    """Rows in the order of their ids, whether they are all that matter in the range, and how many were left out."""

    rows: list[RawRow]
    complete: bool
    left_out: int


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
        self._others_sql = f"{_EVENTS_SQL} +kind IN ({_marks(self._others)}) ORDER BY id LIMIT ?"
        self._texts_sql = f"{_TEXTS_SQL} +kind IN ({_marks(newest)})"
        self._encoding_of: tuple[int, int] | None = None
        self._is_utf8 = False

    def read(self, lower_id: int, upper_id: int, rows_max: int) -> SparseBatch | None:
        """The rows with ids above `lower_id` up to `upper_id`, at most `rows_max` of the other kinds; None where every
        row has to be looked at: a content is not text, or very long.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if not self._newest or self._connection.shape is not None or self._connection.schema.may_mix_ids:
            # The columns of another program's table are expressions, which no index serves.
            return None
        if not self._can_concatenate():
            return None
        rows_max = min(rows_max, limits.SPARSE_ROWS_MAX)
        rows, is_all = fetch_batch(self._connection, self._others_sql, (lower_id, upper_id, *self._others), rows_max)
        ids = self._ids(lower_id, upper_id if is_all else rows[-1][0])
        count = self._count_of_texts(*ids)
        if count is None:
            return None
        newest: list[RawRow] = []
        for kind, wanted in self._newest.items() if count else ():
            newest += self._newest_rows(kind, wanted, *ids)
        rows = sorted(rows + newest, key=itemgetter(0))
        return SparseBatch(rows, is_all, count - len(newest))

    def _ids(self, lower_id: int, last_id: int) -> tuple[int, int]:
        """The id before the first one in the range, and the last one: there may be a gap of any size on either side."""
        first, last = fetch_batch(self._connection, _IDS_SQL, (lower_id, last_id), 1).rows[0]
        return (lower_id, lower_id) if first is None or first > last else (first - 1, last)

    def _count_of_texts(self, before_id: int, last_id: int) -> int | None:
        """How many rows of the kinds in question there are; None if the content of one is not text, or very long."""
        handle, count = self._connection.handle(), 0
        try:
            for start in range(before_id, last_id, _CONCATENATED_IDS):
                end = min(start + _CONCATENATED_IDS, last_id)
                count += handle.execute(self._texts_sql, (start, end, *self._newest)).fetchall()[0][0]
        except sqlite3.Error:
            return None
        return count

    def _newest_rows(self, kind: str, wanted: int, before_id: int, last_id: int) -> list[RawRow]:
        rows: list[RawRow] = []
        while len(rows) < wanted:
            batch = fetch_batch(self._connection, _NEWEST_SQL, (before_id, last_id, kind), wanted - len(rows))
            rows += batch.rows
            if batch.complete:
                break
            last_id = rows[-1][0] - 1
        return rows

    def _can_concatenate(self) -> bool:
        """Whether the ledger is encoded in UTF-8: a conversion by SQLite would replace what is invalid."""
        if self._encoding_of != self._connection.identity:
            encoding: list[Any] = self._connection.handle().execute("PRAGMA encoding").fetchall()
            self._encoding_of, self._is_utf8 = self._connection.identity, encoding == [("UTF-8",)]
        return self._is_utf8


def _marks(values: Collection[str]) -> str:
    return ", ".join("?" * len(values))
