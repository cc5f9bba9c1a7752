"""A full replay: the oracle. Every answer of the system must equal what this computes from the ledger as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.state import State
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START, Position, Tail, TailReader

Progress = Callable[[Position], None]


class LogChanged(Exception):
    """The log lost or changed its newest folded row during a replay: begin again."""


def tails(reader: TailReader, connection: Connection, start: Position = START) -> Iterator[Tail]:
    """Every tail from `start` to the head, each read under the connection's lock.

    Raises:
        LogChanged: the row at a position is gone or another one.
        LedgerError: the ledger cannot be read.
    """
    position = start
    while True:
        with connection.lock:
            tail = reader.read(position)
        if not tail.is_anchored:
            raise LogChanged
        yield tail
        if tail.is_complete:
            return
        position = tail.position


def replay(
    connection: Connection, folds: Sequence[Fold], progress: Progress | None = None, until_id: int | None = None
) -> tuple[Position, dict[str, State]]:
    """Fold the whole ledger from the first event to the head, or to the event `until_id`, in memory.

    Returns:
        The position reached, and the state of each fold.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    while True:
        engine = Engine(folds)
        states = {fold.name: State() for fold in folds}
        position = START
        try:
            for tail in tails(TailReader(connection, engine.kinds), connection):
                rows = tail.rows if until_id is None else [row for row in tail.rows if row[0] <= until_id]
                engine.apply(rows, states)
                position = tail.position if len(rows) == len(tail.rows) else Position(until_id, b"")
                if progress is not None:
                    progress(position)
                if len(rows) < len(tail.rows):
                    break
        except LogChanged:
            continue
        return position, states
