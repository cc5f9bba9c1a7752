"""Where the hash chain forks, found without hashing a row: fast enough for the start of a program.

PMM reads the newest hash before it takes the write lock. Two of its processes that append at once give two events the
same predecessor. `chain` verifies the rows themselves, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.rows import HASH_COLUMNS, ID_MIN


class Forks(NamedTuple):
    """The forks of a chain.

    Attributes:
        first: the first two events that follow the same event; None in a linear chain.
        total: number of events that follow one which an earlier event follows already.
    """

    first: tuple[int, int] | None = None
    total: int = 0


def find_forks(connection: Connection, first_id: int = ID_MIN, pause_s: float = 0.0) -> Forks:
    """The forks among the events from `first_id` on, in bounded batches; the lock is free between them.

    Parameters:
        pause_s: after each batch, in seconds: for a thread beside others that have work to do.

    Raises:
        LedgerError: in one of its kinds, when the ledger cannot be read.
    """
    with connection.lock:
        connection.handle()
        if not set(HASH_COLUMNS) <= set(connection.columns):
            return Forks()
    # Of the events that do not follow the one before them: few, and none in a linear chain.
    predecessors, last_id, last_hash = set(), first_id, None
    for event_id, previous, own in _links(connection, first_id, pause_s):
        if previous != last_hash:
            predecessors.add(previous)
            last_id = event_id
        last_hash = own
    first, total = None, 0
    followers: dict[Any, int] = {}
    for event_id, previous, _ in _links(connection, first_id, pause_s) if predecessors else ():
        if event_id > last_id:
            break
        if previous not in predecessors:
            continue
        before = followers.setdefault(previous, event_id)
        if before != event_id:
            first, total = first or (before, event_id), total + 1
    return Forks(first, total)


def _links(connection: Connection, first_id: int, pause_s: float) -> Iterator[tuple[int, Any, Any]]:
    """(id, previous hash, own hash) of the hashed events from `first_id` on, by ascending id."""
    condition = "id >= ?"
    while True:
        sql = f"SELECT id, prev_hash, hash FROM events WHERE {condition} AND hash IS NOT NULL ORDER BY id LIMIT ?"
        with connection.lock:
            rows, complete = fetch_batch(connection, sql, (first_id,), limits.TAIL_ROWS_MAX)
        yield from rows
        if complete:
            return
        if pause_s:
            time.sleep(pause_s)
        first_id, condition = rows[-1][0], "id > ?"
