"""The indexer: fills the tables of event vectors, in a thread of its own, behind the follower and never in its way.

It takes in what the follower has published, and no event before that. It works in short rounds, one step for each
table: an embedder that fails or is slow delays its own table, not the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pmm_cached.event_tables import EventTable, Sharing
from pmm_cached.imports import Counts, EmbeddingImport, imported_model
from pmm_cached.logs import Logger
from pmm_cached.status import EmbeddingStatus
from pmm_shm import limits
from pmm_shm.codec import pack
from pmm_shm.errors import EmbedderError, InvalidVectorError, PmmShmError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.freshness import Freshness, LedgerMoved, Mark
from pmm_shm.ledger.tail import Position, TailReader
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.store.environment import DamagedStoreError, Transaction
from pmm_shm.store.layout import OTHER_HISTORY_KEY
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.vectors.event_table import SERVED_KEY, table_records
from pmm_shm.vectors.event_table_writer import EventVectorWriter

_STOPS = "the daemon stops"
_HEAD_SQL = "SELECT coalesce(max(id), 0) FROM events LIMIT ?"
Done = Callable[[dict[str, Any] | None, str | None], None]


class _Stopped(Exception):
    """The daemon stops: give up what runs."""


@dataclass
class _Turn:
    """An embedder with its table, and when it may be asked again after it failed.

    Attributes:
        table: None where it cannot be opened, and `problem` says why.
        is_done: whether it has all that is published.
    """

    embedder: Embedder
    kinds: tuple[str, ...]
    table: EventTable | None = None
    is_done: bool = False
    not_before: float = 0.0
    wait_s: float = limits.INDEX_RETRY_S
    problem: str | None = None

    def has_reached(self, event_id: int) -> bool:
        """Whether the table has everything up to this event."""
        return self.is_done or (self.table is not None and self.table.as_of >= event_id)


@dataclass
class _Work:
    """The tables that there are to work on, each opened once."""

    turns: list[_Turn]
    imports: EmbeddingImport
    others: dict[str, EventVectorWriter] = field(default_factory=dict)


@dataclass(eq=False)
class _Request:
    """Somebody who waits for the tables.

    Attributes:
        until_id: what the log's head was when the request was first looked at.
        counts: what the comparison of `event_embeddings` did, once that much was published.
    """

    done: Done
    until_id: int | None = None
    counts: Counts | None = None


class Indexer:
    """The thread that fills the tables.

    Parameters:
        embedder: whose table takes in the content of events; None for none.
        found_as: the name by which a worker finds it, too.
        kinds: of which events.
        standstill: the lock under which the follower steps: while it is held, this thread rests.
        sharing: keeps workers from computing the texts of new events at the same time.
        on_death: called with the reason when the thread ends by itself.
    """

    def __init__(
        self,
        path: str,
        writer: StoreWriter,
        embedder: Embedder | None,
        found_as: str | None,
        kinds: tuple[str, ...],
        status: EmbeddingStatus,
        log: Logger,
        standstill: threading.Lock,
        sharing: Sharing,
        on_death: Callable[[str], None],
    ) -> None:
        self._store = writer
        self._embedder = embedder
        self._found_as = found_as
        self._kinds = kinds
        self._status = status
        self._log = log
        self._standstill = standstill
        self._sharing = sharing
        self._on_death = on_death
        self._connection = Connection(path, "ro")
        self._freshness = Freshness(self._connection)
        self._heads = TailReader(self._connection, ())
        # What the ledger's table was compared at: the ledger's mark, and up to where was published.
        self._looked_at: tuple[Mark, int] | None = None
        self._connection.on_close(self._forget_mark)
        self._work: _Work | None = None
        self._import_not_before = 0.0
        self._is_import_late = False
        self._import_problem: str | None = None
        self._turns_not_before = 0.0
        # When the round began that took in all there was; None where the last one left something.
        self._caught_up_at: float | None = None
        self._changed = threading.Condition()
        self._has_news = True
        # A daemon that was killed may have found the log to be another one.
        self._is_reset = writer.environment.get(OTHER_HISTORY_KEY) is not None or writer.header.is_void
        self._requests: list[_Request] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Give up what runs, and wait for the thread. Returns whether it has ended."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def ledger_changed(self) -> None:
        """Tell that the ledger has changed, and that the follower has published what there was."""
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def reset(self) -> None:
        """Tell that the log is another than it was, or was edited: every table begins anew."""
        with self._changed:
            self._is_reset = self._has_news = True
            self._changed.notify_all()

    def index(self, done: Done) -> None:
        """Compare the ledger's `event_embeddings`, take in the log as it is now, and then call `done`."""
        with self._changed:
            if not self._is_stopping:
                self._requests.append(_Request(done))
                self._has_news = True
                self._changed.notify_all()
                return
        done(None, _STOPS)

    # The thread.

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._attempt()
        except _Stopped:
            pass
        except DamagedStoreError as error:
            self._store.mark_damaged()
            self._on_death(str(error))
        except BaseException as error:
            self._log.exception("indexing ended")
            self._on_death(f"indexing ended: {type(error).__name__}: {error}")
        finally:
            self._connection.close()
            with self._changed:
                self._is_stopping = True
            self._answer(self._requests, None, _STOPS)

    def _attempt(self) -> None:
        try:
            self._wait()
            self._round()
            self._status.problem = self._problem()
        except LogChanged:
            self.reset()
        except LedgerMoved:
            # The follower closes all connections to the old file, and says that there is news. To do it here as well
            # would be to wait for its lock while it waits for ours.
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
        """Until there may be something to do."""
        with self._changed:
            if not self._has_news:
                self._changed.wait_for(lambda: self._has_news or self._is_stopping, self._idle_s())
        self._gather()
        with self._changed:
            self._has_news = False
        if self._is_stopping:
            raise _Stopped
        if self._is_reset:
            self._clear()

    def _gather(self) -> None:
        """Let commits that follow closely come into one round: one for each would take the follower's time."""
        if self._caught_up_at is not None:
            # Not on `_changed`, which every commit notifies.
            time.sleep(max(0.0, self._caught_up_at + limits.INDEX_GATHER_S - time.monotonic()))

    def _idle_s(self) -> float | None:
        """How long nothing happens by itself; None for ever."""
        due = [turn.not_before for turn in self._turns() if turn.problem and turn.table]
        if self._is_import_late:
            due.append(self._import_not_before)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _round(self) -> None:
        """One step of everything that is due, towards the published head."""
        began, self._caught_up_at = time.monotonic(), None
        published = self._published()
        if published is None:
            return
        work = self._opened()
        asked = self._asked(published)
        self._import_for(asked, work, published)
        for turn in work.turns:
            if time.monotonic() >= turn.not_before or asked:
                self._advance(turn, published)
        if all(turn.is_done or turn.problem for turn in work.turns):
            self._caught_up_at = began
        else:
            self.ledger_changed()
        self._show()
        self._answer_those_served()

    def _import_for(self, asked: list[_Request], work: _Work, published: Position) -> None:
        """Import, and give the requests their counts. What fails here does not keep the log from being taken in."""
        try:
            counts = self._import(work, published, is_asked_for=bool(asked))
        except DamagedStoreError:
            raise
        except PmmShmError as error:
            if self._import_problem is None:
                self._log.error("import of event_embeddings failed", error=str(error))
            self._import_problem = str(error)
            self._is_import_late, self._import_not_before = True, time.monotonic() + limits.IMPORT_RETRY_S
            self._answer(asked, None, str(error))
            return
        if self._looked_at is not None:
            self._import_problem = None
        for request in asked:
            request.counts = counts

    def _asked(self, published: Position) -> list[_Request]:
        """The requests that the ledger's table is to be compared for now."""
        with self._changed:
            waiting = [request for request in self._requests if request.counts is None]
        for request in waiting:
            if request.until_id is None:
                with self._connection.lock:
                    request.until_id = fetch_batch(self._connection, _HEAD_SQL, (), 1).rows[0][0]
        return [request for request in waiting if request.until_id is not None and request.until_id <= published.as_of]

    def _published(self) -> Position | None:
        """The published head; None where there is none, or where the log does not continue it: the follower will say
        more.
        """
        header = self._store.header
        if header.is_void or not header.folds:
            return None
        with self._connection.lock:
            # The guards first: another file may stand at the path.
            self._freshness.take()
            return header.position if self._heads.holds(header.position) else None

    def _advance(self, turn: _Turn, published: Position) -> None:
        if turn.table is None:
            return
        self._pause()
        try:
            turn.is_done = turn.table.step(published)
        except EmbedderError as error:
            if turn.problem is None:
                self._log.error("embedding failed", error=str(error))
            turn.is_done, turn.problem = False, str(error)
            turn.not_before = time.monotonic() + turn.wait_s
            turn.wait_s = min(2 * turn.wait_s, limits.INDEX_RETRY_MAX_S)
            return
        if turn.problem is not None:
            self._log.info("embedding recovered")
        turn.problem, turn.not_before, turn.wait_s = None, 0.0, limits.INDEX_RETRY_S

    def _import(self, work: _Work, published: Position, *, is_asked_for: bool) -> Counts:
        """Compare the ledger's table of embeddings, where it is asked for or time to look and it looks other."""
        began = time.monotonic()
        with self._connection.lock:
            looked_at = self._freshness.take(), published.as_of
        if not is_asked_for:
            is_other = looked_at != self._looked_at
            self._is_import_late = is_other and began < self._import_not_before
            if self._is_import_late or not is_other:
                return Counts(0, 0, 0)
            differs = work.imports.differs(published.as_of)
            took_s = time.monotonic() - began
            # To look at a large table takes its time: not more than a small share of one core.
            self._import_not_before = began + max(limits.IMPORT_CHECK_S, took_s / limits.IMPORT_CHECK_SHARE)
            if not differs:
                self._looked_at = looked_at
                return Counts(0, 0, 0)
        models = {
            record.name: record.dimension
            for record in self._records()
            if record.name == imported_model(record.dimension)
        }
        counts = work.imports.compare(models, published)
        self._looked_at = looked_at
        if any(counts):
            self._log.info("imported event_embeddings", **counts._asdict())
        return counts

    def _forget_mark(self) -> None:
        self._looked_at = None

    # What there is to work with.

    def _opened(self) -> _Work:
        if self._work is None:
            default = local_bow.LocalBow()
            mine = self._embedder
            is_default = mine is None or mine.name == default.name
            kinds = self._kinds if mine is not None else ()
            turns = [_Turn(default, kinds if is_default else ())]
            if mine is not None and not is_default:
                turns.append(_Turn(mine, kinds))
            imports = EmbeddingImport(
                self._store, self._connection, self._table_for, self._look_again, self._pause_import
            )
            self._store.transact("indexer.served", self._say_who_embeds)
            self._work = _Work(turns, imports)
        for turn in self._work.turns:
            if turn.table is None and turn.problem is None:
                self._open(turn)
        return self._work

    def _say_who_embeds(self, records: Transaction) -> None:
        """Which embedder a search takes that names none."""
        if self._found_as is None:
            records.delete(SERVED_KEY)
        else:
            records.put(SERVED_KEY, pack(self._found_as))

    def _open(self, turn: _Turn) -> None:
        try:
            turn.table = EventTable(
                self._store, self._connection, turn.embedder, turn.kinds, self._pause, self._sharing
            )
        except InvalidVectorError as error:
            # For as long as the store holds vectors of this name: no time mends it.
            self._log.error("no table of vectors", error=str(error))
            turn.problem = str(error)

    def _problem(self) -> str | None:
        return next((turn.problem for turn in self._turns() if turn.problem), self._import_problem)

    def _turns(self) -> list[_Turn]:
        return [] if self._work is None else self._work.turns

    def _table_for(self, model: str, dimension: int) -> EventVectorWriter:
        assert self._work is not None
        for turn in self._work.turns:
            if turn.table is not None and turn.embedder.name == model:
                return turn.table.rows
        if model not in self._work.others:
            self._work.others[model] = EventVectorWriter(self._store, model, dimension)
        return self._work.others[model]

    def _look_again(self, model: str) -> None:
        for turn in self._turns():
            if turn.table is not None and turn.embedder.name == model:
                turn.table.look_again()

    def _records(self) -> list[Any]:
        with self._store.environment.read() as records:
            return table_records(records)

    def _clear(self) -> None:
        """Empty all tables, those of other daemons' embedders too."""
        self._is_reset = False
        try:
            self._clear_tables()
        except BaseException:
            self._is_reset = True
            raise

    def _clear_tables(self) -> None:
        work = self._opened()
        for record in self._records():
            self._table_for(record.name, record.dimension).clear()
        work.imports.forget()
        # Last: until then nobody believes the tables.
        self._store.transact("indexer.history_ended", lambda records: records.delete(OTHER_HISTORY_KEY))
        self._import_not_before, self._looked_at = 0.0, None
        with self._changed:
            for request in self._requests:
                request.until_id = request.counts = None

    def _show(self) -> None:
        """Where the numbers go that the stats command answers."""
        self._show_import()
        self._status.problem = self._problem()
        served = {turn.embedder.name for turn in self._turns()}
        self._status.tables = {
            record.name: {
                "rows": record.rows,
                "dimension": record.dimension,
                "as_of": record.position.as_of,
                "kinds": list(record.kinds),
                "is_served": record.name in served or record.name == imported_model(record.dimension),
            }
            for record in self._records()
        }

    def _show_import(self) -> None:
        assert self._work is not None
        imports = self._work.imports
        self._status.importing = None if imports.rows_total is None else [imports.rows_done, imports.rows_total]

    # Giving way.

    def _pause_import(self) -> None:
        """Between pieces of an import, which may be long: take in what is new."""
        self._show_import()
        self._pause()
        now = time.monotonic()
        if now < self._turns_not_before:
            return
        self._turns_not_before = now + limits.IMPORT_YIELD_S
        published = self._published()
        for turn in self._turns() if published is not None else ():
            if now >= turn.not_before:
                assert published is not None
                self._advance(turn, published)

    def _pause(self) -> None:
        """Let the follower go first. Raises to give up."""
        while self._standstill.locked() and not self._is_stopping:
            time.sleep(limits.BACKOFF_MIN_S)
        if self._is_stopping:
            raise _Stopped

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping, seconds)
            self._has_news = True

    def _answer_those_served(self) -> None:
        problem = self._problem()
        for request in [request for request in self._requests if request.counts is not None]:
            assert request.counts is not None
            assert request.until_id is not None
            if problem is not None:
                self._answer([request], None, problem)
            elif all(turn.has_reached(request.until_id) for turn in self._turns()):
                self._answer([request], {"as_of": request.until_id, **request.counts._asdict()}, None)

    def _answer(self, requests: list[_Request], result: dict[str, Any] | None, error: str | None) -> None:
        with self._changed:
            answered = list(requests)
            self._requests = [request for request in self._requests if request not in answered]
        for request in answered:
            request.done(result, error)
