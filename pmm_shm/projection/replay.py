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


def tails(read: Callable[[Position], Tail], connection: Connection) -> Iterator[Tail]:
    """Every tail from the first event to the head, as a method of a `TailReader` reads it, under the connection's lock.

    Raises:
        LogChanged: the row at a position is gone or another one.
        LedgerError: the ledger cannot be read.
    """
    position = START
    while True:
        with connection.lock:
            tail = read(position)
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
            for tail in tails(TailReader(connection, engine.kinds).read, connection):
                is_beyond = until_id is not None and tail.position.as_of > until_id
                rows = [row for row in tail.rows if row[0] <= until_id] if is_beyond else tail.rows
                engine.apply(rows, states)
                position = Position(until_id, b"") if is_beyond else tail.position
                if progress is not None:
                    progress(position)
                if is_beyond:
                    break
        except LogChanged:
            continue
        return position, states
