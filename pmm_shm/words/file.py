"""The index of words in the instance directory: a SQLite database that the daemon writes and its readers only read.

It has a rollback journal, not a WAL: a member of the ledger's group may not write in the directory, and SQLite reads a
WAL without that permission only while a writer has it open. A reader that finds the journal of a killed daemon cannot
roll it back, and does without the index until the next daemon has.

The file is written without syncing, like the store beside it, and names the store by its UUID: a power loss ends the
store, and the index with it.

Invariant: the position commits with the texts.
Invariant: every file descriptor of the database is SQLite's: closing another one would drop SQLite's locks.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple
from urllib.parse import quote

from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.instance.making import DATA_MODE, make_file
from pmm_shm.instance.paths import FileId, Instance, file_id
from pmm_shm.ledger.tail import START, Position
from pmm_shm.words.table import KnownWords, WordTable

FORMAT = 3
# Of SQLite's virtual machine: about 0.05 ms.
_STEPS = 100
_STATE = "CREATE TABLE state (format INTEGER, store BLOB, kinds TEXT, event_id INTEGER, anchor BLOB)"
_PUT_STATE = "INSERT INTO state VALUES (?, ?, ?, NULL, ?)"
_MOVE = "UPDATE state SET event_id = ?, anchor = ?"
_CHECK = "INSERT INTO words (words) VALUES ('integrity-check')"
_GET = "SELECT format, store, kinds, event_id, anchor FROM state"


class WordIndexRecord(NamedTuple):
    """What an index is of.

    Attributes:
        store: the UUID of the store that it belongs to.
        kinds: the kinds of events that are in it, ascending.
        position: the newest event that it has taken in, and its anchor.
    """

    store: bytes
    kinds: tuple[str, ...]
    position: Position


def _opened(path: Path, mode: str, timeout_s: float) -> sqlite3.Connection:
    uri = f"file:{quote(os.fspath(path))}?mode={mode}"
    return sqlite3.connect(uri, timeout=timeout_s, isolation_level=None, check_same_thread=False, uri=True)


def _record(handle: sqlite3.Connection) -> WordIndexRecord | None:
    """The record; None if it is of another format."""
    rows = handle.execute(_GET).fetchall()
    if len(rows) != 1 or rows[0][0] != FORMAT:
        return None
    _, store, kinds, event_id, anchor = rows[0]
    return WordIndexRecord(store, tuple(json.loads(kinds)), Position(event_id, anchor))


class WordIndexWriter:
    """Writes the index; the daemon alone, and in one thread.

    An index of another store, of other kinds, of another format, or that is damaged, is made anew, empty.

    Parameters:
        give_way: called after every hundred or so steps of SQLite: FTS5 writes out and merges its segments within one
            statement. It may wait, but must not raise.

    Raises:
        ConfigError: this SQLite has no FTS5.
        OSError, sqlite3.Error: the file cannot be written.
    """

    def __init__(
        self, instance: Instance, store: bytes, kinds: tuple[str, ...], give_way: Callable[[], None] = lambda: None
    ) -> None:
        self._path, self._give_way = instance.words_file, give_way
        found = self._existing(store, kinds)
        self._handle, self.record = self._made(store, kinds) if found is None else found
        self._table = WordTable(self._handle)

    @property
    def rows(self) -> int:
        """How many events are in it."""
        return self._table.totals().events

    def add(self, parts: Iterable[list[tuple[int, str]]], position: Position) -> None:
        """Add texts, in parts, and move the position, in one commit.

        Raises:
            sqlite3.Error: nothing was written.
        """
        run = self._handle.execute
        run("BEGIN IMMEDIATE")
        try:
            for part in parts:
                self._table.add(part)
            run(_MOVE, position)
            crash_point("words.inside")
            run("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                run("ROLLBACK")
            raise
        crash_point("words.committed")
        self.record = self.record._replace(position=position)

    def close(self) -> None:
        """Close it, synced. Raises `OSError`, `sqlite3.Error`."""
        self._handle.close()
        # SQLite has closed all of its descriptors: this one drops no lock.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def give_up(self) -> None:
        """Close it, whatever state it is in."""
        with suppress(sqlite3.Error):
            self._handle.close()

    def _existing(self, store: bytes, kinds: tuple[str, ...]) -> tuple[sqlite3.Connection, WordIndexRecord] | None:
        if not self._path.exists():
            return None
        handle = _opened(self._path, "rw", limits.WORD_COMMIT_WAIT_S)
        try:
            # Rolls back what a killed daemon left.
            record = _record(handle)
            if record is not None and record[:2] == (store, kinds):
                self._prepare(handle)
                # SQLite reads damaged records of FTS5 without a word. This takes 0.05 s per 100,000 events, and writes
                # nothing; a commit would wait for readers all the same.
                handle.execute("BEGIN")
                handle.execute(_CHECK)
                handle.execute("ROLLBACK")
                return handle, record
        except sqlite3.OperationalError as error:
            handle.close()
            if "locked" in str(error):
                raise
        except (sqlite3.Error, ValueError, TypeError):
            pass
        handle.close()
        return None

    def _made(self, store: bytes, kinds: tuple[str, ...]) -> tuple[sqlite3.Connection, WordIndexRecord]:
        remove_index(self._path)
        os.close(make_file(self._path, DATA_MODE))
        crash_point("words.made")
        handle = _opened(self._path, "rw", limits.WORD_COMMIT_WAIT_S)
        try:
            self._prepare(handle)
            handle.execute("BEGIN IMMEDIATE")
            WordTable(handle).make()
            handle.execute(_STATE)
            handle.execute(_PUT_STATE, (FORMAT, store, json.dumps(kinds), START.anchor))
            handle.execute("COMMIT")
        except BaseException:
            handle.close()
            raise
        return handle, WordIndexRecord(store, kinds, START)

    def _prepare(self, handle: sqlite3.Connection) -> None:
        handle.execute("PRAGMA journal_mode = TRUNCATE")
        handle.execute("PRAGMA synchronous = OFF")
        # A spill of pages within a transaction would lock readers out until its end, and it may pause.
        handle.execute("PRAGMA cache_spill = OFF")
        handle.set_progress_handler(self._give_way, _STEPS)


def remove_index(path: Path) -> None:
    """Remove the index; readers that have it open notice. Raises `OSError`."""
    # The journal last: SQLite would roll it back into a database that is there.
    path.unlink(missing_ok=True)
    path.with_name(path.name + "-journal").unlink(missing_ok=True)


def checked_record(path: Path) -> WordIndexRecord | None:
    """The record of an index that is sound; None if it is of another format.

    Raises:
        sqlite3.Error, ValueError, TypeError: it is damaged, or cannot be read.
    """
    handle = _opened(path, "ro", limits.WORD_INDEX_WAIT_S)
    try:
        record = _record(handle)
        found = handle.execute("PRAGMA quick_check(1)").fetchall()[0][0]
        if record is not None:
            _check_words(handle)
    finally:
        handle.close()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    return record


def _check_words(handle: sqlite3.Connection) -> None:
    """Let FTS5 look at its own records. Raises `sqlite3.DatabaseError`."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        # FTS5 takes this for a write.
        handle.backup(copy)
        copy.execute(_CHECK)
    finally:
        copy.close()


