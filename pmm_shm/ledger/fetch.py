"""Bounded statements: every row of a batch is fetched, and the statement finished, before anybody works on one.

Invariant: no statement outlives the call that made it; an open one blocks a writer in rollback-journal mode and keeps
the WAL growing in the other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.rows import RawRow, decode_text
from pmm_shm.typed import Any, NamedTuple

UNDECODABLE = "Could not decode"
_MISSING = "no such "
_NUMBERS = frozenset({int, float, type(None)})


class Batch(NamedTuple):
    """Rows of one statement; `complete` says that neither the limit nor the bound on bytes ended it."""

    rows: list[RawRow]
    complete: bool


def fetch_batch(
    connection: Connection, sql: str | Callable[[], str], parameters: tuple[Any, ...], rows_max: int
) -> Batch:
    """Run `sql`, whose last parameter is its LIMIT, for at most `rows_max` rows and about `limits.TAIL_BYTES_MAX`
    bytes.

    The caller holds `connection.lock`. At least one row is returned where there is one, whatever its size. Text that
    is not UTF-8 comes as `InvalidText`. Where `sql` depends on the ledger's columns it is a function, called when the
    connection is open.

    Raises:
        LedgerError: in one of its kinds.
    """
    count = min(rows_max, limits.TAIL_ROWS_MAX)
    bound = (*parameters, count)

    def run() -> Batch:
        handle = connection.handle()
        text = sql if isinstance(sql, str) else sql()
        try:
            return _fetch(handle, text, bound, count)
        except sqlite3.OperationalError as error:
            if str(error).startswith(_MISSING) and connection.follow_schema() and not isinstance(sql, str):
                # Columns were renamed or removed since the schema was looked at.
                return _fetch(handle, sql(), bound, count)
            if not str(error).startswith(UNDECODABLE):
                raise
        # Only for the batch that needs it: a factory in Python costs as much as all the rest of a fetch.
        handle.text_factory = decode_text
        try:
            return _fetch(handle, text, bound, count)
        finally:
            handle.text_factory = str

    return connection.retry(run)


def _fetch(handle: sqlite3.Connection, sql: str, parameters: tuple[Any, ...], count: int) -> Batch:
    rows: list[RawRow] = []
    size = 0
    cursor = handle.execute(sql, parameters)
    try:
        while part := cursor.fetchmany(limits.TAIL_FETCH_ROWS):
            rows += part
            size += _size_bytes(part)
            if size >= limits.TAIL_BYTES_MAX:
                return Batch(rows, False)
    finally:
        cursor.close()
    return Batch(rows, len(rows) < count)


def _size_bytes(rows: list[RawRow]) -> int:
    """About how large the values of `rows` are."""
    size = 0
    for column in zip(*rows, strict=True):
        # A column is nearly always all text, or all numbers: one look at it, and not one at each value.
        try:
            size += len("".join(column))
        except TypeError:
            if not _NUMBERS.issuperset(map(type, column)):
                size += sum([len(value) for value in column if isinstance(value, (str, bytes))])
    return size
