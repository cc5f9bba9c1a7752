"""Semantic search: the published table of a model's event vectors, and the events that came since, embedded here.

Invariant: a table that the log does not continue is not searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.codec import unpack
from pmm_shm.errors import ConfigError, InvalidTextError, InvalidVectorError, SnapshotUnavailableError
from pmm_shm.ledger.freshness import Mark
from pmm_shm.ledger.tail import Position
from pmm_shm.store.environment import FileId, MappedTransaction
from pmm_shm.store.layout import OTHER_HISTORY_KEY
from pmm_shm.vectors.embedder import Embedder, checked_text, checked_vector, embedded
from pmm_shm.vectors.event_table import SERVED_KEY, TableRecord, TableView, table_key
from pmm_shm.vectors.events import EventTexts, Item
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.nearest import Rows, nearest
from pmm_shm.vectors.text_table_reader import TextTableReader
from pmm_shm_client.reader import Reader

if TYPE_CHECKING:
    from pmm_shm_client.embeddings import Embeddings

Ids = NDArray[np.int64]
Vectors = dict[str, NDArray[np.float32] | None]
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
    """What came behind a table in one state of it, as far as it is known.

    Attributes:
        identity, record: of the environment and of the table: the state.
        end: how far the log was read.
        mark: of the ledger, where that was the head.
        rows: the events that are not in the table.
    """

    identity: FileId
    record: TableRecord
    end: Position
    mark: Mark | None
    rows: Rows


class _Look(NamedTuple):
    """What one look at table and log found.

    Attributes:
        read_to: how far the log was read.
        as_of: up to where every event was taken into account.
        unknown: texts whose vectors are needed first; there are no hits then.
    """

    hits: list[tuple[int, float]]
    read_to: Position
    as_of: int
    is_complete: bool
    embedded_here: int
    unknown: list[str]


class _Wanted(NamedTuple):
    """What is searched for, checked. `embedder` is None where the model has none in this process."""

    model: str
    embedder: Embedder | None
    vector: NDArray[np.float64]
    k: int
    scope: Ids | None


class Searching:
    """The searches of one cache. Thread-safe.

    Table and log are looked at together, with the reader's lock held. Texts that turn out to have no vector yet are
    embedded without it, and then the same part of the log is looked at again.

    Parameters:
        reader: of the ledger and of the environment.
        embeddings: turns texts into vectors, once for all workers.
        shared: single values of the environment.
    """

    def __init__(self, reader: Reader, embeddings: Embeddings, shared: TextTableReader) -> None:
        self._reader = reader
        self._embeddings = embeddings
        self._shared = shared
        self._records: dict[str, tuple[bytes, TableRecord]] = {}
        self._since: dict[str, _Since] = {}
        self._tails: dict[str, tuple[FileId, TableRecord, Rows]] = {}
        # A mark of one connection says nothing of another's, and the environment closes with it.
        reader.connection.on_close(self._since.clear)
        reader.connection.on_close(self._tails.clear)

    def search(self, query: Query, k: int, scope: Iterable[int] | None, model: str | None) -> Hits[Hit]:
        """The `k` events nearest to `query`; see `Cache.search`."""
        k, ids = _checked_k(k), _checked_scope(scope)
        if model is None and not self._embeddings.names_default:
            model = self._served()
        embedder = self._embeddings.embedder(model)
        name = embedder.name if embedder is not None else str(model)
        wanted = _Wanted(name, embedder, self._vector(query, embedder, model), k, ids)
        vectors: Vectors = {}
        first = look = self._look(wanted, vectors, None)
        while look.unknown:
            vectors.update(self._vectors(look.unknown, embedder, model))
            look = self._look(wanted, vectors, first.read_to.event_id)
        hits = (Hit(*pair) for pair in look.hits)
        # The first look's end may be an event without a vector, which the last one had no need to come to.
        as_of = max(first.as_of, look.as_of) if look.is_complete else look.as_of
        return Hits(hits, as_of, first.is_complete and look.is_complete, look.embedded_here, name)

    def _served(self) -> str | None:
        """The model with which the daemon embeds events; None where it does not say."""
        data = self._shared.get(SERVED_KEY)
        return None if data is None else str(unpack(data))

    def _vector(self, query: Query, embedder: Embedder | None, model: str | None) -> NDArray[np.float64]:
        if not isinstance(query, str):
            return checked_vector(query)
        if not query:
            raise InvalidTextError("text: empty; there is nothing to search for")
        return checked_vector(self._embedded([query], embedder, model)[0])

    def _vectors(self, texts: list[str], embedder: Embedder | None, model: str | None) -> Vectors:
        """The vector of each text; None for one that has none, as it has none in the table."""
        try:
            return dict(zip(texts, self._embedded(texts, embedder, model), strict=True))
        except InvalidTextError:
            if len(texts) == 1:
                return {texts[0]: None}
        half = len(texts) // 2
        return {**self._vectors(texts[:half], embedder, model), **self._vectors(texts[half:], embedder, model)}

    def _embedded(self, texts: list[str], embedder: Embedder | None, model: str | None) -> NDArray[np.float32]:
        if isinstance(embedder, LocalBow):
            # Sooner computed than looked up, and without a daemon that may stand still.
            return embedded(embedder, [checked_text(text) for text in texts])
        return self._embeddings.embed_many(texts, model)

    def _look(self, wanted: _Wanted, vectors: Vectors, until_id: int | None) -> _Look:
        """Search what is published and what came since, up to `until_id` where it is given."""
        return self._reader.with_ledger(lambda: self._looked(wanted, vectors, until_id))

    def _looked(self, wanted: _Wanted, vectors: Vectors, until_id: int | None) -> _Look:
        # The mark first: it must not stand for more than was read.
        mark = self._reader.freshness.take()
        with self._reader.snapshots.begin_mapped() as found:
            record = None if found is None else self._record(found[0], wanted.model)
            if found is None or record is None:
                raise SnapshotUnavailableError(self._no_table(wanted.model))
            if len(wanted.vector) != record.dimension:
                checked_vector(wanted.vector, record.dimension)
            table = TableView(found[0], record)
            parts = [*table.blocks(), self._tail(table, found[1])]
            since = self._known_since(found[1], record)
            items: list[Item] = []
            is_complete = since.mark == mark
            if not is_complete:
                most = limits.SEARCH_EVENTS_MAX
                if not isinstance(wanted.embedder, LocalBow):
                    # Each of them may cost money, and time on the network.
                    most = min(most, len(since.rows) + limits.SEARCH_TEXTS_MAX)
                items, since, is_complete = self._read(since, mark, parts, until_id, most)
                if wanted.embedder is None:
                    if items:
                        # Searched by vector, the table of an embedder that is not here counts as far as it goes.
                        since, items, is_complete = _nothing_since(since.identity, record), [], False
                else:
                    items = _embeddable(items, wanted.embedder, record)
            unknown = {item.text for item in items if item.vector is None} - vectors.keys()
            if unknown:
                return _Look([], since.end, _as_of(since), is_complete, 0, sorted(unknown))
            rows = _merged(since.rows, items, vectors)
            self._since[wanted.model] = since._replace(rows=rows)
            hits = nearest([*parts, rows], wanted.vector, wanted.k, wanted.scope)
        return _Look(hits, since.end, _as_of(since), is_complete and record.ahead is None, len(rows), [])

    def _record(self, records: MappedTransaction, name: str) -> TableRecord | None:
        """What is published of the table; None where there is none, or one of another history."""
        data = records.get(table_key(name))
        if data is None or records.get(OTHER_HISTORY_KEY) is not None:
            return None
        raw = bytes(data)
        known = self._records.get(name)
        if known is None or known[0] != raw:
            known = self._records[name] = (raw, TableRecord.unpack(raw))
        return known[1]

    def _tail(self, table: TableView, identity: FileId) -> Rows:
        record = table.record
        known = self._tails.get(record.name)
        if known is not None and known[:2] == (identity, record):
            return known[2]
        rows = table.tail()
        self._tails[record.name] = (identity, record, rows)
        return rows

    # What came behind the table.

    def _known_since(self, identity: FileId, record: TableRecord) -> _Since:
        known = self._since.get(record.name)
        if known is not None and (known.identity, known.record) == (identity, record):
            return known
        return _nothing_since(identity, record)

    def _read(
        self, since: _Since, mark: Mark, parts: list[Rows], until_id: int | None, most: int
    ) -> tuple[list[Item], _Since, bool]:
        """The events that came behind what is known, as many as are embedded here; where that ends; whether it is the
        head of the log, or `until_id`.

        Raises:
            SnapshotUnavailableError: the log does not continue the table.
        """
        record, end = since.record, since.end
        texts = EventTexts(self._reader.connection, record.kinds, record.name)
        items: dict[int, Item] = {}
        while True:
            room = most - len(since.rows) - len(items)
            # Without room, too: the log may have lost what was read before.
            read = texts.read(end, min(room, limits.TAIL_ROWS_MAX), until_id)
            if not read.is_anchored:
                self._since.pop(record.name, None)
                raise SnapshotUnavailableError(
                    f"{self._reader.connection.path}: the log does not continue the published table of model "
                    f"{record.name!r}; pmm-cached makes it anew"
                )
            end = read.position
            items.update((item.event_id, item) for item in _not_in([*parts, since.rows], read.items))
            if read.is_complete or len(since.rows) + len(items) >= most:
                break
        is_head = read.is_complete and until_id is None
        return list(items.values()), since._replace(end=end, mark=mark if is_head else None), read.is_complete

    def _no_table(self, name: str) -> str:
        failure = self._reader.snapshots.locator.failure
        why = f" ({failure})" if failure is not None else ""
        return f"{self._reader.connection.path}: no vectors of model {name!r} are published{why}; start pmm-cached"


def _nothing_since(identity: FileId, record: TableRecord) -> _Since:
    none = Rows.of(np.empty(0, np.int64), np.empty((0, record.dimension), np.float32))
    return _Since(identity, record, record.reached, None, none)


def _as_of(since: _Since) -> int:
    """Up to where every event is taken into account: where there is a backlog, not beyond it."""
    return since.end.as_of if since.record.ahead is None else since.record.position.as_of


def _embeddable(items: list[Item], embedder: Embedder, record: TableRecord) -> list[Item]:
    if items and embedder.dimension != record.dimension:
        raise InvalidVectorError(
            f"model {record.name!r}: dimension {embedder.dimension} here, and the table has {record.dimension}"
        )
    return [item for item in items if item.text or embedder.takes_empty]


def _merged(rows: Rows, items: list[Item], vectors: Vectors) -> Rows:
    """The rows, and those of other events, in order."""
    items = [item for item in items if item.vector is not None or vectors[item.text] is not None]
    if not items:
        return rows
    ids = np.concatenate((rows.ids, np.array([item.event_id for item in items], np.int64)))
    found = [vectors[item.text] if item.vector is None else item.vector for item in items]
    order = np.argsort(ids)
    return Rows.of(ids[order], np.concatenate((rows.vectors, np.array(found, np.float32)))[order])


def _not_in(parts: Iterable[Rows], items: list[Item]) -> list[Item]:
    """Those that have no row: the table may be ahead of its position, and later events name earlier ones."""
    ids = np.array([item.event_id for item in items], np.int64)
    is_missing = np.ones(len(items), bool)
    for rows in parts if items else ():
        is_missing &= ~rows.living(ids)
    return [item for item, is_wanted in zip(items, is_missing.tolist(), strict=True) if is_wanted]


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
