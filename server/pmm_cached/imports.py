"""Importing the ledger's own table `event_embeddings`.

Its rows change without an event, so nobody says that they did: the table is compared when the ledger has changed and
the number of its rows or its newest `created_at` is another than at the last comparison, and on request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pmm_shm import limits
from pmm_shm.codec import pack, unpack
from pmm_shm.errors import InvalidVectorError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.tail import Position
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.event_table import Ids
from pmm_shm.vectors.event_table_writer import EventVectorWriter, VectorRows
from pmm_shm.vectors.events import Source

SEEN_KEY = b"i"
_BEFORE_ALL = -(1 << 63)
# Not of a view: it may be anything, and without end.
_COLUMNS_SQL = (
    "SELECT name FROM pragma_table_info('event_embeddings') WHERE EXISTS "
    "(SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'event_embeddings') LIMIT ?"
)
_ROWS_SQL = (
    "SELECT eid, embedding, eid IN (SELECT id FROM events) FROM event_embeddings "
    "WHERE eid > ? AND typeof(eid) = 'integer' ORDER BY eid LIMIT ?"
)


class Seen(NamedTuple):
    """What the table looked like at the last comparison.

    Attributes:
        rows: how many there were.
        newest: the newest `created_at`, as SQLite has it.
        awaited: the smallest id behind what was published for which there was a row and no event yet; None for none.
    """

    rows: int
    newest: Any
    awaited: int | None

    def pack(self) -> bytes:
        return pack(list(self))


class Counts(NamedTuple):
    """What one comparison did to the tables of vectors."""

    put: int
    removed: int
    malformed: int


class EmbeddingImport:
    """Compares the ledger's table with the vectors that came from it.

    Parameters:
        connection: a read-only connection of the thread that calls.
        table_for: the table of a model, opened where it is not yet.
        on_removed: called with a model whose events have lost vectors.
        pause: called between small pieces of work.
    """

    def __init__(
        self,
        writer: StoreWriter,
        connection: Connection,
        table_for: Callable[[str, int], EventVectorWriter],
        on_removed: Callable[[str], None],
        pause: Callable[[], None],
    ) -> None:
        self._store = writer
        self._connection = connection
        self._table_for = table_for
        self._on_removed = on_removed
        self._pause = pause
        self.rows_done = 0
        self.rows_total: int | None = None

    def differs(self, published_id: int) -> bool:
        """Whether the ledger's table looks other than at the last comparison, or an event has come that it waited for.

        Raises:
            LedgerError, StoreError: as their names say.
        """
        data = self._store.environment.get(SEEN_KEY)
        seen = Seen(0, None, None) if data is None else Seen(*unpack(data))
        look = self._look()
        return look != (seen.rows, seen.newest) or (seen.awaited is not None and seen.awaited <= published_id)

    def forget(self) -> None:
        """Compare anew: the tables were emptied."""
        self._store.transact("imports.forget", lambda records: records.delete(SEEN_KEY))

    def compare(self, models: dict[str, int], position: Position) -> Counts:
        """Bring the tables of vectors up to what the ledger's table holds.

        Parameters:
            models: name and dimension of every model that may have imported vectors.
            position: up to which event the log is looked at.

        Raises:
            LedgerError, StoreError: as their names say.
        """
        rows, newest = self._look()
        self.rows_done, self.rows_total = 0, rows
        try:
            put, malformed, awaited, seen = self._put_all(position) if rows else (0, 0, None, {})
            removed = self._remove_others(models, seen)
            for model, dimension in {**models, **{name: parts[0] for name, parts in seen.items()}}.items():
                if model != local_bow.NAME:
                    self._table_for(model, dimension).apply(VectorRows.none(dimension), position=position)
            self._store.transact(
                "imports.seen", lambda records: records.put(SEEN_KEY, Seen(rows, newest, awaited).pack())
            )
        finally:
            self.rows_total = None
        return Counts(put, removed, malformed)

    def _look(self) -> tuple[int, Any]:
        """(number of rows, newest created_at); (0, None) where there is no such table."""
        columns = {row[0] for row in self._fetch(_COLUMNS_SQL, ())}
        if not {"eid", "embedding"} <= columns:
            return 0, None
        newest = "max(created_at)" if "created_at" in columns else "NULL"
        rows, newest_value = self._fetch(f"SELECT count(*), {newest} FROM event_embeddings LIMIT ?", ())[0]
        return rows, newest_value if isinstance(newest_value, (int, float, str)) else None

    def _put_all(self, position: Position) -> tuple[int, int, int | None, dict[str, tuple[int, list[Ids]]]]:
        put = malformed = 0
        awaited: int | None = None
        seen: dict[str, tuple[int, list[Ids]]] = {}
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
                # Where `eid` is no primary key, one may come twice: the last one counts.
                vectors = dict(group)
                ids = np.array(list(vectors), np.int64)
                try:
                    put += self._put(model, dimension, ids, b"".join(vectors.values()), position)
                except InvalidVectorError:
                    # An embedder of this name with another dimension, or too many models: no room for these rows.
                    malformed += len(group)
                    continue
                seen.setdefault(model, (dimension, []))[1].append(ids)
            self.rows_done += len(rows)
        return put, malformed, awaited, seen

    def _put(self, model: str, dimension: int, ids: Ids, data: bytes, position: Position) -> int:
        """Put those rows that are new or other than before; returns how many."""
        table = self._table_for(model, dimension)
        vectors = np.frombuffer(data, "<f4").reshape(len(ids), dimension)
        present = table.rows_of(ids)
        places = np.searchsorted(ids, present.ids)
        is_same = (present.sources == Source.IMPORTED) & (present.vectors == vectors[places]).all(axis=1)
        is_new = np.ones(len(ids), bool)
        is_new[places[is_same]] = False
        if is_new.any():
            sources = np.full(int(is_new.sum()), Source.IMPORTED, np.uint8)
            # Never rows without the position by which a reader sees whether they are of its log.
            reached = None if model == local_bow.NAME else position
            table.apply(VectorRows(ids[is_new], sources, vectors[is_new]), position=reached)
        return int(is_new.sum())

    def _remove_others(self, models: dict[str, int], seen: dict[str, tuple[int, list[Ids]]]) -> int:
        """Remove the imported vectors that the ledger's table has no more; returns how many."""
        removed = 0
        for model, dimension in models.items():
            table = self._table_for(model, dimension)
            left = seen.get(model, (dimension, []))[1]
            gone = np.setdiff1d(table.ids_of(Source.IMPORTED), np.concatenate(left) if left else np.empty(0, np.int64))
            if len(gone):
                table.apply(VectorRows.none(dimension), gone)
                self._on_removed(model)
                removed += len(gone)
        return removed

    def _fetch(self, sql: str, parameters: tuple[Any, ...], rows_max: int = limits.TAIL_ROWS_MAX) -> list[Any]:
        with self._connection.lock:
            return fetch_batch(self._connection, sql, parameters, rows_max).rows


def imported_model(dimension: int) -> str:
    """The model of imported vectors of this dimension."""
    return local_bow.NAME if dimension == local_bow.DIMENSION else f"imported-{dimension}"


def _is_vector(data: object) -> bool:
    if not isinstance(data, bytes) or len(data) % 4 or not 4 <= len(data) <= 4 * limits.DIMENSION_MAX:
        return False
    return bool(np.isfinite(np.frombuffer(data, "<f4")).all())
