"""Compares a replica with its source, block by block: all columns of all rows.

A replica verifies what it pulls, once. A row that is edited in PostgreSQL later is refused by a new replica, and found
by this audit on the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from pmm_shm.ledger.connection import Connection as Ledger
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.rows import RawRow
from pmm_shm.ledger.source.tables import EVENT_COLUMNS

if TYPE_CHECKING:
    from psycopg import Connection

BLOCK_ROWS = 1_024
_COLUMNS = ", ".join(EVENT_COLUMNS)
# Each value with its length: no two rows have the same text.
_ROW = " || ".join(f"coalesce(octet_length({name}::text) || ':' || {name}, '-')" for name in EVENT_COLUMNS)
_DIGEST = f"encode(sha256(convert_to({_ROW}, 'UTF8')), 'hex')"
_DIGESTS = f"SELECT id, {_DIGEST} FROM pmm_events WHERE ledger = %s AND id >= %s AND id < %s ORDER BY id"
_BLOCK = (
    f"SELECT count(*), encode(sha256(convert_to(coalesce(string_agg({_DIGEST}, '' "
    "ORDER BY id), ''), 'UTF8')), 'hex') FROM pmm_events WHERE ledger = %s AND id >= %s AND id < %s"
)
_OURS = f"SELECT {_COLUMNS} FROM events WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"


class Difference(NamedTuple):
    """The first event at which replica and source differ, and how."""

    event_id: int
    problem: str


def audit_block(ledger: Ledger, connection: Connection, number: int, first_id: int) -> Difference | None:
    """Compare one block, from `first_id` on; None where it is the same.

    Raises:
        LedgerError: the replica cannot be read.
        psycopg.Error: the source cannot be read.
    """
    with ledger.lock:
        ours = fetch_batch(ledger, _OURS, (first_id, first_id + BLOCK_ROWS), BLOCK_ROWS).rows
    if not ours:
        return None
    end_id = ours[-1][0] + 1
    digests = {row[0]: _digest(row) for row in ours}
    expected = (len(ours), sha256("".join(digests.values()).encode()).hexdigest())
    if connection.execute(_BLOCK, (number, first_id, end_id)).fetchone() == expected:
        return None
    theirs: dict[int, str] = dict(connection.execute(_DIGESTS, (number, first_id, end_id)).fetchall())
    for event_id in sorted(digests.keys() | theirs.keys()):
        if event_id not in theirs:
            return Difference(event_id, "it is not in the source")
        if event_id not in digests:
            return Difference(event_id, "it is not in the replica")
        if digests[event_id] != theirs[event_id]:
            return Difference(event_id, "its values are others in the source")
    # It has changed between the two looks: the next audit finds out.
    return None


def audit(
    ledger: Ledger, connection: Connection, number: int, head_id: int, progress: Callable[[int], object]
) -> Difference | None:
    """Compare all blocks up to an event; the first difference, or None."""
    for first_id in _blocks(head_id):
        difference = audit_block(ledger, connection, number, first_id)
        if difference is not None:
            return difference
        progress(min(head_id, first_id + BLOCK_ROWS - 1))
    return None


def _blocks(head_id: int) -> Iterator[int]:
    return iter(range(1, head_id + 1, BLOCK_ROWS))


def _digest(row: RawRow) -> str:
    parts = ("-" if value is None else f"{len(str(value).encode())}:{value}" for value in row)
    return sha256("".join(parts).encode()).hexdigest()
