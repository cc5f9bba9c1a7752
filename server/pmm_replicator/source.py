"""Reading the log of record: bounded batches behind a position, each row verified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import ChainError
from pmm_shm.ledger.chain import HashedRow, fits
from pmm_shm.ledger.new_events import Formula
from pmm_shm.ledger.rows import RawRow
from pmm_shm.ledger.source.tables import EVENT_COLUMNS

if TYPE_CHECKING:
    from psycopg import Connection

_COLUMNS = ", ".join(EVENT_COLUMNS)
# The sizes of stored texts are known without reading them; a batch ends before the row that would exceed the bound.
_PULL = f"""
    SELECT {_COLUMNS} FROM (
        SELECT {_COLUMNS}, sum(octet_length(content) + octet_length(meta)) OVER (ORDER BY id) AS size,
               row_number() OVER (ORDER BY id) AS place
        FROM (SELECT {_COLUMNS} FROM pmm_events WHERE ledger = %s AND id >= %s ORDER BY id LIMIT %s) AS few
    ) AS sized WHERE size <= %s OR place <= 2 ORDER BY id
"""
_ONE = f"SELECT {_COLUMNS} FROM pmm_events WHERE ledger = %s AND id = %s"
_HEAD = "SELECT coalesce(max(id), 0) FROM pmm_events WHERE ledger = %s"
_HASHES = "SELECT id, hash FROM pmm_events WHERE ledger = %s AND id = ANY(%s)"


class Pulled(NamedTuple):
    """Rows behind a position.

    Attributes:
        rows: behind the position, ascending, verified.
        continues: whether the position's row is in the log as it was; if not, there are no rows.
        is_complete: whether these are all.
    """

    rows: list[RawRow]
    continues: bool
    is_complete: bool


def pull(connection: Connection, number: int, head: RawRow | None, formula: Formula) -> Pulled:
    """The next rows behind `head`, the newest row of the replica; None for an empty one.

    Raises:
        ChainError: a row does not continue the chain; the message has its id.
        psycopg.Error: the server failed.
    """
    first_id = 0 if head is None else head[0]
    parameters = (number, first_id, limits.REPLICA_ROWS_MAX + 1, limits.REPLICA_BYTES_MAX)
    rows = connection.execute(_PULL, parameters).fetchall()
    is_complete = len(rows) < limits.REPLICA_ROWS_MAX and not _is_cut(rows)
    if head is not None:
        if not rows or rows[0] != head:
            return Pulled([], False, False)
        del rows[0]
    # Behind a large anchor, too, one more row would have come.
    is_complete = is_complete or not rows
    good = _verified(rows, head, formula)
    if not good and rows:
        before_id = 0 if head is None else head[0]
        raise ChainError(
            f"event {rows[0][0]} in PostgreSQL does not continue the chain behind event {before_id}: it was edited, or "
            "written by another program than pmm-shm; the replica stays at what was right"
        )
    return Pulled(rows[:good], True, is_complete and good == len(rows))


def _is_cut(rows: Sequence[RawRow]) -> bool:
    return sum(len(row[3]) + len(row[4]) for row in rows) * 4 >= limits.REPLICA_BYTES_MAX


def _verified(rows: Sequence[RawRow], head: RawRow | None, formula: Formula) -> int:
    """How many of the rows continue the chain behind `head`, up to the first that does not."""
    next_id, last_hash = (1, None) if head is None else (head[0] + 1, head[-1])
    for count, row in enumerate(rows):
        if row[0] != next_id or row[5] != last_hash or not fits(formula, HashedRow._make(row)):
            return count
        next_id, last_hash = row[0] + 1, row[6]
    return len(rows)


def newest_id(connection: Connection, number: int) -> int:
    """The newest event's id; 0 in an empty log."""
    row = connection.execute(_HEAD, (number,)).fetchone()
    assert row is not None
    head_id: int = row[0]
    return head_id


def row_at(connection: Connection, number: int, event_id: int) -> RawRow | None:
    """The whole row of an event; None if there is none."""
    return connection.execute(_ONE, (number, event_id)).fetchone()


def hashes_at(connection: Connection, number: int, ids: Sequence[int]) -> dict[int, str]:
    """Event id to hash, of those that are in the log."""
    return dict(connection.execute(_HASHES, (number, list(ids))).fetchall())
