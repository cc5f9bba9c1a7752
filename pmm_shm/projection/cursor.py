"""The cursor: folds at one position of the log. All code that folds the log moves a cursor along it.

A client's catch-up, a full replay, a verification, the daemon's follower and its rebuild are all uses of this class.
They differ in what the states stand on: nothing (a replay), a generation that readers see (the follower, a catch-up),
or one that they do not see yet (a rebuild).

Invariant: `states` are those of `position`, and the row there had the digest that `position` holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from pmm_shm import limits
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.state import Base, State
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START, Position, Tail, TailReader

_C = TypeVar("_C", bound="Cursor")


class LogChanged(Exception):
    """The log does not continue a cursor's position: the row there is gone or has changed."""


class Cursor:
    """Folds that move along the log together, from the first event on or from a base. Not thread-safe.

    Parameters:
        folds: the folds that move together.
        connection: a read-only connection; its lock is taken for each read of the log.
        whole_rows: read all columns of all rows, as seals need them.

    Attributes:
        folds: name to fold.
        states: name to state, as an overlay over its base.
        position: the newest event that is folded, and its anchor.
        events_folded: number of rows that were folded.
    """

    def __init__(self, folds: Sequence[Fold], connection: Connection, *, whole_rows: bool = False) -> None:
        self.folds = {fold.name: fold for fold in folds}
        self.states = {name: State() for name in self.folds}
        self.position = START
        self.events_folded = 0
        self._engine = Engine(folds)
        self._whole_rows = whole_rows
        self._has_overlay = False
        self.read_from(connection)

    def read_from(self, connection: Connection) -> None:
        """Read the log through this connection from now on."""
        self._connection = connection
        kinds = None if self._whole_rows else self._engine.kinds
        self._reader = TailReader(connection, kinds, whole_rows=self._whole_rows)

    def rebase(self, bases: Mapping[str, Base]) -> None:
        """Let the states read through to these bases; position and overlays stay."""
        for name, base in bases.items():
            self.states[name].base = base

    def stand_on(self, position: Position) -> None:
        """Move to `position`, at which the bases hold the states; the overlays are dropped."""
        self.drop_overlay()
        self.position = position

    def advance(self, until_id: int | None = None, on_progress: Callable[[], None] | None = None) -> Tail:
        """Read the next rows behind the position, check the anchor, fold the rows, and move on.

        An exception out of a fold leaves nothing half folded: the cursor is back at the start, without overlays.

        Parameters:
            until_id: take the log to end with this event.
            on_progress: called after every few rows.

        Returns:
            The tail that was folded. Where it is not anchored, nothing has changed.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._connection.lock:
            tail = self._reader.read(self.position, until_id=until_id)
        if not tail.is_anchored or tail.position == self.position:
            return tail
        self._has_overlay = True
        self.events_folded += len(tail.rows)
        try:
            if on_progress is None:
                self._engine.apply(tail.rows, self.states)
            else:
                self._apply_in_parts(tail, on_progress)
        except BaseException:
            self.reset()
            raise
        self.position = tail.position
        return tail

    def advance_to_head(self, until_id: int | None = None) -> Iterator[Tail]:
        """Advance until the head of the log, or event `until_id`, is reached; yields each tail that was folded.

        Raises:
            LogChanged: the log does not continue the position.
            LedgerError: the ledger cannot be read.
        """
        while True:
            tail = self.advance(until_id)
            if not tail.is_anchored:
                raise LogChanged
            yield tail
            if tail.is_complete:
                return

    def log_holds(self, position: Position) -> bool:
        """Whether the row of this position still is in the log, unchanged.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._connection.lock:
            return self._reader.holds(position)

    def copy(self: _C) -> _C:
        """Another cursor at the same position, which moves on its own."""
        other = copy.copy(self)
        other.states = {name: state.copy() for name, state in self.states.items()}
        # Its queues are empty between two batches, but two cursors may move at the same time.
        other._engine = Engine(list(self.folds.values()))
        return other

    def key_count(self) -> int:
        """Number of keys in the overlays."""
        return sum(state.key_count() for state in self.states.values())

    def drop_overlay(self) -> None:
        """Forget everything on top of the bases, and what was read of them."""
        for state in self.states.values():
            if state.is_used:
                if self._has_overlay:
                    state.take_touched()
                state.drop_overlay()
        self._has_overlay = False

    def reset(self) -> None:
        """Go back to the start of the log, without overlays."""
        # New states: an exception from a signal handler may have struck anywhere within the old ones.
        self.states = {name: State(state.base) for name, state in self.states.items()}
        self._has_overlay = False
        self.position = START

    def _apply_in_parts(self, tail: Tail, on_progress: Callable[[], None]) -> None:
        for first in range(0, len(tail.rows), limits.ROWS_PER_PROGRESS):
            self._engine.apply(tail.rows[first : first + limits.ROWS_PER_PROGRESS], self.states)
            on_progress()
