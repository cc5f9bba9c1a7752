"""Keeping one model's event table at the head of the log, one bounded step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pmm_cached.event_embedder import EventEmbedder, Pause, TextLeases
from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.tail import START, Position
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.vectors.event_table import EventTableRecord, PositionRange, VectorRows
from pmm_shm.vectors.event_table_writer import EventTableWriter
from pmm_shm.vectors.events import EventText, EventTextReader, Source
from pmm_shm.vectors.nearest import EventIds

TableProgress = tuple[Position, PositionRange | None]
"""Position and newer range of a table."""


class EventTableIndexer:
    """Fills the table of an embedder along the log.

    Parameters:
        connection: a read-only connection of the calling thread.
        embedder: of the table's model.
        kinds: events of these kinds have their content embedded. Kinds that the last daemon had and that are not among
            them lose the vectors made from their content.
        pause: called between small pieces of work.
        leases: shared with the workers, so that each new text is computed once.

    Raises:
        InvalidVectorError: the model has vectors of another dimension.
        LedgerError, StoreError: the ledger or the store failed.
    """

    def __init__(
        self,
        writer: StoreWriter,
        connection: Connection,
        embedder: Embedder,
        kinds: tuple[str, ...],
        pause: Pause,
        leases: TextLeases,
    ) -> None:
        self._connection = connection
        self._kinds = kinds
        self._pause = pause
        self._takes_empty = embedder.takes_empty
        self._no_rows = VectorRows.none(embedder.dimension)
        self._embedder = EventEmbedder(writer, embedder, pause, leases)
        self._reader = EventTextReader(connection, kinds, embedder.name)
        # By whether the events are new.
        self._events_max = {True: limits.INDEX_EVENTS_PER_COMMIT, False: limits.INDEX_EVENTS_PER_COMMIT}
        self.table = EventTableWriter(writer, embedder.name, embedder.dimension)
        if self.table.record.kinds != kinds:
            self._change_kinds(set(self.table.record.kinds) - set(kinds))

    @property
    def as_of(self) -> int:
        """The table has all events up to this event id."""
        return self.table.record.position.as_of

    def step(self, published: Position) -> bool:
        """Index events up to the published head for about `STEP_S`: new ones first, then some of the backlog.
        Returns whether none are left.

        Raises:
            LogChanged: the log does not continue the table.
            EmbedderError: the embedder failed; all vectors before it are stored.
            LedgerError, StoreError: the ledger or the store failed.
        """
        record = self.table.record
        if record.newer is None:
            if published.as_of - record.position.as_of <= limits.INDEX_EVENTS_PER_COMMIT:
                return self._index(record.position, published.as_of, lambda position, _: (position, None), are_new=True)
            record = self._move(record.position, PositionRange(published, published))
        assert record.newer is not None
        after = record.newer.after

        def newer_grows(position: Position, _: bool) -> TableProgress:
            return record.position, PositionRange(after, position)

        if not self._index(record.newer.until, published.as_of, newer_grows, are_new=True):
            return False
        until = self.table.record.newest

        def backlog_shrinks(position: Position, is_complete: bool) -> TableProgress:
            return (until, None) if is_complete else (position, PositionRange(after, until))

        return self._index(record.position, after.as_of, backlog_shrinks, are_new=False)

    def read_again(self) -> None:
        """Read the log again from its start: events that lost their vector may have another source. The others keep
        theirs.
        """
        newest = self.table.record.newest
        self._move(START, None if newest.event_id is None else PositionRange(newest, newest))

    def _move(self, position: Position, newer: PositionRange | None) -> EventTableRecord:
        self.table.apply(self._no_rows, position=position, kinds=self._kinds, newer=newer)
        return self.table.record

    def _index(
        self, after: Position, until_id: int, progress: Callable[[Position, bool], TableProgress], *, are_new: bool
    ) -> bool:
        """Index the events after `after` up to `until_id`, for about `STEP_S`. Returns whether `until_id` is reached.

        Parameters:
            progress: the table's new progress, from the position that was read and whether that is `until_id`.
            are_new: whether workers may be computing the texts of these events.
        """
        if after.event_id is not None and after.event_id > until_id:
            return True
        with self._connection.lock:
            read = self._reader.read(after, self._events_max[are_new], until_id)
        if not read.is_anchored:
            raise LogChanged
        missing = self._missing(read.texts)
        rows, done = self._embedder.rows(missing, are_new=are_new)
        if done < len(missing):
            self.table.apply(rows, kinds=self._kinds)
            self._events_max[are_new] = done
            return False
        self._events_max[are_new] = min(2 * self._events_max[are_new], limits.INDEX_EVENTS_PER_COMMIT)
        if len(rows.ids) or read.position != after or (read.is_complete and not are_new):
            position, newer = progress(read.position, read.is_complete)
            self.table.apply(rows, position=position, kinds=self._kinds, newer=newer)
        return read.is_complete

    def _missing(self, texts: list[EventText]) -> list[EventText]:
        """The events that have no vector from a source of at least the same rank."""
        if not self._takes_empty:
            texts = [one for one in texts if one.text]
        present = self.table.sources_of(np.array([one.event_id for one in texts], np.int64))
        return [one for one, source in zip(texts, present.tolist(), strict=True) if source == 0 or source > one.source]

    def _change_kinds(self, dropped: set[str]) -> None:
        for kind in sorted(dropped):
            for ids in self._ids_of_kind(kind):
                self._pause()
                is_own = self.table.sources_of(ids) == Source.EMBEDDED
                self.table.apply(self._no_rows, ids[is_own])
        self.read_again()

    def _ids_of_kind(self, kind: str) -> Iterator[EventIds]:
        last = -(1 << 63)
        sql = "SELECT id FROM events WHERE kind = ? AND id > ? ORDER BY id LIMIT ?"
        while True:
            with self._connection.lock:
                rows = fetch_batch(self._connection, sql, (kind, last), limits.TAIL_ROWS_MAX).rows
            if not rows:
                return
            yield np.array([row[0] for row in rows], np.int64)
            last = rows[-1][0]
