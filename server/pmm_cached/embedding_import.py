"""Importing vectors from the ledger's own table `event_embeddings`.

Its rows change without an event. So the table is compared on request, and after a change of the ledger if its number of
rows or its newest `created_at` differs from the last comparison. Looking for one takes a limited share of time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pmm_cached.logs import Logger
from pmm_cached.status import ImportCounts
from pmm_shm import limits
from pmm_shm.codec import pack, unpack
from pmm_shm.errors import InvalidVectorError, PmmShmError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.freshness import Freshness, Mark
from pmm_shm.ledger.tail import Position
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.event_table import IMPORTED_PREFIX, VectorRows
from pmm_shm.vectors.event_table_writer import EventTableWriter
from pmm_shm.vectors.events import VectorSource
from pmm_shm.vectors.nearest import EventIds

_STATE_KEY = b"i"
_BEFORE_ALL = -(1 << 63)
# Not of a view, which may compute anything, and without end.
_COLUMNS_SQL = (
    "SELECT name FROM pragma_table_info('event_embeddings') WHERE EXISTS "
    "(SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'event_embeddings') LIMIT ?"
)
_ROWS_SQL = (
    "SELECT eid, embedding, eid IN (SELECT id FROM events) FROM event_embeddings "
    "WHERE eid > ? AND typeof(eid) = 'integer' ORDER BY eid LIMIT ?"
)


class ImportState(NamedTuple):
    """The ledger's table at the last comparison.

    Attributes:
        rows: the number of rows.
        newest: the newest `created_at`, as SQLite returns it.
        awaited: the smallest id that had a row but no event yet, beyond the published head; None for none.
    """

    rows: int
    newest: Any
    awaited: int | None


class EmbeddingImport:
    """Compares the ledger's table with the vectors that came from it, when that is due.

    Parameters:
        connection: a read-only connection of the thread that calls.
        freshness: of that connection.
        models: returns name and dimension of every model that may have imported vectors.
        table_for: returns the event table of a model, opened if necessary.
        on_removed: called with a model that lost vectors.
        pause: called between small pieces of work.

    Attributes:
        progress: [rows compared, rows in all] during a comparison.
        problem: why the last comparison failed; None if it did not.
    """

    def __init__(
        self,
        writer: StoreWriter,
        connection: Connection,
        freshness: Freshness,
        models: Callable[[], dict[str, int]],
        table_for: Callable[[str, int], EventTableWriter],
        on_removed: Callable[[str], None],
        pause: Callable[[], None],
        log: Logger,
    ) -> None:
        self._store = writer
        self._connection = connection
        self._freshness = freshness
        self._models = models
        self._table_for = table_for
        self._on_removed = on_removed
        self._pause = pause
        self._log = log
        # The ledger's mark and the published head at the last comparison.
        self._compared_at: tuple[Mark, int] | None = None
        self._not_before = 0.0
        self._is_late = False
        self.progress: list[int] | None = None
        self.problem: str | None = None
        connection.on_close(self._forget_mark)

    @property
    def due_at(self) -> float | None:
        """When a postponed comparison is due, on the monotonic clock; None if there is none."""
        return self._not_before if self._is_late else None

    def run(self, published: Position, *, is_requested: bool) -> ImportCounts | None:
        """Compare if it is requested or due. Returns None after a failure, which is logged and tried again later.

        Raises:
            DamagedStoreError: the store cannot be used any more.
        """
        try:
            counts = self._compare_if_due(published, is_requested=is_requested)
        except DamagedStoreError:
            raise
        except PmmShmError as error:
            if self.problem is None:
                self._log.error("import of event_embeddings failed", error=str(error))
            self.problem = str(error)
            self._is_late, self._not_before = True, time.monotonic() + limits.IMPORT_RETRY_S
            return None
        if self._compared_at is not None:
            self.problem = None
        return counts

    def restart(self) -> None:
        """Forget all comparisons, because the event tables were cleared."""
        self._store.transact("imports.forget", lambda records: records.delete(_STATE_KEY))
        self._not_before, self._compared_at = 0.0, None

    def _forget_mark(self) -> None:
        self._compared_at = None

    def _compare_if_due(self, published: Position, *, is_requested: bool) -> ImportCounts:
        began = time.monotonic()
        with self._connection.lock:
            now_at = self._freshness.take(), published.as_of
        if not is_requested:
            has_changed = now_at != self._compared_at
            self._is_late = has_changed and began < self._not_before
            if self._is_late or not has_changed:
                return ImportCounts(0, 0, 0)
            differs = self._differs(published.as_of)
            took_s = time.monotonic() - began
            # Checking a large table takes time: at most a small share of one core.
            self._not_before = began + max(limits.IMPORT_CHECK_S, took_s / limits.IMPORT_CHECK_SHARE)
            if not differs:
                self._compared_at = now_at
                return ImportCounts(0, 0, 0)
        counts = self._compare(published)
        self._compared_at = now_at
        if any(counts):
            self._log.info("imported event_embeddings", **counts._asdict())
        return counts

    def _differs(self, published_id: int) -> bool:
        """Whether the table has changed since the last comparison, or the awaited event was published."""
        data = self._store.environment.get(_STATE_KEY)
        state = ImportState(0, None, None) if data is None else ImportState(*unpack(data))
        is_published = state.awaited is not None and state.awaited <= published_id
        return is_published or self._summary() != (state.rows, state.newest)

    def _compare(self, position: Position) -> ImportCounts:
        """Bring the imported vectors up to date with the ledger's table; `position` is the published head."""
        models = self._models()
        rows, newest = self._summary()
        self.progress = [0, rows]
        try:
            put, malformed, awaited, found = self._put_all(position) if rows else (0, 0, None, {})
            removed = self._remove_others(models, found)
            for model, dimension in {**models, **{name: parts[0] for name, parts in found.items()}}.items():
                if model != local_bow.NAME:
                    self._table_for(model, dimension).apply(VectorRows.none(dimension), position=position)
            state = pack([rows, newest, awaited])
            self._store.transact("imports.seen", lambda records: records.put(_STATE_KEY, state))
        finally:
            self.progress = None
        return ImportCounts(put, removed, malformed)

    def _summary(self) -> tuple[int, Any]:
        """(number of rows, newest created_at); (0, None) if there is no such table."""
        columns = {row[0] for row in self._fetch(_COLUMNS_SQL, ())}
        if not {"eid", "embedding"} <= columns:
            return 0, None
        newest = "max(created_at)" if "created_at" in columns else "NULL"
        rows, newest_value = self._fetch(f"SELECT count(*), {newest} FROM event_embeddings LIMIT ?", ())[0]
        return rows, newest_value if isinstance(newest_value, (int, float, str)) else None

    def _put_all(self, position: Position) -> tuple[int, int, int | None, dict[str, tuple[int, list[EventIds]]]]:
        put = malformed = 0
        awaited: int | None = None
        found: dict[str, tuple[int, list[EventIds]]] = {}
        last = _BEFORE_ALL
        while rows := self._fetch(_ROWS_SQL, (last,), limits.INDEX_EVENTS_PER_COMMIT):
            self._pause()
            last = rows[-1][0]
            groups: dict[int, list[tuple[int, bytes]]] = {}
            for event_id, data, has_event in rows:
                if not _is_vector(data):
                    malformed += 1
                elif has_event:
                    groups.setdefault(len(data) // 4, []).append((event_id, data))
                elif awaited is None and event_id > position.as_of:
                    awaited = event_id
            for dimension, group in groups.items():
                model = imported_model(dimension)
                # If `eid` is not a primary key, an id may occur twice: the last row counts.
                vectors = dict(group)
                ids = np.array(list(vectors), np.int64)
                try:
                    put += self._put(model, dimension, ids, b"".join(vectors.values()), position)
                except InvalidVectorError:
                    # The name belongs to an embedder with another dimension, or there are too many models.
                    malformed += len(group)
                    continue
                found.setdefault(model, (dimension, []))[1].append(ids)
            assert self.progress is not None
            self.progress = [self.progress[0] + len(rows), self.progress[1]]
        return put, malformed, awaited, found

    def _put(self, model: str, dimension: int, ids: EventIds, data: bytes, position: Position) -> int:
        """Put those rows that are new or have changed; returns how many."""
        table = self._table_for(model, dimension)
        vectors = np.frombuffer(data, "<f4").reshape(len(ids), dimension)
        present = table.rows_of(ids)
        numbers = np.searchsorted(ids, present.ids)
        is_same = (present.sources == VectorSource.IMPORTED) & (present.vectors == vectors[numbers]).all(axis=1)
        is_new = np.ones(len(ids), bool)
        is_new[numbers[is_same]] = False
        if is_new.any():
            sources = np.full(int(is_new.sum()), VectorSource.IMPORTED, np.uint8)
            # Always with the position: readers check by it that the rows belong to their log.
            moved_to = None if model == local_bow.NAME else position
            table.apply(VectorRows(ids[is_new], sources, vectors[is_new]), position=moved_to)
        return int(is_new.sum())

    def _remove_others(self, models: dict[str, int], found: dict[str, tuple[int, list[EventIds]]]) -> int:
        """Remove the imported vectors that the ledger's table no longer has; returns how many."""
        removed = 0
        for model, dimension in models.items():
            table = self._table_for(model, dimension)
            left = found.get(model, (dimension, []))[1]
            imported = table.ids_of(VectorSource.IMPORTED)
            # `setdiff1d` loads another part of numpy, which most daemons do without.
            gone = np.setdiff1d(imported, np.concatenate(left)) if left and len(imported) else imported
            if len(gone):
                table.apply(VectorRows.none(dimension), gone)
                self._on_removed(model)
                removed += len(gone)
        return removed

    def _fetch(self, sql: str, parameters: tuple[Any, ...], rows_max: int = limits.TAIL_ROWS_MAX) -> list[Any]:
        with self._connection.lock:
            return fetch_batch(self._connection, sql, parameters, rows_max).rows


def imported_model(dimension: int) -> str:
    """The model name of imported vectors of this dimension."""
    return local_bow.NAME if dimension == local_bow.DIMENSION else f"{IMPORTED_PREFIX}{dimension}"


def _is_vector(data: object) -> bool:
    if not isinstance(data, bytes) or len(data) % 4 or not 4 <= len(data) <= 4 * limits.DIMENSION_MAX:
        return False
    return bool(np.isfinite(np.frombuffer(data, "<f4")).all())
