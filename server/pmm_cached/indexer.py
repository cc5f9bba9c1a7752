"""The indexer: a thread that fills the index of words and the event tables behind the follower, and never delays it.

It indexes only events that the follower has published. It works in short rounds, one step for each table: an embedder
that fails or is slow delays its own table, not the others. Without an embedder and without vectors in the ledger or in
the store there is nothing to do, and numpy, a fifth of the memory of such a daemon, is not loaded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pmm_cached.background import STOPS, BackgroundThread, JobDone, Stopped
from pmm_cached.commands import CommandServer
from pmm_cached.logs import Logger
from pmm_cached.status import EmbeddingStatus, ImportCounts, WordStatus
from pmm_cached.word_indexer import WordIndexer
from pmm_shm import limits
from pmm_shm.errors import PmmShmError, StoreError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.files import LedgerMoved
from pmm_shm.ledger.freshness import Freshness
from pmm_shm.ledger.rows import ID_MIN
from pmm_shm.ledger.tail import Position, TailReader
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.layout import EVENT_TABLE_PREFIX, OTHER_HISTORY_KEY
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.vectors.text_table import records_under

if TYPE_CHECKING:
    from pmm_cached.embedding_import import EmbeddingImport
    from pmm_cached.event_tables import EventTableIndexer, EventTables

_HEAD_SQL = "SELECT coalesce(max(id), 0) FROM events LIMIT ?"
_IMPORTED_SQL = (
    "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'event_embeddings') "
    "OR EXISTS (SELECT 1 FROM events WHERE kind = 'embedding_indexed' AND id > ?), "
    "coalesce((SELECT max(id) FROM events), 0) LIMIT ?"
)


@dataclass(eq=False)
class _IndexRequest:
    """A client that waits for the tables.

    Attributes:
        until_id: the head of the log when the thread first saw the request.
        counts: the result of comparing `event_embeddings`, once that head was published.
    """

    done: JobDone
    until_id: int | None = None
    counts: ImportCounts | None = None


class Indexer(BackgroundThread):
    """The thread that fills the tables.

    Parameters:
        embedder, found_as, kinds: as for `EventTables`.
        word_kinds: of the events in the index of words.
        standstill: the follower's lock; while it is held, this thread pauses.
        is_follower_behind: whether a commit awaits the follower; this thread pauses then, too.
        server: has the leases on texts, which are shared with the workers: each new text is computed once.
        on_death: as for `BackgroundThread`.
    """

    _task = "indexing"

    def __init__(
        self,
        instance: Instance,
        writer: StoreWriter,
        embedder: Embedder | None,
        found_as: str | None,
        kinds: tuple[str, ...],
        word_kinds: tuple[str, ...],
        status: EmbeddingStatus,
        word_status: WordStatus,
        log: Logger,
        standstill: threading.Lock,
        is_follower_behind: Callable[[], bool],
        server: CommandServer,
        on_death: Callable[[str], None],
    ) -> None:
        super().__init__("indexer", log, on_death)
        self._store = writer
        self._status = status
        self._standstill, self._is_follower_behind = standstill, is_follower_behind
        self._connection = Connection(instance.ledger, "ro")
        self._freshness = Freshness(self._connection)
        self._heads = TailReader(self._connection, ())
        self._embedder, self._found_as, self._kinds = embedder, found_as, kinds
        self._server, self._log = server, log
        self._words = WordIndexer(
            instance, writer, self._connection, word_kinds, self._give_way, self._pause, word_status, log
        )
        self._has_vectors = embedder is not None
        # The events up to this one index none.
        self._looked_until = ID_MIN
        self._steps_not_before = 0.0
        # The beginning of the round that indexed all published events; None if the last round left some.
        self._caught_up_at: float | None = None
        self._has_news = True
        # On the monotonic clock: when it need not rest any more, when it last did, and until when it works although the
        # follower is behind.
        self._calm_at = self._rested_at = self._insists_until = 0.0
        # A daemon that was killed may have found that the log has another history.
        self._is_reset = writer.environment.get(OTHER_HISTORY_KEY) is not None or writer.header.is_void
        self._requests: list[_IndexRequest] = []

    def ledger_changed(self) -> None:
        """Report that the ledger has changed, and that the follower has published the change."""
        with self._changed:
            self._has_news = True
            self._calm_at = time.monotonic() + limits.INDEX_CALM_S
            self._changed.notify_all()

    def reset(self) -> None:
        """Report that the log was replaced or edited: every table is rebuilt."""
        with self._changed:
            self._is_reset = self._has_news = True
            self._changed.notify_all()

    def check_words(self) -> None:
        """Let the index of words be checked: what has damaged its file may not have been noticed."""
        with self._changed:
            self._words.is_check_due = self._has_news = True
            self._changed.notify_all()

    def index(self, done: JobDone) -> None:
        """Compare the ledger's `event_embeddings`, index the log up to its present head, and then call `done`."""
        with self._changed:
            if not self._is_stopping:
                self._requests.append(_IndexRequest(done))
                self._has_news = True
                self._changed.notify_all()
                return
        done(None, STOPS)

    @cached_property
    def _tables(self) -> EventTables:
        from pmm_cached.event_tables import EventTables

        return EventTables(
            self._store,
            self._connection,
            self._embedder,
            self._found_as,
            self._kinds,
            self._pause,
            self._server,
            self._log,
        )

    @cached_property
    def _import(self) -> EmbeddingImport:
        from pmm_cached.embedding_import import EmbeddingImport

        return EmbeddingImport(
            self._store,
            self._connection,
            self._freshness,
            self._tables.imported_models,
            self._tables.writer_of,
            self._tables.read_again,
            self._pause_import,
            self._log,
        )

    def _looks_for_vectors(self) -> bool:
        """Whether there are vectors to look after: an embedder makes them, or store or ledger have or name some."""
        if not self._has_vectors:
            with self._store.environment.read() as transaction:
                self._has_vectors = any(True for _ in records_under(transaction, EVENT_TABLE_PREFIX))
        if not self._has_vectors and self._connection.shape is None:
            with self._connection.lock:
                (found,) = fetch_batch(self._connection, _IMPORTED_SQL, (self._looked_until,), 1).rows
            self._has_vectors, self._looked_until = bool(found[0]), max(self._looked_until, found[1])
        return self._has_vectors

    # The thread.

    def _work(self) -> None:
        try:
            while not self._is_stopping:
                self._attempt()
        except DamagedStoreError as error:
            self._store.mark_damaged()
            self._on_death(str(error))
        finally:
            self._words.close()
            self._connection.close()
            with self._changed:
                self._is_stopping = True
            self._answer(self._requests, None, STOPS)

    def _attempt(self) -> None:
        try:
            self._wait()
            self._round()
            self._status.problem = self._problem()
        except LogChanged:
            self.reset()
        except LedgerMoved:
            # The follower closes all connections to the old file, and reports the change. Closing them here as well
            # could deadlock: each thread would wait for the other's lock.
            pass
        except DamagedStoreError:
            raise
        except PmmShmError as error:
            if self._status.problem != str(error):
                self._log.error("indexing failed", error=str(error))
            self._status.problem = str(error)
            self._answer(self._requests, None, str(error))
            self._rest(limits.INDEX_RETRY_S)

    def _wait(self) -> None:
        """Wait until there may be something to do."""
        with self._changed:
            if not self._has_news:
                self._changed.wait_for(lambda: self._has_news or self._is_stopping, self._idle_s())
        if self._caught_up_at is not None:
            # Commits in quick succession share a round: a round for each would take the follower's time. Not a wait
            # for `_changed`, which every commit notifies.
            time.sleep(max(0.0, self._caught_up_at + limits.INDEX_GATHER_S - time.monotonic()))
        with self._changed:
            self._has_news = False
        if self._is_stopping:
            raise Stopped
        if self._is_reset:
            self._clear()

    def _idle_s(self) -> float | None:
        """The time until something is due without news; None if nothing is."""
        due = [] if self._words.retry_at is None else [self._words.retry_at]
        if self._has_vectors:
            due += [instant for instant in (self._tables.retry_at, self._import.due_at) if instant is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _round(self) -> None:
        """One step of everything that is due, towards the published head."""
        began, self._caught_up_at = time.monotonic(), None
        published = self._published()
        if published is None:
            return
        if time.monotonic() >= self._words.not_before:
            self._words.advance(published)
        requests = self._requests_to_import(published)
        if not self._looks_for_vectors():
            self._note_caught_up(began, are_tables_done=True)
            for request in requests:
                request.counts = ImportCounts(0, 0, 0)
            self._answer_served()
            return
        self._tables.open()
        counts = self._import.run(published, is_requested=bool(requests))
        if counts is None:
            self._answer(requests, None, self._import.problem)
        for request in requests:
            request.counts = counts
        for indexer in self._tables.indexers:
            if time.monotonic() >= indexer.not_before or requests:
                indexer.advance(published)
        are_done = all(indexer.is_done or indexer.problem for indexer in self._tables.indexers)
        self._note_caught_up(began, are_tables_done=are_done)
        self._status.importing, self._status.problem = self._import.progress, self._problem()
        self._status.tables = self._tables.summary()
        self._answer_served()

    def _note_caught_up(self, began: float, *, are_tables_done: bool) -> None:
        """Note that this round indexed all published events, or begin another one at once."""
        if are_tables_done and (self._words.is_done or self._words.retry_at is not None):
            self._caught_up_at = began
        else:
            self._has_news = True

    def _requests_to_import(self, published: Position) -> list[_IndexRequest]:
        """The requests for which the ledger's table is compared now."""
        with self._changed:
            waiting = [request for request in self._requests if request.counts is None]
        for request in waiting:
            if request.until_id is None:
                with self._connection.lock:
                    request.until_id = fetch_batch(self._connection, _HEAD_SQL, (), 1).rows[0][0]
        return [request for request in waiting if request.until_id is not None and request.until_id <= published.as_of]

    def _published(self) -> Position | None:
        """The published head; None if there is none, or if the log does not continue it: the follower will notice."""
        header = self._store.header
        if header.is_void or not header.folds:
            return None
        with self._connection.lock:
            # First, because it checks that the path still has the same file.
            self._freshness.take()
            return header.position if self._heads.holds(header.position) else None

    def _problem(self) -> str | None:
        if not self._has_vectors:
            return None
        return self._tables.problem or self._import.problem

    def _clear(self) -> None:
        """Empty all tables."""
        self._is_reset = False
        self._looked_until = ID_MIN
        try:
            try:
                self._words.clear()
            except OSError as error:
                raise StoreError(f"the index of words cannot be removed: {error}") from None
            if self._looks_for_vectors():
                self._tables.open()
                self._tables.clear()
                self._import.restart()
            # Last: until then no reader trusts the tables.
            self._store.transact("indexer.history_ended", lambda records: records.delete(OTHER_HISTORY_KEY))
        except BaseException:
            self._is_reset = True
            raise
        with self._changed:
            for request in self._requests:
                request.until_id = request.counts = None

    # Pauses.

    def _give_way(self) -> None:
        """Let the follower go first: while it works, and from a commit on until it has begun to work. And as long as
        somebody commits, rest after each slice.

        The scheduler would not do it: the daemon pre-empts nobody when it is woken up, not even this thread. And on
        busy cores this thread may have to stop while it has the interpreter's lock, the less often the more it rests.
        """
        began = 0.0
        while not self._is_stopping:
            now = time.monotonic()
            began = began or now
            is_in_the_way = self._standstill.locked()
            if not is_in_the_way and now >= self._insists_until and self._is_follower_behind():
                # Writers without a pause would stop this thread altogether.
                is_in_the_way = now - began < limits.INDEX_YIELD_S
                self._insists_until = 0.0 if is_in_the_way else now + limits.INDEX_SLICE_S
            is_rested = now >= self._calm_at or now - self._rested_at < limits.INDEX_SLICE_S
            if is_rested and not is_in_the_way:
                return
            time.sleep(limits.INDEX_SLICE_S)
            self._rested_at = time.monotonic()

    def _pause(self) -> None:
        """Let the follower go first. Raises `Stopped`."""
        self._give_way()
        if self._is_stopping:
            raise Stopped

    def _pause_import(self) -> None:
        """Between pieces of an import, which may take long: index new events."""
        self._status.importing = self._import.progress
        self._pause()
        now = time.monotonic()
        if now < self._steps_not_before:
            return
        self._steps_not_before = now + limits.IMPORT_YIELD_S
        published = self._published()
        if published is not None:
            for indexer in self._tables.indexers:
                if now >= indexer.not_before:
                    indexer.advance(published)

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping, seconds)
            self._has_news = True

    # Requests.

    @property
    def _indexers(self) -> list[EventTableIndexer | WordIndexer]:
        """Those that a request waits for: a failure of the index of words holds up none."""
        words = [] if self._words.retry_at is not None else [self._words]
        return [*words, *(self._tables.indexers if self._has_vectors else ())]

    def _answer_served(self) -> None:
        """Answer the requests that are served, or cannot be."""
        problem = self._problem()
        for request in list(self._requests):
            if request.counts is None or request.until_id is None:
                continue
            if problem is not None:
                self._answer([request], None, problem)
            elif all(indexer.has_reached(request.until_id) for indexer in self._indexers):
                self._answer([request], {"as_of": request.until_id, **request.counts._asdict()}, None)

    def _answer(self, requests: list[_IndexRequest], result: dict[str, Any] | None, error: str | None) -> None:
        with self._changed:
            answered = list(requests)
            self._requests = [request for request in self._requests if request not in answered]
        for request in answered:
            request.done(result, error)
