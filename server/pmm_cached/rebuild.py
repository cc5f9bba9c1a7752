"""A rebuild: folds replayed from the first event into shadow generations, and one flip.

Readers never see a hole: the published state stays until the flip. No rebuild starts while a reader is older than the
last flip, because the pages that it pins cannot be reused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping

from pmm_cached.follower import Follower
from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.history import PARTS, HistoryFold
from pmm_shm.folds.state import QUARANTINE, State
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import Tail, oldest_of
from pmm_shm.projection.cursor import Cursor, LogChanged
from pmm_shm.store.snapshot import DETACHED, Attachment, LmdbBase
from pmm_shm.store.writer import StoreWriter


class _HistoryFailed(LogChanged):
    """An event is in the quarantine of the history: the folds that are parts of it may not have failed at it."""


class Rebuild:
    """Rebuilds `folds`; `run` runs in a separate thread, `finish` with the follower at rest.

    Parameters:
        check: called after each batch; raises to give up.

    Attributes:
        first_id: the oldest event when it began, in the log of another program: rows may be removed from it.
    """

    def __init__(self, path: str, writer: StoreWriter, folds: list[Fold], check: Callable[[], None]) -> None:
        self._writer = writer
        self._folds = folds
        self._check = check
        self._connection = Connection(path, "ro")
        self._generations: dict[Fold, int] = {}
        self.first_id: int | None = None
        self._history = next((fold.name for fold in folds if type(fold) is HistoryFold), None)
        self._begin({} if self._history is None else PARTS)

    def run(self) -> None:
        """Replay to the head, in chunks that are flushed into the shadow generations.

        Raises:
            LogChanged: the log lost or changed its newest rows: begin again.
            LedgerError, StoreError: as their names say.
        """
        try:
            if self._connection.shape is not None:
                self.first_id = oldest_of(self._connection)
            try:
                self._replay()
            except _HistoryFailed:
                self._begin({})
                self._replay()
        finally:
            self._connection.close()

    def finish(self, follower: Follower) -> None:
        """Catch up with the follower, flip, and let it go on from there; the follower must be at rest.

        Raises:
            LogChanged, LedgerError, StoreError: as `run`.
        """
        try:
            follower.align(lambda: self._flip(follower))
        finally:
            # It may be flipped even if something failed behind it.
            follower.adopt_published()
        crash_point("flip.adopted")

    def _begin(self, parts: Mapping[type[Fold], tuple[Collection[str], Collection[str]]]) -> None:
        """Stand at the start of the log; folds in `parts` are copied out of the history."""
        self._parts = {fold: parts[type(fold)] for fold in self._folds if type(fold) in parts}
        self._cursor = Cursor([fold for fold in self._folds if fold not in self._parts], self._connection)
        self._attachment = Attachment()

    def _replay(self) -> None:
        self._generations = {fold: self._writer.begin_generation(fold) for fold in self._folds}
        with contextlib.closing(self._cursor.advance_reading_ahead()) as tails:
            while not self._advance(tails, self._check):
                pass

    def _flip(self, follower: Follower) -> None:
        def check() -> None:
            self._check()
            follower.progressed()

        # The follower holds one moment of the ledger by its connection; the flip must be of the same.
        self._cursor.read_from(follower.connection)
        crash_point("flip.before_last_flush")
        tails = self._cursor.advance_to_head()
        while not self._advance(tails, check):
            pass
        crash_point("flip.flushed")
        keep = [fold for fold in follower.live if fold not in self._folds]
        # Both are in this snapshot of the log. Their anchors differ where columns were added meanwhile.
        if keep and self._writer.header.position.event_id != self._cursor.position.event_id:
            raise LogChanged
        self._writer.flip(self._cursor.position, self._generations, keep)

    def _advance(self, tails: Iterator[Tail], check: Callable[[], None]) -> bool:
        """Fold and flush one chunk. Returns whether the head was reached."""
        cursor, is_complete = self._cursor, False
        with self._writer.environment.read() as transaction:
            self._attachment.transaction = transaction
            try:
                while cursor.key_count() < limits.REBUILD_KEYS_PER_FLUSH and not is_complete:
                    is_complete = next(tails).is_complete
                    check()
                states = {number: self._state_of(fold) for fold, number in self._generations.items()}
            finally:
                self._attachment.transaction = DETACHED
        self._writer.flush_shadow(states)
        numbers = {fold.name: number for fold, number in self._generations.items() if fold not in self._parts}
        cursor.rebase({name: LmdbBase(self._attachment, number) for name, number in numbers.items()})
        cursor.drop_overlay()
        return is_complete

    def _state_of(self, fold: Fold) -> State:
        if fold not in self._parts:
            return self._cursor.states[fold.name]
        assert self._history is not None
        history = self._cursor.states[self._history]
        if history.get(QUARANTINE):
            raise _HistoryFailed
        return history.part(*self._parts[fold])
