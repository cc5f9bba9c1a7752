"""Semantic search: the published table of a model's event vectors, and the events that came since, embedded here.

Invariant: a table that the log does not continue is not searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.embedding.contract import Embedder, checked_vector
from pmm_shm.embedding.events import EventTexts, Item
from pmm_shm.errors import (
    ConfigError,
    InvalidTextError,
    InvalidVectorError,
    SnapshotUnavailableError,
)
from pmm_shm.ledger.freshness import Mark
from pmm_shm.ledger.tail import Position
from pmm_shm.nearest import Rows, nearest
from pmm_shm.store.environment import FileId, MappedRecords
from pmm_shm.store.event_vectors import TableRecord, TableView, table_key
from pmm_shm_client.reader import Reader

if TYPE_CHECKING:
    from pmm_shm_client.embeddings import Embeddings

Ids = NDArray[np.int64]
Query = str | Sequence[float] | NDArray[Any]


class Hit(NamedTuple):
    """An event, and how similar it is to what was searched for: -1.0 to 1.0."""

    event_id: int
    similarity: float


class Recollection(NamedTuple):
    """As `Hit`, with the event itself as `EventLog.get_event` has it."""

    event_id: int
    similarity: float
    event: dict[str, Any]


_H = TypeVar("_H", bound="Hit | Recollection")


class Hits(tuple[_H, ...]):
    """What a search found, best first, ties by ascending event id; immutable.

    Attributes:
        as_of: every event up to this one was taken into account.
        is_complete: whether that was the head of the log when the search looked at it.
        embedded_here: how many events were not in the published table, and were embedded in this process.
        model: whose vectors were compared.
    """

    as_of: int
    is_complete: bool
    embedded_here: int
    model: str

    def __new__(cls, hits: Iterable[_H], as_of: int, is_complete: bool, embedded_here: int, model: str) -> Hits[_H]:
        made = super().__new__(cls, hits)
        made.as_of, made.is_complete, made.embedded_here, made.model = as_of, is_complete, embedded_here, model
        return made

    def with_events(self, event_of: Callable[[int], dict[str, Any] | None]) -> Hits[Recollection]:
        """The same with the events; one that is not in the log any more is left out."""
        found = ((hit.event_id, hit.similarity, event_of(hit.event_id)) for hit in self)
        kept = (Recollection(*one[:2], one[2]) for one in found if one[2] is not None)
        return Hits(kept, self.as_of, self.is_complete, self.embedded_here, self.model)


class _Since(NamedTuple):
    """What came behind a table.

    Attributes:
        record: of the table.
        end: how far the log was read.
        mark: of the ledger, where that was the head.
        is_complete: whether it was.
        at, rows: the events that are not in the table, with the ids of those that brought them, (n,) int64.
    """

    record: TableRecord
    end: Position
    mark: Mark | None
    is_complete: bool
    at: Ids
    rows: Rows

    def follows(self, record: TableRecord) -> bool:
        """Whether this is what came behind that state of the table."""
        return (self.record.position, self.record.kinds) == (record.position, record.kinds)


class _Read(NamedTuple):
    """What one look at the log found behind `before`."""

    before: _Since
    items: list[Item]
    mark: Mark
    is_complete: bool
    end: Position


class Searching:
    """The searches of one cache. Thread-safe.

    Parameters:
        reader: of the ledger and of the environment.
        embeddings: turns texts into vectors, once for all workers.
    """

    def __init__(self, reader: Reader, embeddings: Embeddings) -> None:
        self._reader = reader
        self._embeddings = embeddings
        self._since: dict[str, _Since] = {}
        self._tails: dict[str, tuple[FileId, int, Rows]] = {}
        # A mark of one connection says nothing of another's.
        reader.connection.on_close(self._since.clear)

    def search(self, query: Query, k: int, scope: Iterable[int] | None, model: str | None) -> Hits[Hit]:
        """The `k` events nearest to `query`; see `Cache.search`."""
        k, ids = _checked_k(k), _checked_scope(scope)
        embedder = self._embeddings.embedder(model)
        name = embedder.name if embedder is not None else str(model)
        vector = self._vector(query, model)
        since = self._newest(name, embedder, model)
        with self._reader.mapped() as found:
            record = None if found is None else _record(found[0], name)
            if found is None or record is None:
                raise SnapshotUnavailableError(self._no_table(name))
            checked_vector(vector, record.dimension)
            table = TableView(found[0], record)
            parts = [*table.blocks(), self._tail(table, found[1])]
            newer = _not_in(record, parts, since)
            hits = nearest([*parts, newer], vector, k, ids)
        # The daemon may have been quicker.
        end = record.position if _is_behind(since.end, record.position) else since.end
        return Hits((Hit(*pair) for pair in hits), end.as_of, since.is_complete, len(newer), name)

    def _vector(self, query: Query, model: str | None) -> NDArray[np.float64]:
        if not isinstance(query, str):
            return checked_vector(query)
        if not query:
            raise InvalidTextError("text: empty; there is nothing to search for")
        return checked_vector(self._embeddings.embed(query, model))

    def _tail(self, table: TableView, identity: FileId) -> Rows:
        record = table.record
        known = self._tails.get(record.name)
        if known is not None and known[:2] == (identity, record.version):
            return known[2]
        rows = table.tail()
        self._tails[record.name] = (identity, record.version, rows)
        return rows

    # What came behind the table.

    def _newest(self, name: str, embedder: Embedder | None, model: str | None) -> _Since:
        """What came behind the table, up to the head of the log or as much of it as is embedded here.

        Raises:
            SnapshotUnavailableError: there is no table, or one that the log does not continue.
        """
        read = self._reader.with_ledger(lambda: self._read(name))
        before, items = read.before, read.items
        if before.mark is not None and before.mark == read.mark:
            return before
        rows, at = before.rows, before.at
        if items:
            if embedder is None:
                # Searched by vector, the table of an embedder that is not here counts as far as it goes.
                return before
            items = [item for item in items if item.text or embedder.takes_empty]
            rows, at = _merged(before, items, self._embedded(embedder, model, before.record, items))
        mark = read.mark if read.is_complete else None
        made = self._since[name] = _Since(before.record, read.end, mark, read.is_complete, at, rows)
        return made

    def _read(self, name: str) -> _Read:
        """Read the log from where the last search came to. With the connection's lock held."""
        mark = self._reader.freshness.take()
        with self._reader.snapshots.begin_mapped() as found:
            record = None if found is None else _record(found[0], name)
        if record is None:
            raise SnapshotUnavailableError(self._no_table(name))
        before = self._since.get(name)
        if before is None or not before.follows(record):
            before = _nothing_since(record)
        if before.mark is not None and before.mark == mark:
            return _Read(before, [], mark, True, before.end)
        texts = EventTexts(self._reader.connection, record.kinds, name)
        items: list[Item] = []
        end, is_complete = before.end, False
        while not is_complete and (room := limits.SEARCH_EVENTS_MAX - len(before.rows) - len(items)) > 0:
            read = texts.read(end, min(room, limits.TAIL_ROWS_MAX))
            if not read.is_anchored:
                self._since.pop(name, None)
                raise SnapshotUnavailableError(
                    f"{self._reader.connection.path}: the log does not continue the published table of model {name!r}; "
                    "pmm-cached makes it anew"
                )
            items += read.items
            end, is_complete = read.position, read.is_complete
        return _Read(before, items, mark, is_complete, end)

    def _embedded(
        self, embedder: Embedder, model: str | None, record: TableRecord, items: list[Item]
    ) -> NDArray[np.float32]:
        if embedder.dimension != record.dimension:
            raise InvalidVectorError(
                f"model {record.name!r}: dimension {embedder.dimension} here, and the table has {record.dimension}"
            )
        texts = [item.text for item in items if item.vector is None]
        found = iter(self._embeddings.embed_many(texts, model)) if texts else iter(())
        vectors = [next(found) if item.vector is None else item.vector for item in items]
        return np.array(vectors, np.float32).reshape(len(items), record.dimension)

    def _no_table(self, name: str) -> str:
        failure = self._reader.snapshots.failure
        why = f" ({failure})" if failure is not None else ""
        return f"{self._reader.connection.path}: no vectors of model {name!r} are published{why}; start pmm-cached"


