"""A full replay: the oracle. Every answer of the system must equal the result of this on the ledger as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import Position
from pmm_shm.projection.cursor import Cursor, LogChanged, require_columns

Progress = Callable[[Position], None]


def replay(
    connection: Connection, folds: Sequence[Fold], progress: Progress | None = None, until_id: int | None = None
) -> tuple[Position, dict[str, State]]:
    """Fold the whole ledger from the first event to the head, or to the event `until_id`, in memory.

    A log that loses or changes its newest folded row meanwhile is replayed anew, a few times.

    Returns:
        The position reached, and the state of each fold.

    Raises:
        FoldError: the ledger lacks a column that a fold asks for.
        LedgerBusyError: it has changed each time.
        LedgerError: the ledger cannot be read.
    """
    require_columns(folds, connection)
    for _ in range(limits.REPLAYS_MAX):
        cursor = Cursor(folds, connection)
        try:
            for _ in cursor.advance_to_head(until_id):
                if progress is not None:
                    progress(cursor.position)
        except LogChanged:
            continue
        return cursor.position, cursor.states
    raise LedgerBusyError(f"{connection.path}: it has changed {limits.REPLAYS_MAX} times while it was replayed")
