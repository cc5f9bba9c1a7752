"""The index of words, filled along the log in small pieces; a failure of its file delays nothing else."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from pmm_cached.logs import Logger
from pmm_cached.reading import read_in_parts
from pmm_cached.status import WordStatus
from pmm_shm import limits
from pmm_shm.errors import ConfigError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import Position
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.store.writer import StoreWriter
from pmm_shm.words.file import WordIndexWriter, remove_index
from pmm_shm.words.texts import WordTextReader, WordTexts

_PART_TEXTS = 16
_BUSY = "locked"


class WordIndexer:
    """Fills the index of words. Used in one thread.

    Parameters:
        store: the index belongs to it.
        connection: a read-only connection of that thread.
        kinds: of the events to index; none: no index is kept, and an existing one is removed.
        give_way: called between small pieces of SQLite's work: lets the follower go first; never raises.
        pause: the same between pieces of other work; raises to give up.

    Attributes:
        is_done: whether the index has all published events.
        not_before: when to try again after a failure, on the monotonic clock.
        is_check_due: whether the file is to be checked, and made anew if it is damaged. Any thread may set it.
    """

    def __init__(
        self,
        instance: Instance,
        store: StoreWriter,
        connection: Connection,
        kinds: tuple[str, ...],
        give_way: Callable[[], None],
        pause: Callable[[], None],
        status: WordStatus,
        log: Logger,
    ) -> None:
        self._instance, self._store, self._connection = instance, store, connection
        self._kinds = kinds
        self._give_way, self._pause, self._status, self._log = give_way, pause, status, log
        self._reader = WordTextReader(connection, kinds)
        self._index: WordIndexWriter | None = None
        self._retry_s = limits.INDEX_RETRY_S
        self.is_done = False
        self.not_before = 0.0
        self.is_check_due = False
        status.kinds = list(kinds)

    @property
    def retry_at(self) -> float | None:
        """When to try again; None if nothing failed."""
        return None if self._status.problem is None else self.not_before

    def has_reached(self, event_id: int) -> bool:
        """Whether the index has all events up to this one."""
        return self.is_done or (self._index is not None and self._index.record.position.as_of >= event_id)

    def advance(self, published: Position) -> None:
        """Index events up to the published head for about `INDEX_REQUEST_S`; a failure of the file is logged.

        Raises:
            LogChanged: the log does not continue the index.
            LedgerError: the ledger failed.
        """
        try:
            self.is_done = self._step(published)
        except (sqlite3.Error, OSError, ConfigError) as error:
            self._failed(error)
            return
        if self._status.problem is not None:
            self._log.info("the index of words recovered")
        self._status.problem, self.not_before, self._retry_s = None, 0.0, limits.INDEX_RETRY_S

    def clear(self) -> None:
        """Remove the index: it is of another history. Raises `OSError`."""
        self._give_up()
        remove_index(self._instance.words_file)

    def close(self) -> None:
        """Close the file, so that it may be trusted after a clean stop of the daemon."""
        index, self._index = self._index, None
        if index is None:
            return
        try:
            index.close()
        except (sqlite3.Error, OSError) as error:
            # An index that is not on the disk must not be found there after a power loss.
            self._log.error("the index of words could not be synced", error=str(error))
            with suppress(OSError):
                remove_index(self._instance.words_file)

    def _step(self, published: Position) -> bool:
        if published.event_id is None:
            return True
        if not self._kinds:
            remove_index(self._instance.words_file)
            return True
        is_check_due, self.is_check_due = self.is_check_due, False
        if is_check_due and self._index is not None:
            # It is checked when it is opened: SQLite then reads the file, and not the pages that it remembers.
            checked, self._index = self._index, None
            checked.give_up()
        if self._index is None:
            self._index = WordIndexWriter(self._instance, self._store.header.uuid, self._kinds, self._give_way)
            if self._index.record.position.as_of < self._status.as_of:
                self._log.warning("the index of words was damaged: it is made anew")
            self._report(self._index)
        deadline = time.monotonic() + limits.INDEX_REQUEST_S
        while True:
            self._pause()
            after = self._index.record.position
            if after.event_id is not None and after.event_id >= published.event_id:
                return True
            read = read_in_parts(self._read, after, limits.INDEX_EVENTS_PER_COMMIT, published.event_id, self._pause)
            if not read.is_anchored:
                raise LogChanged
            if read.position != after:
                self._index.add(self._parts(read.texts), read.position)
                self._report(self._index)
            if read.is_complete or time.monotonic() >= deadline:
                return read.is_complete

    def _read(self, after: Position, rows_max: int, until_id: int) -> WordTexts:
        with self._connection.lock:
            return self._reader.read(after, rows_max, until_id)

    def _parts(self, texts: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
        for start in range(0, len(texts), _PART_TEXTS):
            if start:
                self._pause()
            yield texts[start : start + _PART_TEXTS]

    def _report(self, index: WordIndexWriter) -> None:
        self._status.as_of, self._status.rows = index.record.position.as_of, index.rows
        with suppress(OSError):
            self._status.size_bytes = os.stat(self._instance.words_file).st_size

    def _failed(self, error: Exception) -> None:
        self.is_done = False
        if self._status.problem is None:
            self._log.error("the index of words failed", error=str(error))
        self._status.problem = str(error)
        self.not_before = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, limits.INDEX_RETRY_S_MAX)
        is_damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if is_damaged:
            with suppress(OSError):
                self.clear()
        elif not isinstance(error, sqlite3.OperationalError) or _BUSY not in str(error):
            self._give_up()

    def _give_up(self) -> None:
        index, self._index = self._index, None
        self.is_done = False
        self._status.as_of = self._status.rows = self._status.size_bytes = 0
        if index is not None:
            index.give_up()