def _record(records: MappedRecords, name: str) -> TableRecord | None:
    data = records.get(table_key(name))
    return None if data is None else TableRecord.unpack(bytes(data))


def _nothing_since(record: TableRecord) -> _Since:
    none = Rows.of(np.empty(0, np.int64), np.empty((0, record.dimension), np.float32))
    return _Since(record, record.position, None, False, none.ids, none)


def _merged(before: _Since, items: list[Item], vectors: NDArray[np.float32]) -> tuple[Rows, Ids]:
    """What came before and what came now, each event once and in order."""
    ids = np.concatenate((before.rows.ids, np.array([item.event_id for item in items], np.int64)))
    at = np.concatenate((before.at, np.array([item.at for item in items], np.int64)))
    unique, places = np.unique(ids, return_index=True)
    return Rows.of(unique, np.concatenate((before.rows.vectors, vectors))[places]), at[places]


def _is_behind(one: Position, other: Position) -> bool:
    if other.event_id is None:
        return False
    return one.event_id is None or one.event_id < other.event_id


def _not_in(record: TableRecord, parts: Iterable[Rows], since: _Since) -> Rows:
    """Those of the newer rows that the table does not have, which may have moved on since the log was read."""
    newer = since.rows
    reached = record.position.event_id
    is_missing = np.ones(len(newer), bool) if reached is None else since.at > reached
    if is_missing.any():
        for rows in parts:
            is_missing &= ~rows.living(newer.ids)
    return Rows(newer.ids[is_missing], newer.vectors[is_missing], newer.inverse_norms[is_missing])


def _checked_k(k: object) -> int:
    if type(k) is not int or not 1 <= k <= limits.SEARCH_K_MAX:
        raise ConfigError(f"k: expected an integer from 1 to {limits.SEARCH_K_MAX}, got {k!r}")
    return k


def _checked_scope(scope: object) -> Ids | None:
    """Event ids, ascending and each once; None for all events."""
    if scope is None:
        return None
    try:
        ids = np.asarray(scope if isinstance(scope, np.ndarray) else list(scope))  # type: ignore[call-overload]
        if ids.size == 0:
            return np.empty(0, np.int64)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"{ids.dtype} in {ids.ndim} dimensions")
        if ids.dtype == np.uint64 and ids.max() >= 1 << 63:
            raise TypeError("an id over 64 bits")
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"scope: expected event ids: {error}") from None
    return np.unique(ids.astype(np.int64))
