"""The event tables of the daemon: those that its embedders fill along the log, and those of other models."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pmm_cached.embedding_import import imported_model
from pmm_cached.event_embedder import Pause, TextLeases
from pmm_cached.event_table_indexer import EventTableIndexer
from pmm_cached.logs import Logger
from pmm_shm import limits
from pmm_shm.codec import pack
from pmm_shm.errors import EmbedderError, InvalidVectorError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import Position
from pmm_shm.store.environment import Transaction
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.vectors.event_table import SERVED_KEY, EventTableRecord, table_records
from pmm_shm.vectors.event_table_writer import EventTableWriter


@dataclass
class IndexedModel:
    """An embedder with its table, and when to retry after a failure.

    Attributes:
        indexer: None if the table cannot be opened; `problem` has the reason.
        is_done: whether the table has all published events.
    """

    embedder: Embedder
    kinds: tuple[str, ...]
    indexer: EventTableIndexer | None = None
    is_done: bool = False
    not_before: float = 0.0
    wait_s: float = limits.INDEX_RETRY_S
    problem: str | None = None

    def has_reached(self, event_id: int) -> bool:
        """Whether the table has all events up to this one."""
        return self.is_done or (self.indexer is not None and self.indexer.as_of >= event_id)


class EventTables:
    """The tables, each opened once.

    Parameters:
        embedder: fills a table with the content of events; None for none.
        found_as: the name by which workers find this embedder; a search without a model uses it.
        kinds: of the events that it embeds.
        pause, leases: as for `EventTableIndexer`.
    """

    def __init__(
        self,
        writer: StoreWriter,
        connection: Connection,
        embedder: Embedder | None,
        found_as: str | None,
        kinds: tuple[str, ...],
        pause: Pause,
        leases: TextLeases,
        log: Logger,
    ) -> None:
        self._store = writer
        self._connection = connection
        self._found_as = found_as
        self._pause = pause
        self._leases = leases
        self._log = log
        self._is_open = False
        self._others: dict[str, EventTableWriter] = {}
        default = local_bow.LocalBow()
        is_default = embedder is not None and embedder.name == default.name
        self.indexed = [IndexedModel(default, kinds if is_default else ())]
        if embedder is not None and not is_default:
            self.indexed.append(IndexedModel(embedder, kinds))

    @property
    def problem(self) -> str | None:
        """Why a table is not up to date, if an embedder failed."""
        return next((model.problem for model in self.indexed if model.problem), None)

    @property
    def retry_at(self) -> float | None:
        """When to retry the first failed embedder, on the monotonic clock; None if none failed."""
        return min((model.not_before for model in self.indexed if model.problem and model.indexer), default=None)

    def open_missing(self) -> None:
        """Open the tables that are not open yet. Raises `LedgerError`, `StoreError`."""
        if not self._is_open:
            self._store.transact("indexer.served", self._put_served)
            self._is_open = True
        for model in self.indexed:
            if model.indexer is None and model.problem is None:
                try:
                    model.indexer = EventTableIndexer(
                        self._store, self._connection, model.embedder, model.kinds, self._pause, self._leases
                    )
                except InvalidVectorError as error:
                    # For as long as the store has vectors of this name: retrying would not help.
                    self._log.error("no table of vectors", error=str(error))
                    model.problem = str(error)

    def advance(self, model: IndexedModel, published: Position) -> None:
        """Do one step for a model, unless its table cannot be opened; an embedder's failure is logged.

        Raises:
            LogChanged: the log does not continue the table.
            LedgerError, StoreError: the ledger or the store failed.
        """
        if model.indexer is None:
            return
        self._pause()
        try:
            model.is_done = model.indexer.step(published)
        except EmbedderError as error:
            if model.problem is None:
                self._log.error("embedding failed", error=str(error))
            model.is_done, model.problem = False, str(error)
            model.not_before = time.monotonic() + model.wait_s
            model.wait_s = min(2 * model.wait_s, limits.INDEX_RETRY_S_MAX)
            return
        if model.problem is not None:
            self._log.info("embedding recovered")
        model.problem, model.not_before, model.wait_s = None, 0.0, limits.INDEX_RETRY_S

    def writer_of(self, name: str, dimension: int) -> EventTableWriter:
        """The table of a model, opened if necessary. Raises `InvalidVectorError`, `StoreError`."""
        for model in self.indexed:
            if model.indexer is not None and model.embedder.name == name:
                return model.indexer.table
        if name not in self._others:
            self._others[name] = EventTableWriter(self._store, name, dimension)
        return self._others[name]

    def read_again(self, name: str) -> None:
        """Read the log again for a model that lost imported vectors."""
        for model in self.indexed:
            if model.indexer is not None and model.embedder.name == name:
                model.indexer.read_again()

    def clear(self) -> None:
        """Empty all tables, including those of other daemons' embedders."""
        for record in self._records():
            self.writer_of(record.name, record.dimension).clear()

    def imported_models(self) -> dict[str, int]:
        """Name and dimension of every model that may have imported vectors."""
        return {
            record.name: record.dimension
            for record in self._records()
            if record.name == imported_model(record.dimension)
        }

    def summary(self) -> dict[str, dict[str, Any]]:
        """Model to the numbers of its table."""
        served = {model.embedder.name for model in self.indexed}
        return {
            record.name: {
                "rows": record.rows,
                "dimension": record.dimension,
                "as_of": record.position.as_of,
                "kinds": list(record.kinds),
                "is_served": record.name in served or record.name == imported_model(record.dimension),
            }
            for record in self._records()
        }

    def _records(self) -> list[EventTableRecord]:
        with self._store.environment.read() as records:
            return table_records(records)

    def _put_served(self, records: Transaction) -> None:
        if self._found_as is None:
            records.delete(SERVED_KEY)
        else:
            records.put(SERVED_KEY, pack(self._found_as))