class WordIndexReader:
    """The published index, opened when it is asked for. Not thread-safe: the caller has a lock, and closes before a
    fork.

    Attributes:
        failure: why it could not be read the last time; None if it could, or if there is none.
    """

    def __init__(self, instance: Instance) -> None:
        self._path = instance.words_file
        self._handle: sqlite3.Connection | None = None
        self._identity: FileId | None = None
        self._known = KnownWords()
        self._not_before = 0.0
        self.failure: str | None = None

    @contextmanager
    def begin(self, store: bytes) -> Iterator[tuple[WordTable, WordIndexRecord] | None]:
        """A read transaction on the index of this store; None if there is none that can be read."""
        found = self._begun(store)
        try:
            yield found
        finally:
            if found is not None and self._handle is not None:
                with suppress(sqlite3.Error):
                    self._handle.execute("COMMIT")

    def close(self) -> None:
        """Close the database."""
        handle, self._handle, self._identity = self._handle, None, None
        self._known = KnownWords()
        if handle is not None:
            handle.close()

    def fail(self, error: sqlite3.Error) -> None:
        """Note that it could not be read; it is left alone for a while."""
        self.failure, self._not_before = f"{self._path}: {error}", monotonic() + limits.WORD_INDEX_RETRY_S
        self.close()

    def _begun(self, store: bytes) -> tuple[WordTable, WordIndexRecord] | None:
        if monotonic() < self._not_before:
            return None
        identity = file_id(self._path)
        if identity is None or identity != self._identity:
            self.close()
        if identity is None:
            self.failure = None
            return None
        try:
            if self._handle is None:
                self._handle = _opened(self._path, "ro", limits.WORD_INDEX_WAIT_S)
            self._handle.execute("BEGIN")
            record = _record(self._handle)
        except (sqlite3.Error, ValueError, TypeError) as error:
            self.fail(error if isinstance(error, sqlite3.Error) else sqlite3.DatabaseError(str(error)))
            return None
        # Not before: the file may have been replaced before it was opened.
        if file_id(self._path) != identity:
            self.close()
            return None
        self._identity, self.failure = identity, None
        if record is None or record.store != store:
            self._handle.execute("COMMIT")
            return None
        return WordTable(self._handle, self._known), record
