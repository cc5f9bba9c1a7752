"""The event tables of the daemon: those that its embedders fill along the log, one bounded step at a time, and those of
other models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pmm_cached.commands import CommandServer
from pmm_cached.embedding_import import imported_model
from pmm_cached.event_embedder import EventEmbedder, Pause
from pmm_cached.logs import Logger
from pmm_cached.reading import read_in_parts
from pmm_shm import limits
from pmm_shm.codec import pack
from pmm_shm.errors import EmbedderError, InvalidVectorError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.tail import START, Position
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.store.environment import Transaction
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.vectors.event_table import SERVED_KEY, EventTableRecord, PositionRange, VectorRows, table_records
from pmm_shm.vectors.event_table_writer import EventTableWriter
from pmm_shm.vectors.events import EventText, EventTextBatch, EventTextReader, VectorSource
from pmm_shm.vectors.nearest import EventIds

_REASON_CHARS_MAX = 500
TableProgress = tuple[Position, PositionRange | None]
"""Position and newer range of a table."""


class EventTableIndexer:
    """Fills the table of an embedder along the log, and tries again later when the embedder fails.

    Parameters:
        connection: a read-only connection of the calling thread.
        embedder: of the table's model.
        kinds: events of these kinds have their content embedded. Kinds that the last daemon had and that are not among
            them lose the vectors made from their content.
        pause: called between small pieces of work.
        server: has the leases on texts, which are shared with the workers: each new text is computed once.

    Attributes:
        is_done: whether the table has all published events.
        problem: why the embedder failed; None if it did not.
        last_refusal: the newest event that the embedder refused since the start, and why; None if there was none.
        not_before: when to retry after a failure, on the monotonic clock.

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
        server: CommandServer,
        log: Logger,
    ) -> None:
        self._connection = connection
        self._kinds = kinds
        self._pause = pause
        self._takes_empty = embedder.takes_empty
        self._no_rows = VectorRows.none(embedder.dimension)
        self._embedder = EventEmbedder(writer, embedder, pause, server)
        self._reader = EventTextReader(connection, kinds, embedder.name)
        # By whether the events are new.
        self._events_max = {True: limits.INDEX_EVENTS_PER_COMMIT, False: limits.INDEX_EVENTS_PER_COMMIT}
        self._log = log
        self._retry_s = limits.INDEX_RETRY_S
        self.is_done = False
        self.not_before = 0.0
        self.problem: str | None = None
        self.last_refusal: str | None = None
        self._refused: set[int] = set()
        self.table = EventTableWriter(writer, embedder.name, embedder.dimension, pause=pause)
        if self.table.record.kinds != kinds:
            self._change_kinds(set(self.table.record.kinds) - set(kinds))
        elif self.table.record.refused:
            # The endpoint or its settings may be others since the last start.
            self.read_again()

    def has_reached(self, event_id: int) -> bool:
        """Whether the table has all events up to this one."""
        return self.is_done or self.table.record.position.as_of >= event_id

    def advance(self, published: Position) -> None:
        """Index events up to the published head for about `STEP_S`; an embedder's failure is logged.

        Raises:
            LogChanged: the log does not continue the table.
            LedgerError, StoreError: the ledger or the store failed.
        """
        self._pause()
        try:
            self.is_done = self._step(published)
        except EmbedderError as error:
            # All vectors before it are stored.
            if self.problem is None:
                self._log.error("embedding failed", error=str(error))
            self.is_done, self.problem = False, str(error)
            self.not_before = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, limits.INDEX_RETRY_S_MAX)
            return
        if self.problem is not None:
            self._log.info("embedding recovered")
        self.problem, self.not_before, self._retry_s = None, 0.0, limits.INDEX_RETRY_S

    def _step(self, published: Position) -> bool:
        """Index new events first, then some of the backlog. Returns whether none are left."""
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
        newer = None if newest.event_id is None else PositionRange(newest, newest)
        self.table.apply(self._no_rows, position=START, kinds=self._kinds, newer=newer, refused=0)
        self._forget_refusals()

    def clear(self) -> None:
        """Empty the table."""
        self.table.clear()
        self._forget_refusals()

    def _forget_refusals(self) -> None:
        self._refused.clear()
        self.last_refusal = None

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
        read = read_in_parts(self._read, after, self._events_max[are_new], until_id, self._pause)
        if not read.is_anchored:
            raise LogChanged
        self._pause()
        missing = self._missing(read.texts)
        rows, done, refused = self._embedder.vectors(missing, are_new=are_new)
        self._pause()
        self._note_refused(refused)
        if done < len(missing):
            self.table.apply(rows, kinds=self._kinds, refused=len(self._refused))
            self._events_max[are_new] = min(max(done, 2 * self._embedder.texts_at_once), limits.INDEX_EVENTS_PER_COMMIT)
            return False
        self._events_max[are_new] = min(2 * self._events_max[are_new], limits.INDEX_EVENTS_PER_COMMIT)
        if len(rows.ids) or read.position != after or (read.is_complete and not are_new):
            position, newer = progress(read.position, read.is_complete)
            self.table.apply(rows, position=position, kinds=self._kinds, newer=newer, refused=len(self._refused))
        return read.is_complete

    def _read(self, after: Position, rows_max: int, until_id: int) -> EventTextBatch:
        with self._connection.lock:
            return self._reader.read(after, rows_max, until_id)

    def _note_refused(self, refused: list[tuple[int, str]]) -> None:
        """Count events that get no vector, and log them; a batch that was cut off brings the same ones again."""
        refused = [one for one in refused if one[0] not in self._refused]
        if not refused:
            return
        self._refused.update(event_id for event_id, _ in refused)
        event_id, reason = refused[-1]
        self.last_refusal = f"event {event_id}: {' '.join(reason.split())[:_REASON_CHARS_MAX]}"
        self._log.warning("events skipped", count=len(refused), last=self.last_refusal)

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
                is_own = self.table.sources_of(ids) == VectorSource.EMBEDDED
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


