"""The follower: reads the tail of the ledger, folds it, publishes it.

Invariant: never writes the ledger, never holds a statement open on it.
Invariant: the published state is always that of one position of the log, with its anchor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from pmm_cached.status import Status
from pmm_shm import limits
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import DECODE, DecodeFold, lacking_columns
from pmm_shm.folds.registry import built_in_folds, chosen_folds, named_fold, registered_folds, with_named
from pmm_shm.ledger.connection import Connection, close_replaced
from pmm_shm.ledger.files import LedgerMoved
from pmm_shm.ledger.freshness import Freshness, Mark
from pmm_shm.ledger.opening import Schema
from pmm_shm.projection.cursor import Cursor, LogChanged
from pmm_shm.store.snapshot import DETACHED, Attachment, LmdbBase
from pmm_shm.store.writer import StoreWriter

if TYPE_CHECKING:
    from pmm_shm.ledger.shape import Shape

_BATCH_S = 0.1


def all_folds(names: Iterable[str] = (), only: Iterable[str] | None = None, shape: Shape | None = None) -> list[Fold]:
    """Every fold that the daemon keeps, and the quarantine of decoding.

    Parameters:
        names: of folds to keep besides the others.
        only: the names of the others; None for those of the shape or, without one, the built-in and registered ones.

    Raises:
        ConfigError: a name means nothing.
        UnknownFoldError: no fold has this name.
        FoldError: one does not load, breaks the contract, or has the name of another.
    """
    if only is None and shape is not None:
        only = shape.folds
    others = built_in_folds() + registered_folds() if only is None else chosen_folds(only)
    folds = with_named(others, [named_fold(name) for name in names])
    folds = [*folds, DecodeFold(folds)]
    return folds if shape is None else [fold.on_shape(shape.identity) for fold in folds]


class FollowStep(NamedTuple):
    """The outcome of one step of the follower.

    Attributes:
        rows: how many rows it folded, of the kinds that the folds need.
        has_moved: whether the position has moved, even if only over events that no fold needs.
        is_complete: whether it reached the head of the log.
    """

    rows: int
    has_moved: bool
    is_complete: bool


class Follower:
    """Keeps the live folds at the head of the log. Not thread-safe: the daemon has a lock.

    Parameters:
        path: the ledger.
        writer: the store.
        folds: all folds that are to be kept; those that are not published yet wait for a rebuild.
        status: where the numbers go.
        on_progress: called, from any thread, whenever the follower has made progress.
        on_redefined: called with a few words when the columns or triggers of `events` have changed.
        on_lacking: called with one line when the table lacks a column that a fold asks for; the fold sees None.

    Attributes:
        has_lost_columns: whether the table has lost columns since the published state was adopted: then its anchor fits
            no row.
    """

    def __init__(
        self,
        path: str,
        writer: StoreWriter,
        folds: list[Fold],
        status: Status,
        on_progress: Callable[[], None] = lambda: None,
        on_redefined: Callable[[str], None] = lambda _: None,
        on_lacking: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.connection = Connection(path, "ro", limits.FOLLOWER_WAIT_S)
        self._freshness = Freshness(self.connection)
        self._writer = writer
        self._folds = folds
        self._status = status
        self._on_progress = on_progress
        self._on_redefined = on_redefined
        self._on_lacking = on_lacking
        self._lacking: set[str] = set()
        self._schema: Schema | None = None
        self._schema_of: tuple[int, int] | None = None
        self.has_lost_columns = False
        self._mark: Mark | None = None
        # The header of an empty WAL is always the same: a mark dies with its connection.
        self.connection.on_close(self._forget_mark)
        self.adopt_published()

    @property
    def live(self) -> list[Fold]:
        """The folds that are published and followed."""
        return self._live

    def missing(self) -> list[Fold]:
        """The folds that are not published in their present identity."""
        return [fold for fold in self._folds if fold not in self._live]

    def adopt_published(self) -> None:
        """Follow on from the published state: at the start, and after every flip."""
        header = self._writer.header
        self.has_lost_columns = False
        generations = {fold: header.generation_of(fold) for fold in self._folds}
        self._follow({fold: generation for fold, generation in generations.items() if generation is not None})
        self._mark = None
        if self.connection.is_open:
            self._look_at_schema()
        self._publish_status()

    def has_news(self) -> bool:
        """Whether the ledger has changed since the last `step`; costs microseconds.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        mark = self._take_mark()
        # Its number is compared less often than the mark.
        self._look_at_schema()
        return mark != self._mark

    def is_behind(self) -> bool:
        """Whether somebody has committed since the last `step`; for any thread, and without asking SQLite. Where only
        SQLite knows, in a rollback journal, the answer is no.
        """
        header = self._freshness.header
        return header is not None and header.raw != self._mark

    def step(self) -> FollowStep:
        """Fold and publish one batch.

        Raises:
            LogChanged: the log does not continue the published state: it was replaced, truncated or edited.
            LedgerError: the ledger cannot be read.
            StoreError: it cannot be published; the last snapshot stays.
        """
        self.progressed()
        if not self._live:
            return FollowStep(0, False, True)
        mark = self._take_mark()
        self._look_at_schema()
        environment = self._writer.environment
        self._attachment.transaction = transaction = environment.begin()
        try:
            step = self._fold_batch()
        except BaseException:
            # Half a batch is folded; the next step begins at the published position again.
            self._cursor.drop_overlay()
            raise
        finally:
            self._attachment.transaction = DETACHED
            environment.end(transaction)
        self.has_lost_columns = False
        if step.has_moved:
            self._publish(self._freshness.shared(mark) if step.is_complete else b"")
        if step.is_complete:
            self._mark = mark
        return step

    def align(self, action: Callable[[], None]) -> None:
        """Bring the live folds to the head, and run `action` on the same snapshot of the ledger.

        Raises:
            LogChanged, LedgerError, StoreError: as `step`.
        """
        self._to_head()
        with self.connection.lock, self.connection.one_snapshot():
            self._to_head()
            action()

    def progressed(self) -> None:
        """Report progress of the follower, or of work that it waits for."""
        self._status.followed_monotonic = time.monotonic()
        self._on_progress()

    def is_anchored(self) -> bool:
        """Whether the log continues the published state."""
        return not self._live or self._cursor.log_holds(self._writer.header.position)

    def forget_live(self) -> None:
        """The published state, the seals and the event vectors belong to another log: follow nothing until a rebuild
        has replaced them.

        Raises:
            StoreError: it cannot be recorded.
        """
        self._writer.end_history()
        self._status.sealed_blocks = self._status.verified_as_of = 0
        self._follow({})
        self._publish_status()

    def close(self) -> None:
        self.connection.close()

    def _follow(self, generations: Mapping[Fold, int]) -> None:
        self._live = list(generations)
        self._cursor = Cursor(self._live, self.connection)
        # One for all bases: a step attaches them at once.
        self._attachment = Attachment()
        self._cursor.rebase({fold.name: LmdbBase(self._attachment, number) for fold, number in generations.items()})
        self._status.folds = [fold.name for fold in self._live if fold.name != DECODE]

    def _to_head(self) -> None:
        while not self.step().is_complete:
            pass

    def _forget_mark(self) -> None:
        self._mark = None

    def _take_mark(self) -> Mark:
        while True:
            try:
                with self.connection.lock:
                    return self._freshness.take()
            except LedgerMoved:
                close_replaced(self.connection.path)

    def _look_at_schema(self) -> None:
        """See whether the table of this file is defined in another way than before."""
        before, now = self._schema, self.connection.schema
        if now is before:
            return
        is_same_file = self._schema_of == self.connection.identity
        self._schema, self._schema_of = now, self.connection.identity
        lines = (lacking_columns(fold, self.connection.path, now.columns) for fold in self._folds if now.columns)
        lacking = {line for line in lines if line is not None}
        for line in lacking - self._lacking:
            self._on_lacking(line)
        self._lacking = lacking
        if before is None or not is_same_file or before.definition == now.definition:
            return
        added = [name for name in now.columns if name not in before.columns]
        removed = [name for name in before.columns if name not in now.columns]
        self.has_lost_columns = self.has_lost_columns or bool(removed)
        changes = [
            f"columns {what}: {', '.join(names)}" for what, names in (("added", added), ("removed", removed)) if names
        ]
        self._on_redefined("; ".join(changes) or "its triggers or constraints changed")

    def _fold_batch(self) -> FollowStep:
        # Nobody else moves it: what the header says is what the transaction sees.
        cursor, start = self._cursor, self._writer.header.position
        cursor.stand_on(start)
        rows, deadline = 0, time.monotonic() + _BATCH_S
        while True:
            # Progress is told within a batch, too: a slow fold is no hanging one.
            tail = cursor.advance(on_progress=self.progressed)
            if not tail.is_anchored:
                self._look_at_schema()
                raise LogChanged
            rows += tail.event_count
            if tail.is_complete or rows >= limits.FOLD_EVENTS_PER_COMMIT or time.monotonic() > deadline:
                return FollowStep(rows, cursor.position != start, tail.is_complete)

    def _publish(self, head_mark: bytes) -> None:
        states = {fold: self._cursor.states[fold.name] for fold in self._live}
        try:
            self._writer.publish(self._cursor.position, states, head_mark)
        finally:
            self._cursor.drop_overlay()
        self._status.commits += 1
        self._publish_status()

    def _publish_status(self) -> None:
        header = self._writer.header
        self._status.as_of = header.position.as_of
        self._status.is_published = bool(self._live) and not header.is_void
        self._status.map_growths = self._writer.map_growths
