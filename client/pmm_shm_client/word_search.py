"""Search by words: the published index, and in memory the events that it has not taken in yet.

Where no index can be read, the newest events of the log are indexed in memory, up to `limits.WORD_EVENTS_MAX`. The
ranking is the same, whichever events are where.

Invariant: an index that the log does not continue is not searched.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError, SnapshotUnavailableError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.freshness import Mark
from pmm_shm.ledger.tail import START, Position
from pmm_shm.store.environment import HeldTableError
from pmm_shm.store.layout import OTHER_HISTORY_KEY
from pmm_shm.store.snapshot import Snapshot
from pmm_shm.vectors.event_table import served_model
from pmm_shm.words.file import WordIndexReader, WordIndexRecord
from pmm_shm.words.query import WordQuery
from pmm_shm.words.ranking import Ranking, ranked
from pmm_shm.words.table import WordTable
from pmm_shm.words.texts import WORD_KINDS, WordTextReader
from pmm_shm_client.reader import Reader


class WordsFound(NamedTuple):
    """The result of a search by words.

    Attributes:
        as_of: every event of the indexed kinds up to this one was taken into account.
        is_complete: whether that was the head of the log.
        indexed_here: how many events were indexed in this process.
        served: the model with which the daemon embeds events; None if it is unknown.
    """

    ranking: Ranking
    as_of: int
    is_complete: bool
    indexed_here: int
    served: str | None


class _IndexNotContinuedError(Exception):
    """The log does not continue the index, or what was read after it."""


class _InMemory(sqlite3.Connection):
    """Closes when its last user is done, without the warning that Python 3.13 has for that."""

    def __del__(self) -> None:
        self.close()


@dataclass
class _Recent:
    """Events indexed in memory.

    Attributes:
        start: the events after it are in the table.
        end: the last event that was read.
        mark: of the ledger, when `end` was the head of the log; None if it was not yet.
        is_cut: whether it starts there because the events before are too many.
    """

    kinds: tuple[str, ...]
    start: Position
    end: Position
    mark: Mark | None
    table: WordTable
    is_cut: bool
    rows: int = 0

    @classmethod
    def behind(cls, start: Position, kinds: tuple[str, ...], *, is_cut: bool = False) -> _Recent:
        """Nothing read yet."""
        table = WordTable(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=_InMemory))
        table.make()
        return cls(kinds, start, start, None, table, is_cut)

    def continues(self, after: Position) -> bool:
        """Whether it has the events after this position, or those of them that are not too many."""
        if self.rows > 2 * limits.WORD_EVENTS_MAX:
            return False
        return self.start == after or (self.is_cut and after.is_before(self.start))

    def add(self, texts: list[tuple[int, str]]) -> None:
        """Add (event id, text) of later events."""
        self.table.handle.execute("BEGIN")
        try:
            self.table.add(texts)
        finally:
            self.table.handle.execute("COMMIT")
        self.rows += len(texts)


class WordSearching:
    """The searches by words of one cache. Thread-safe.

    Parameters:
        reader: of the ledger and of the published state; its connection closes before a fork, and the index with it.
    """

    def __init__(self, reader: Reader, instance: Instance) -> None:
        self._reader = reader
        self._index = WordIndexReader(instance)
        self._texts: dict[tuple[str, ...], WordTextReader] = {}
        self._recent: _Recent | None = None
        self._held: tuple[Position, Mark] | None = None
        reader.connection.on_close(self._close)

    def search(self, query: WordQuery) -> WordsFound:
        """All events that hold the words of a query.

        Raises:
            ConfigError: this SQLite has no FTS5.
            LedgerError: the ledger cannot be read.
        """
        deadline, uses_index, has_looked = time.monotonic() + limits.SEARCH_WAIT_S, True, False
        for _ in range(limits.REPLAYS_MAX + 2):
            while True:
                try:
                    return self._reader.with_ledger(partial(self._pass, query, uses_index))
                except SnapshotUnavailableError:
                    if time.monotonic() >= deadline:
                        uses_index = False
                    time.sleep(limits.SEARCH_POLL_S)
                except _IndexNotContinuedError:
                    break
            # The index may be newer than what this process still trusts, or of another history.
            uses_index = uses_index and not has_looked
            has_looked = True
            with self._reader.connection.lock:
                self._reader.freshness.distrust()
        raise LedgerBusyError(f"{self._reader.connection.path}: changed again and again while it was searched")

    def _pass(self, query: WordQuery, uses_index: bool) -> WordsFound:
        # The mark first: it must not include commits after the read.
        mark = self._reader.freshness.take()
        with self._reader.snapshots.begin() as snapshot:
            store = self._store(snapshot) if uses_index else None
            with nullcontext(None) if store is None else self._index.begin(store) as index:
                try:
                    served = None if snapshot is None else served_model(snapshot.transaction)
                    return self._search(query, mark, index, served)
                except sqlite3.Error as error:
                    if index is None:
                        raise
                    # Damaged, or not readable any more: from now on it is not used.
                    self._index.fail(error)
                    raise _IndexNotContinuedError from None

    def _store(self, snapshot: Snapshot | None) -> bytes | None:
        """The UUID of the published store; None if nothing beside it may be trusted.

        Raises:
            SnapshotUnavailableError: another process holds the lock of the reader table.
        """
        if snapshot is None:
            failure = self._reader.snapshots.locator.failure
            if isinstance(failure, HeldTableError):
                raise SnapshotUnavailableError(str(failure))
            return None
        if snapshot.header.is_void or snapshot.transaction.get(OTHER_HISTORY_KEY) is not None:
            return None
        return snapshot.header.uuid

    def _search(
        self, query: WordQuery, mark: Mark, index: tuple[WordTable, WordIndexRecord] | None, served: str | None
    ) -> WordsFound:
        after = START if index is None else index[1].position
        kinds = tuple(sorted(WORD_KINDS)) if index is None else index[1].kinds
        recent = self._read_on(after, kinds, mark)
        tables = [recent.table] if index is None else [index[0], recent.table]
        has_gap = recent.start != after
        as_of = after.as_of if has_gap else recent.end.as_of
        return WordsFound(ranked(tables, query), as_of, not has_gap, recent.rows, served)

    def _read_on(self, after: Position, kinds: tuple[str, ...], mark: Mark) -> _Recent:
        """The events after `after`, or the newest of them if they are too many; up to the head of the log."""
        if kinds not in self._texts:
            self._texts = {kinds: WordTextReader(self._reader.connection, kinds)}
        texts, recent = self._texts[kinds], self._recent
        if recent is None or recent.kinds != kinds or not recent.continues(after):
            recent = _Recent.behind(after, kinds)
        if recent.mark != mark:
            self._recent = None
            recent = self._extended(recent, texts)
            recent.mark = mark
        if recent.start != after and self._held != (after, mark):
            # The table begins later than the index ends: nothing else has looked at the row where that is.
            if not texts.holds(after):
                raise _IndexNotContinuedError
            self._held = after, mark
        self._recent = recent
        return recent

    def _extended(self, recent: _Recent, texts: WordTextReader) -> _Recent:
        """With all events up to the head of the log."""
        while True:
            read = texts.read(recent.end)
            if not read.is_anchored:
                raise _IndexNotContinuedError
            recent.add(read.texts)
            recent.end = read.position
            if read.is_complete:
                return recent
            if recent.rows > limits.WORD_EVENTS_MAX:
                start = texts.position_before_newest(limits.WORD_EVENTS_MAX)
                if recent.start.is_before(start):
                    recent = _Recent.behind(start, recent.kinds, is_cut=True)

    def _close(self) -> None:
        # A mark is valid for one connection only.
        self._recent = self._held = None
        self._index.close()
