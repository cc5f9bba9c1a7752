"""A rebuild: folds replayed from the first event into shadow generations, and one flip.

Readers never see a hole: the published state stays until the flip. No rebuild starts while a reader is older than the
last flip, because the pages that it pins cannot be reused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from pmm_cached.follower import Follower
from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.folds.contract import Fold
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import Tail, oldest_of
from pmm_shm.projection.cursor import Cursor, LogChanged
from pmm_shm.store.snapshot import Attachment, LmdbBase
from pmm_shm.store.writer import StoreWriter


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
        self._cursor = Cursor(folds, self._connection)
        self._is_flushed = False
        self.first_id: int | None = None
        self._generations: dict[Fold, int] = {}

    def run(self) -> None:
        """Replay to the head, in chunks that are flushed into the shadow generations.

        Raises:
            LogChanged: the log lost or changed its newest rows: begin again.
            LedgerError, StoreError: as their names say.
        """
        try:
            if self._connection.shape is not None:
                self.first_id = oldest_of(self._connection)
            self._generations = {fold: self._writer.begin_generation(fold) for fold in self._folds}
            with contextlib.closing(self._cursor.advance_reading_ahead()) as tails:
                while not self._advance(tails, self._check):
                    pass
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
            if self._is_flushed:
                within = Attachment(transaction)
                cursor.rebase({fold.name: LmdbBase(within, number) for fold, number in self._generations.items()})
            while cursor.key_count() < limits.REBUILD_KEYS_PER_FLUSH and not is_complete:
                is_complete = next(tails).is_complete
                check()
        self._writer.flush_shadow({number: cursor.states[fold.name] for fold, number in self._generations.items()})
        self._is_flushed = True
        cursor.drop_overlay()
        return is_complete
