"""Semantic search: a model's published event table, and newer events, which are embedded in this process.

Where no table is published, an empty one takes its place: it stands before the newest events, as many as one search
embeds.

Invariant: a table that the log does not continue is not searched.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.errors import ConfigError, InvalidTextError, InvalidVectorError, LedgerBusyError, SnapshotUnavailableError
from pmm_shm.instance.paths import FileId
from pmm_shm.ledger.freshness import Mark
from pmm_shm.ledger.tail import START, Position
from pmm_shm.store.environment import HeldTableError, MappedTransaction
from pmm_shm.store.layout import OTHER_HISTORY_KEY
from pmm_shm.vectors.embedder import Embedder, checked_text, checked_vector, embedded
from pmm_shm.vectors.event_table import EventTableRecord, EventTableView, PositionRange, served_model, table_key
from pmm_shm.vectors.events import DEFAULT_KINDS, EventText, EventTextReader, has_event_embeddings
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.nearest import EventIds, NearestRows, SearchRows, nearest_rows
from pmm_shm.vectors.question import question_text
from pmm_shm.vectors.registry import advice_on
from pmm_shm.vectors.wordllama import WordLlama
from pmm_shm_client.hits import Hit, Hits
from pmm_shm_client.reader import Reader

if TYPE_CHECKING:
    from pmm_shm_client.embeddings import Embeddings

Query = str | Sequence[float] | NDArray[Any]
_Vectors = dict[str, NDArray[np.float32] | None]
"""Text to vector; None for a text that has none."""
_T = TypeVar("_T")


class _HeldError(SnapshotUnavailableError):
    """Another process holds the lock of the reader table."""


class Nearest(NamedTuple):
    """The events nearest to a query, event id to similarity, best first; their vectors, (n, dimension) float32; and the
    similarities of others that were asked for. The other attributes are as of `Hits`.
    """

    similarities: dict[int, float]
    vectors: NDArray[np.float32]
    others: dict[int, float]
    as_of: int
    is_complete: bool
    embedded_here: int
    model: str


class _SearchRequest(NamedTuple):
    """A checked request. `embedder` is None if this process has none for the model; the similarities of `others` are
    asked for, too.
    """

    model: str
    embedder: Embedder | None
    vector: NDArray[np.float64]
    k: int
    scope: EventIds | None
    others: Sequence[int]


class _SearchPass(NamedTuple):
    """The result of one pass over table and log.

    Attributes:
        end: the last event that was read.
        as_of: every event up to this one was taken into account.
        missing: texts whose vectors are needed first; nothing is found then.
    """

    found: NearestRows | None
    end: Position
    as_of: int
    is_complete: bool
    embedded_here: int
    missing: list[str]


class _NotContinuedError(Exception):
    """The log does not continue a table."""


class _NewEvents(NamedTuple):
    """The events that a table in one state does not have.

    Attributes:
        identity, record: of the environment (None without a published table) and of the table: the state.
        end: the last event that was read.
        mark: of the ledger, if `end` was the head of the log; otherwise None.
        rows: of the events that are not in the table.
    """

    identity: FileId | None
    record: EventTableRecord
    end: Position
    mark: Mark | None
    rows: SearchRows

    @classmethod
    def none(cls, identity: FileId | None, record: EventTableRecord) -> _NewEvents:
        """Nothing read yet."""
        rows = SearchRows.of(np.empty(0, np.int64), np.empty((0, record.dimension), np.float32))
        return cls(identity, record, record.newest, None, rows)

    @property
    def as_of(self) -> int:
        """A search takes into account every event up to this one; with a backlog, none beyond its beginning."""
        if not self.record.is_filled:
            return START.as_of
        return self.end.as_of if self.record.newer is None else self.record.position.as_of

    def with_rows(self, texts: list[EventText], vectors: _Vectors) -> _NewEvents:
        """The same with the rows of more events; a text without a vector gets no row."""
        texts = [one for one in texts if one.vector is not None or vectors[one.text] is not None]
        if not texts:
            return self
        ids = np.concatenate((self.rows.ids, np.array([one.event_id for one in texts], np.int64)))
        found = [vectors[one.text] if one.vector is None else one.vector for one in texts]
        order = np.argsort(ids)
        matrix = np.concatenate((self.rows.vectors, np.array(found, np.float32)))
        return self._replace(rows=SearchRows.of(ids[order], matrix[order]))


class Searching:
    """The searches of one cache. Thread-safe.

    A pass reads table and log together, with the reader's lock held. If it needs vectors of new texts, they are
    computed without the lock, and another pass reads the same part of the log.

    Parameters:
        reader: of the ledger and of the environment.
        embeddings: turns texts into vectors, once for all workers.
    """

    def __init__(self, reader: Reader, embeddings: Embeddings) -> None:
        self._reader = reader
        self._embeddings = embeddings
        self._records: dict[str, tuple[bytes, EventTableRecord]] = {}
        self._new_events: dict[str, _NewEvents] = {}
        self._tails: dict[str, tuple[FileId, EventTableRecord, SearchRows]] = {}
        self._own_records: dict[str, EventTableRecord] = {}
        self._is_advised = embeddings.names_default
        # A mark is valid for one connection only, and the environment closes with the connection.
        reader.connection.on_close(self._new_events.clear)
        reader.connection.on_close(self._tails.clear)
        reader.connection.on_close(self._own_records.clear)

    @property
    def names_default(self) -> bool:
        """Whether this process names the model that is searched."""
        return self._embeddings.names_default

    def search(self, query: Query, k: int, scope: Iterable[int] | None, model: str | None) -> Hits[Hit]:
        """The `k` events nearest to `query`; see `Cache.search`."""
        k, ids = checked_k(k), checked_scope(scope)
        found = self._reader.in_one_file(lambda: self.nearest(query, k, ids, model))
        hits = (Hit(*pair) for pair in found.similarities.items())
        return Hits(hits, found.as_of, found.is_complete, found.embedded_here, found.model)

    def nearest(
        self,
        query: Query,
        k: int,
        ids: EventIds | None,
        model: str | None,
        others: Sequence[int] = (),
        *,
        is_question: bool = False,
        is_dated: bool = False,
        served: str | None = None,
        deadline: float | None = None,
    ) -> Nearest:
        """The same for any number `k`, and the similarities of `others` that have a vector and are not among the hits.

        Parameters:
            ids, others: ascending, each once.
            is_question: in a query that is a text, question words may count less,
            is_dated: and dates not at all.
            served: the model with which the daemon embeds events, where that was just read.
            deadline: until when an embedder on the network is waited for, on the monotonic clock.
        """
        if model is None and not self._embeddings.names_default:
            model = served or self._read(lambda _: self._served())
        embedder = self._embeddings.embedder(model)
        name = embedder.name if embedder is not None else str(model)
        if isinstance(embedder, LocalBow) and not self._is_advised:
            self._is_advised = True
            logging.getLogger(__name__).info("%s", advice_on(name))
        if is_question and isinstance(query, str) and isinstance(embedder, WordLlama):
            query = question_text(query, is_dated=is_dated)
        request = _SearchRequest(name, embedder, self._vector(query, embedder, model, deadline), k, ids, others)
        vectors: _Vectors = {}
        first = last = self._read(lambda has_looked: self._pass(request, vectors, None, has_looked))
        while last.missing:
            vectors.update(self._vectors(last.missing, embedder, model, deadline))
            last = self._read(lambda has_looked: self._pass(request, vectors, first.end.event_id, has_looked))
        # The first pass may end with an event without a vector, which the last one did not need to read.
        as_of = max(first.as_of, last.as_of) if last.is_complete else last.as_of
        is_complete = first.is_complete and last.is_complete
        assert last.found is not None
        return Nearest(*last.found, as_of, is_complete, last.embedded_here, name)

    def _read(self, action: Callable[[bool], _T]) -> _T:
        """Run `action` with the reader's lock; again if its failure may be only of the moment.

        A search waits where a read replays the log: events that are embedded here are not all.

        Parameters:
            action: is told whether the ledger was looked at again.
        """
        deadline, has_looked = time.monotonic() + limits.SEARCH_WAIT_S, False
        while True:
            try:
                return self._reader.with_ledger(partial(action, has_looked))
            except _HeldError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(limits.SEARCH_POLL_S)
            except _NotContinuedError:
                # The table may be newer than what this process still trusts: the file at the path, or its columns.
                has_looked = True
                with self._reader.connection.lock:
                    self._reader.freshness.distrust()

    def _served(self) -> str | None:
        """The model with which the daemon embeds events; None if it is unknown."""
        with self._reader.snapshots.begin_mapped() as found:
            if found is None:
                self._check_held()
            return None if found is None else served_model(found[0])

    def _check_held(self) -> None:
        """Raise `_HeldError` if that is why the published state could not be read."""
        failure = self._reader.snapshots.locator.failure
        if isinstance(failure, HeldTableError):
            raise _HeldError(str(failure))

    def _vector(
        self, query: Query, embedder: Embedder | None, model: str | None, deadline: float | None
    ) -> NDArray[np.float64]:
        if not isinstance(query, str):
            return checked_vector(query)
        if not query:
            raise InvalidTextError("text: empty; there is nothing to search for")
        if isinstance(embedder, LocalBow):
            return checked_vector(_local_vectors(embedder, [checked_text(query)])[query])
        return checked_vector(self._embeddings.embed(query, model, deadline))

    def _vectors(
        self, texts: list[str], embedder: Embedder | None, model: str | None, deadline: float | None
    ) -> _Vectors:
        """The vector of each text; None for a text that has none, neither in the table."""
        if isinstance(embedder, LocalBow):
            return _local_vectors(embedder, texts)
        return dict(zip(texts, self._embeddings.embed_each(texts, model, deadline), strict=True))

    def _pass(self, request: _SearchRequest, vectors: _Vectors, until_id: int | None, has_looked: bool) -> _SearchPass:
        """Search the published table and the new events, up to `until_id` if given; with the reader's lock held.

        Raises:
            _HeldError: another process holds the lock of the reader table.
            _NotContinuedError: the log does not continue the table, and not `has_looked` again.
        """
        # The mark first: it must not include commits after the read.
        mark = self._reader.freshness.take()
        with self._reader.snapshots.begin_mapped() as found:
            record = None if found is None else self._record(found[0], request.model)
            if found is None:
                self._check_held()
            if found is not None and record is not None:
                table = EventTableView(found[0], record)
                parts = [*table.blocks(), self._tail(table, found[1])]
                for _ in range(2):
                    # Perhaps the log continues the table, and not the events after it that were read before.
                    with suppress(_NotContinuedError):
                        return self._search(request, vectors, until_id, mark, found[1], record, parts)
                if not has_looked:
                    raise _NotContinuedError
            if request.embedder is None:
                raise SnapshotUnavailableError(self._no_table(request.model))
            for _ in range(limits.REPLAYS_MAX):
                record = self._own_record(request.model, request.embedder, mark, until_id)
                with suppress(_NotContinuedError):
                    return self._search(request, vectors, until_id, mark, None, record, [])
        raise LedgerBusyError(f"{self._reader.connection.path}: changed again and again while it was searched")

    def _own_record(self, name: str, embedder: Embedder, mark: Mark, until_id: int | None) -> EventTableRecord:
        """The record of an empty table in place of one that is not published; with the reader's lock held.

        It stays while there is room for the events after it; then the next one stands before newer events.
        """
        rows_max, known, new = _rows_max(embedder), self._own_records.get(name), self._new_events.get(name)
        if known is not None:
            is_full = new is not None and new.record == known and len(new.rows) >= rows_max
            if until_id is not None or not is_full or (new is not None and new.mark == mark):
                return known
        connection = self._reader.connection
        start = EventTextReader(connection, DEFAULT_KINDS, name).position_of_newest(rows_max)
        is_whole = start is START and not has_event_embeddings(connection)
        record = EventTableRecord(name, embedder.dimension, DEFAULT_KINDS)
        self._own_records[name] = record if is_whole else replace(record, newer=PositionRange(START, start))
        return self._own_records[name]

    def _search(
        self,
        request: _SearchRequest,
        vectors: _Vectors,
        until_id: int | None,
        mark: Mark,
        identity: FileId | None,
        record: EventTableRecord,
        parts: list[SearchRows],
    ) -> _SearchPass:
        """A pass over a table with these parts.

        Raises:
            _NotContinuedError: the log does not continue it.
        """
        if len(request.vector) != record.dimension:
            checked_vector(request.vector, record.dimension)
        new = self._new_events.get(record.name)
        if new is None or (new.identity, new.record) != (identity, record):
            new = _NewEvents.none(identity, record)
        texts: list[EventText] = []
        is_complete = new.mark == mark
        if not is_complete:
            texts, new, is_complete = self._read_new(new, request, mark, parts, until_id)
        missing = {one.text for one in texts if one.vector is None} - vectors.keys()
        if missing:
            return _SearchPass(None, new.end, new.as_of, is_complete, 0, sorted(missing))
        new = self._new_events[request.model] = new.with_rows(texts, vectors)
        found = nearest_rows([*parts, new.rows], request.vector, request.k, request.scope, request.others)
        is_complete = is_complete and record.newer is None and record.is_filled
        return _SearchPass(found, new.end, new.as_of, is_complete, len(new.rows), [])

    def _read_new(
        self, known: _NewEvents, request: _SearchRequest, mark: Mark, parts: list[SearchRows], until_id: int | None
    ) -> tuple[list[EventText], _NewEvents, bool]:
        """Read on in the log, within the limits of the embedder: the events found, the new end, and whether it is the
        head of the log or `until_id`.

        Parameters:
            mark: of the ledger, taken before the call.
            parts: all rows of the table.

        Raises:
            LedgerError: the ledger cannot be read.
            _NotContinuedError: the log does not continue the table.
        """
        embedder, record = request.embedder, known.record
        rows_max = min(limits.SEARCH_EVENTS_MAX - len(known.rows), _rows_max(embedder))
        connection = self._reader.connection
        reader = EventTextReader(connection, record.kinds, record.name)
        found: dict[int, EventText] = {}
        end, is_complete = known.end, False
        while True:
            # Even without room, because the log may have lost what was read before.
            read = reader.read(end, min(rows_max - len(found), limits.TAIL_ROWS_MAX), until_id)
            if not read.is_anchored:
                self._new_events.pop(record.name, None)
                self._own_records.pop(record.name, None)
                raise _NotContinuedError
            end, is_complete = read.position, read.is_complete
            found.update((one.event_id, one) for one in _not_in([*parts, known.rows], read.texts))
            if is_complete or len(found) >= rows_max:
                break
        texts = list(found.values())
        new = known._replace(end=end, mark=mark if is_complete and until_id is None else None)
        if embedder is None:
            # New events cannot be embedded here, so a search by vector covers only the table.
            return ([], _NewEvents.none(known.identity, record), False) if texts else ([], new, is_complete)
        if texts and embedder.dimension != record.dimension:
            raise InvalidVectorError(
                f"model {record.name!r}: dimension {embedder.dimension} here, and the table has {record.dimension}"
            )
        return [one for one in texts if one.text or embedder.takes_empty], new, is_complete

    def _record(self, records: MappedTransaction, name: str) -> EventTableRecord | None:
        """The published record of the table; None if there is none, or the log has another history."""
        data = records.get(table_key(name))
        if data is None or records.get(OTHER_HISTORY_KEY) is not None:
            return None
        raw = bytes(data)
        known = self._records.get(name)
        if known is None or known[0] != raw:
            known = self._records[name] = (raw, EventTableRecord.unpack(raw))
        return known[1]

    def _tail(self, table: EventTableView, identity: FileId) -> SearchRows:
        record = table.record
        known = self._tails.get(record.name)
        if known is not None and known[:2] == (identity, record):
            return known[2]
        rows = table.tail()
        self._tails[record.name] = (identity, record, rows)
        return rows

    def _no_table(self, name: str) -> str:
        failure = self._reader.snapshots.locator.failure
        if failure is not None:
            return f"{self._reader.connection.path}: no vectors of model {name!r} can be read: {failure}"
        return f"{self._reader.connection.path}: no vectors of model {name!r} are published; start pmm-cached"


def _local_vectors(embedder: LocalBow, texts: list[str]) -> _Vectors:
    """Computed: that is faster than a look-up, and does not wait for a daemon that may be stopped."""
    return dict(zip(texts, embedded(embedder, texts), strict=True))


def _rows_max(embedder: Embedder | None) -> int:
    """How many events of its own one search embeds: with other embedders each text may cost money and time."""
    return limits.SEARCH_EVENTS_MAX if isinstance(embedder, (LocalBow, WordLlama)) else limits.SEARCH_TEXTS_MAX


def checked_k(k: object) -> int:
    if type(k) is not int or not 1 <= k <= limits.SEARCH_K_MAX:
        raise ConfigError(f"k: expected an integer from 1 to {limits.SEARCH_K_MAX}, got {k!r}")
    return k


def checked_scope(scope: object) -> EventIds | None:
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


def _not_in(parts: Iterable[SearchRows], texts: list[EventText]) -> list[EventText]:
    """The events without a row: the table may have events beyond its position, and later events name earlier ones."""
    ids = np.array([one.event_id for one in texts], np.int64)
    is_missing = np.ones(len(texts), bool)
    for rows in parts if texts else ():
        is_missing &= ~rows.living(ids)
    return [one for one, is_wanted in zip(texts, is_missing.tolist(), strict=True) if is_wanted]
