"""A full replay for the command line. Reads only the ledger: no snapshot, no instance directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pmm_shm.folds.contract import Fold
from pmm_shm.ledger.connection import Connection
from pmm_shm.projection.replay import replay


def head_of(connection: Connection) -> int:
    """The newest event's id; 0 for an empty ledger."""
    with connection.lock:
        handle = connection.handle()
        rows = connection.retry(lambda: handle.execute("SELECT max(id) FROM events").fetchall())
    return int(rows[0][0] or 0)


def replayed_views(
    connection: Connection,
    folds: Sequence[Fold],
    until_id: int | None = None,
    advance: Callable[[int], None] = lambda event_id: None,
) -> tuple[int, Mapping[str, Any]]:
    """(as_of, views by fold name) of a full replay to the head, or to event `until_id`."""
    position, states = replay(connection, folds, lambda at: advance(at.as_of), until_id)
    return position.as_of, {fold.name: fold.view(states[fold.name]) for fold in folds}