class EventTables:
    """The tables, each opened once.

    Parameters:
        embedder: fills a table with the content of events, beside the default embedder, which always fills its own;
            None: neither does. Then the rows of the default embedder's table stay, and its position stays with them.
        found_as: the name by which workers find this embedder; a search without a model uses it.
        kinds: of the events that it embeds.
        pause, server: as for `EventTableIndexer`.

    Attributes:
        indexers: one for each embedder whose table is open.
    """

    def __init__(
        self,
        writer: StoreWriter,
        connection: Connection,
        embedder: Embedder | None,
        found_as: str | None,
        kinds: tuple[str, ...],
        pause: Pause,
        server: CommandServer,
        log: Logger,
    ) -> None:
        self._store = writer
        self._connection = connection
        self._found_as = found_as
        self._pause = pause
        self._server = server
        self._log = log
        self._is_open = False
        self._others: dict[str, EventTableWriter] = {}
        # By `embedding_indexed` events, the default table has rows without an embedder, too.
        by_name: dict[str, Embedder] = {local_bow.NAME: local_bow.LocalBow()}
        if embedder is None:
            kinds = ()
            if any(record.name == local_bow.NAME and record.kinds for record in self._records()):
                by_name.clear()
        else:
            by_name.setdefault(embedder.name, embedder)
        self._unopened = [(one, kinds) for one in by_name.values()]
        self._served = {served.name for served, _ in self._unopened}
        self._refusal: str | None = None
        self.indexers: list[EventTableIndexer] = []

    @property
    def problem(self) -> str | None:
        """Why a table is not up to date: it cannot be opened, or its embedder failed."""
        return next((indexer.problem for indexer in self.indexers if indexer.problem), self._refusal)

    @property
    def retry_at(self) -> float | None:
        """When to retry the first failed embedder, on the monotonic clock; None if none failed."""
        return min((indexer.not_before for indexer in self.indexers if indexer.problem), default=None)

    def open(self) -> None:
        """Open the tables that are not open yet. Raises `LedgerError`, `StoreError`."""
        if not self._is_open:
            self._store.transact("indexer.served", self._put_served)
            self._is_open = True
        while self._unopened:
            try:
                self.indexers.append(
                    EventTableIndexer(
                        self._store, self._connection, *self._unopened[0], self._pause, self._server, self._log
                    )
                )
            except InvalidVectorError as error:
                # For as long as the store has vectors of this name: retrying would not help.
                self._log.error("no table of vectors", error=str(error))
                self._refusal = str(error)
            del self._unopened[0]

    def writer_of(self, name: str, dimension: int) -> EventTableWriter:
        """The table of a model, opened if necessary. Raises `InvalidVectorError`, `StoreError`."""
        if (indexer := self._indexer_of(name)) is not None:
            return indexer.table
        if name not in self._others:
            self._others[name] = EventTableWriter(self._store, name, dimension, pause=self._pause)
        return self._others[name]

    def read_again(self, name: str) -> None:
        """Read the log again for a model that lost imported vectors."""
        if (indexer := self._indexer_of(name)) is not None:
            indexer.read_again()
        elif name in self._others and self._others[name].record.kinds:
            # Nobody does it now; searches see that the table has nothing for sure.
            self._others[name].apply(VectorRows.none(self._others[name].record.dimension), position=START)

    def clear(self) -> None:
        """Empty all tables, including those of other daemons' embedders."""
        for record in self._records():
            indexer = self._indexer_of(record.name)
            (self.writer_of(record.name, record.dimension) if indexer is None else indexer).clear()

    def imported_models(self) -> dict[str, int]:
        """Name and dimension of every model that may have imported vectors."""
        return {
            record.name: record.dimension
            for record in self._records()
            if record.name == imported_model(record.dimension)
        }

    def summary(self) -> dict[str, dict[str, Any]]:
        """Model to the numbers of its table."""
        return {
            record.name: {
                "rows": record.rows,
                "dimension": record.dimension,
                "as_of": record.position.as_of,
                "kinds": list(record.kinds),
                "refused": record.refused,
                "last_refusal": None if (indexer := self._indexer_of(record.name)) is None else indexer.last_refusal,
                "is_served": record.name in self._served or record.name == imported_model(record.dimension),
            }
            for record in self._records()
        }

    def _indexer_of(self, name: str) -> EventTableIndexer | None:
        return next((indexer for indexer in self.indexers if indexer.table.record.name == name), None)

    def _records(self) -> list[EventTableRecord]:
        with self._store.environment.read() as records:
            return table_records(records)

    def _put_served(self, records: Transaction) -> None:
        if self._found_as is None:
            records.delete(SERVED_KEY)
        else:
            records.put(SERVED_KEY, pack(self._found_as))
