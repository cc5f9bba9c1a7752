"""Where the newest events of some kinds begin in the log."""

from __future__ import annotations

from collections.abc import Collection

from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.rows import ID_MAX, ID_MIN
from pmm_shm.ledger.tail import START, Position, TailReader


def position_before_newest(connection: Connection, tail: TailReader, kinds: Collection[str], count: int) -> Position:
    """The position before the newest `count` events of these kinds; the start of the log if there are no more.

    The caller holds the connection's lock.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    oldest_id, left = ID_MAX, count
    places = ", ".join("?" * len(kinds))
    sql = f"SELECT id FROM events WHERE id >= ? AND id < ? AND +kind IN ({places}) ORDER BY id DESC LIMIT ?"
    upper_id: int | None = ID_MAX
    while upper_id is not None:
        # Short statements, however rare these events are.
        lower_id = max(ID_MIN, upper_id - limits.TAIL_SPAN_IDS)
        found = fetch_batch(connection, sql, (lower_id, upper_id, *sorted(kinds)), left)
        left -= len(found.rows)
        if found.rows:
            oldest_id = found.rows[-1][0]
        if not left:
            return tail.position_before(oldest_id)
        upper_id = lower_id if found.complete else oldest_id
        below = fetch_batch(connection, "SELECT max(id) FROM events WHERE id < ? LIMIT ?", (upper_id,), 1)
        upper_id = None if below.rows[0][0] is None else below.rows[0][0] + 1
    return START
