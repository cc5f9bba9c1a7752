"""The ledgers that this process's logs are in: one object per file, however many logs PMM makes of it.

A ledger reads with a connection of the library: it is closed before a fork, follows a file that was replaced, and has
the mark by which a look at an unchanged ledger costs no system call.

Invariant: events are loaded under the connection's lock, which is held neither while PMM's code runs, nor while another
lock is waited for.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError, LedgerError
from pmm_shm.instance.paths import real_path
from pmm_shm.late import late_imports
from pmm_shm.ledger.connection import Connection, close_idle, close_replaced
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.files import LedgerMoved
from pmm_shm.ledger.freshness import Freshness, Mark, commit_count
from pmm_shm.ledger.rows import ID_MIN, RawRow
from pmm_shm_pmm import forks, report
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.loaded import SHORT_IDS_MAX, EventDict, Loaded, event_of

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache
    from pmm_shm_client.frame import Frame

_T = TypeVar("_T")
_COLUMNS = "SELECT id, ts, kind, content, meta FROM events"
_FROM = f"{_COLUMNS} WHERE id >= ? ORDER BY id LIMIT ?"
_ATTEMPTS_MAX = 5
_COUNT_MAX = 0xFFFF_FFFF
_FRAMES_MAX = 50
_LEDGERS_KEPT = 2
_LEDGERS_OPEN_MAX = 8
_START_S = 2.0
_START_DELAY_S = 0.2
_NOT_IN_PMM = ("recent", "history")
"""Folds whose answers no function of PMM gives."""

_Memo = tuple[Any, Mark, int]


class Ledger:
    """One SQLite file, and what this process has read of it. Threads may share it.

    Parameters:
        path: the real path.

    Attributes:
        loaded: the events that are loaded; another object when the file holds another log (replaced, restored).
        spare: returns the log of PMM whose connection reads where ours cannot, or None.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection = Connection(path, "ro")
        self._connection.on_close(self._forget)
        self._freshness = Freshness(self._connection)
        # The mapped header (None: the mark is another one), the mark, and the newest id; swapped whole.
        self._memo: _Memo | None = None
        self._cache: Cache | None = None
        self.loaded = Loaded(self, None)
        self._is_begun = False
        self._spare_fetch: Callable[[str, tuple[Any, ...], int], tuple[list[RawRow], bool]] | None = None
        self.spare: Callable[[], Any] | None = None

    # Following the log.

    def sync(self) -> int:
        """Take in what was appended, by anybody. Returns the newest event's id, 0 in an empty ledger.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        memo = self._memo
        if memo is not None:
            header = memo[0]
            if header is not None and header.raw == memo[1] and monotonic() < self._freshness.trusted_until:
                return memo[2]
        report.beat()
        return self._read(self._take_in)

    def append(self, kind: str, content: str, meta: dict[str, Any], expected_head: int | None = None) -> int:
        """Append by the library's writer, and take the event in. Returns its id; raises as `Cache.append`."""
        cache = self.cache
        event_id = cache.append(kind, content, meta, expected_head=expected_head)
        try:
            row = _row_appended(cache, event_id)
            self._read(lambda: self._take_in(row))
        except Exception:
            # It is appended: the next look takes it in.
            pass
        return event_id

    def live(self, make: Callable[[Loaded], list[EventDict]] | None) -> list[EventDict]:
        """The live list: the same object until the file holds another log.

        Parameters:
            make: makes the list that loads when it is looked at; None for a plain one.
        """

        def read() -> list[EventDict]:
            self._take_in()
            loaded = self.loaded
            if loaded.live is None:
                with self._one_snapshot():
                    loaded.live = loaded.whole() if make is None else make(loaded)
            return loaded.live

        self.sync()
        live = self.loaded.live
        return self._read(read) if live is None else live

    def listing(self, make: Callable[[Loaded], list[EventDict]]) -> list[EventDict]:
        """A list that `make` makes of the log as it is."""

        def read() -> list[EventDict]:
            self._take_in()
            if self.loaded.is_whole:
                return make(self.loaded)
            with self._one_snapshot():
                return make(self.loaded)

        return self._read(read)

    def within(self, loaded: Loaded, look: Callable[[Loaded], _T]) -> _T:
        """`look` at these events with the lock held; at those of the log that has taken their place where it has."""

        def read() -> _T:
            if self.loaded is loaded and loaded.is_whole:
                return look(loaded)
            self._take_in()
            with self._one_snapshot():
                return look(self.loaded)

        return self._read(read)

    def tail(self, count: int) -> list[EventDict]:
        """The newest `count` events, ascending, in a new list."""
        self.sync()
        return self.within(self.loaded, lambda loaded: loaded.tail(count))

    def first_after(self, event_id: int, count: int) -> list[EventDict]:
        """The first `count` events with a greater id, ascending, in a new list."""
        self.sync()
        return self.within(self.loaded, lambda loaded: loaded.first_after(event_id, count))

    def count(self) -> int:
        """How many events there are."""
        self.sync()
        return self.within(self.loaded, lambda loaded: loaded.count())

    def after(self, loaded: Loaded, event_id: int) -> list[EventDict]:
        """The events with a greater id that are loaded, ascending, in a new list."""
        with self._connection.lock:
            return loaded.after(event_id)

    def follow_edits(self) -> None:
        """Read a short log anew where rows were edited: in PMM, a log that is made anew reads the file.

        A long one is append-only; there, the audit of the daemon finds an edit.
        """

        def look() -> bool:
            loaded = self.loaded
            if not self._is_begun or not loaded.events or loaded.newest_id > SHORT_IDS_MAX:
                return False
            self._take_in()
            rows = self._fetch(_FROM, (self.loaded.events[0]["id"],), limits.TAIL_ROWS_MAX)[0]
            return [event_of(row) for row in rows] != self.loaded.events

        if self._is_begun and self._read(look):
            self.forget()
            self._cache = None

    def forget(self) -> None:
        """Read the log anew at the next look."""
        with self._connection.lock:
            self._memo, self.loaded, self._is_begun = None, Loaded(self, None), False

    # Single events, as of `sync`; callers do not change them.

    def newest(self, kind: str, count: int = 1, before: int | None = None) -> list[EventDict]:
        """The newest `count` events of a kind, newest first; `before`: only those with a lower id."""
        return self.events_of(kind, before=before, newest_first=True, limit=count)

    def events_of(
        self,
        kind: str,
        after: int | None = None,
        before: int | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[EventDict]:
        """The first `limit` events of a kind, by the index (kind, id); `after` and `before` are excluded."""

        def read() -> list[EventDict]:
            self._take_in()
            low = ID_MIN if after is None else after + 1
            high = self.loaded.newest_id if before is None else min(before - 1, self.loaded.newest_id)
            found = self.loaded.of_kind(kind, low, high, newest_first, limit)
            if found is not None:
                return found
            rows: list[RawRow] = []
            while low <= high and (limit is None or len(rows) < limit):
                count = limits.TAIL_ROWS_MAX if limit is None else limit - len(rows)
                order = " DESC" if newest_first else ""
                sql = f"{_COLUMNS} WHERE kind = ? AND id >= ? AND id <= ? ORDER BY id{order} LIMIT ?"
                batch, is_all = self._fetch(sql, (kind, low, high), count)
                rows += batch
                if is_all:
                    break
                low, high = (low, batch[-1][0] - 1) if newest_first else (batch[-1][0] + 1, high)
            return [event_of(row) for row in rows]

        return self._read(read)

    def event(self, event_id: int) -> EventDict | None:
        """The event with this id; None if there is none."""

        def read() -> EventDict | None:
            self._take_in()
            found = self.loaded.event(event_id)
            if found is not None:
                return found
            rows = self._fetch(f"{_COLUMNS} WHERE id = ? LIMIT ?", (event_id,), 1)[0]
            return event_of(rows[0]) if rows and event_id <= self.loaded.newest_id else None

        return self._read(read)

    # Frames.

    @property
    def cache(self) -> Cache:
        """The library's cache of this ledger, opened at the first use."""
        cache = self._cache
        if cache is None:
            with _lock:
                if self._cache is None:
                    self._cache = open_cache(self.path)
                cache = self._cache
        return cache

    def frame(self) -> Frame:
        """The exact frame; its `as_of` is the newest event's id as `sync` has it.

        Raises:
            Fallback: others append faster than it is made.
        """
        for _ in range(_FRAMES_MAX):
            newest_id = self.sync()
            frame = self.cache.frame()
            if frame.as_of == newest_id:
                return frame
        raise Fallback("others append faster than a frame is made")

    def frame_at(self, event_id: int) -> Frame:
        """The frame as of an event, the newest one or an earlier one."""
        tick = self.loaded.tick_frame
        if tick is not None and tick.as_of == event_id:
            return tick
        return self.cache.frame_at(event_id)

    def keep_tick(self, event_id: int) -> None:
        """Keep the frame at an `autonomy_tick` that was just appended: the next tick folds the log up to it."""
        frame = self.frame()
        if frame.as_of == event_id:
            self.loaded.tick_frame = frame

    def fold(self, name: str) -> Any:
        """The view of a fold, at the position of `frame()`."""
        return self.frame().fold(name)

    # With the lock held.

    def _forget(self) -> None:
        self._memo = None

    def _one_snapshot(self) -> AbstractContextManager[None]:
        return self._connection.one_snapshot() if self._spare_fetch is None else nullcontext()

    def _read(self, action: Callable[[], _T]) -> _T:
        try:
            for _ in range(_ATTEMPTS_MAX):
                try:
                    with self._connection.lock:
                        return action()
                except LedgerMoved:
                    close_replaced(self.path)
            raise LedgerBusyError(f"{self.path}: replaced again and again while it was read")
        except LedgerError:
            spare = self.spare() if self.spare is not None else None
            if spare is None:
                raise
            return self._read_by(spare, action)

    def _read_by(self, log: Any, action: Callable[[], _T]) -> _T:
        """`action` by PMM's own connection, which may read where ours cannot. Raises what SQLite raises."""
        with log._lock, self._connection.lock:
            connection = log._conn

            def fetch(sql: str, parameters: tuple[Any, ...], rows_max: int) -> tuple[list[RawRow], bool]:
                rows = [tuple(row) for row in connection.execute(sql, (*parameters, rows_max)).fetchall()]
                return rows, len(rows) < rows_max

            self._spare_fetch = fetch
            try:
                return action()
            finally:
                self._spare_fetch = None

    def _fetch(self, sql: str, parameters: tuple[Any, ...], rows_max: int) -> tuple[list[RawRow], bool]:
        """The rows of a statement that ends in LIMIT, and whether that is all of them."""
        if self._spare_fetch is not None:
            return self._spare_fetch(sql, parameters, min(rows_max, limits.TAIL_ROWS_MAX))
        return fetch_batch(self._connection, sql, parameters, rows_max)

    def _take_in(self, own: RawRow | None = None) -> int:
        if self._spare_fetch is not None:
            while not self._advance():
                self.loaded, self._is_begun = Loaded(self, None), False
            return self.loaded.newest_id
        mark = self._freshness.take()
        memo = self._memo
        if memo is not None and memo[1] == mark:
            if memo[0] is not self._freshness.header:
                self._memo = (self._freshness.header, mark, memo[2])
            return memo[2]
        if own is not None and memo is not None and _follows(own, mark, memo):
            self.loaded.extend([own[:5]])
        else:
            while not self._advance():
                self.loaded, self._is_begun = Loaded(self, None), False
        newest_id = self.loaded.newest_id
        self._memo = (self._freshness.header, mark, newest_id)
        return newest_id

    def _advance(self) -> bool:
        """Take in the rows behind the newest one; False where that is gone or is another."""
        if not self._is_begun:
            rows = self._fetch(f"{_COLUMNS} ORDER BY id DESC LIMIT ?", (), 1)[0]
            self.loaded, self._is_begun = Loaded(self, rows[0] if rows else None), True
            return True
        while True:
            last = self.loaded.last_row
            low = ID_MIN if last is None else last[0]
            rows, is_all = self._from(low)
            if last is not None:
                if not rows or rows[0] != last:
                    return False
                del rows[0]
            self.loaded.extend(rows)
            if is_all:
                return True

    def _from(self, low: int) -> tuple[list[RawRow], bool]:
        """The first rows from an id on, and whether these are all."""
        if self._spare_fetch is None:
            # Usually one or two: without the care of `fetch_batch` for large batches, busy ledgers and odd text.
            try:
                rows = self._connection.handle().execute(_FROM, (low, limits.TAIL_FEW_ROWS)).fetchall()
                if len(rows) < limits.TAIL_FEW_ROWS:
                    return rows, True
            except sqlite3.Error:
                pass
        return self._fetch(_FROM, (low,), limits.TAIL_ROWS_MAX)

    def fetch_older(self, loaded: Loaded, count: int | None) -> list[RawRow]:
        before = loaded.events[0]["id"]
        found: list[RawRow] = []
        while count is None or len(found) < count:
            wanted = limits.TAIL_ROWS_MAX if count is None else count - len(found)
            sql = f"{_COLUMNS} WHERE id < ? ORDER BY id DESC LIMIT ?"
            rows, is_all = self._fetch(sql, (before,), wanted)
            found += rows
            if is_all:
                break
            before = rows[-1][0]
        found.reverse()
        return found

    def count_older(self, loaded: Loaded) -> int:
        sql = "SELECT count(*) FROM events WHERE id < ? LIMIT ?"
        return int(self._fetch(sql, (loaded.events[0]["id"],), 1)[0][0][0])


def _follows(own: RawRow, mark: Mark, memo: _Memo) -> bool:
    """Whether an own append of this row is all that was committed between a memo and a mark."""
    before, now = commit_count(memo[1]), commit_count(mark)
    return before is not None and now == (before + 1) & _COUNT_MAX and own[0] == memo[2] + 1


_ledgers: weakref.WeakValueDictionary[str, Ledger] = weakref.WeakValueDictionary()
# A web application makes a log for each request: the ledger stays between them.
_newest: deque[Ledger] = deque(maxlen=_LEDGERS_KEPT)
_opened: deque[str] = deque()
# A fork waits for it: the child would find it held by a thread that it does not have.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_row_appended: Callable[[Cache, int], RawRow | None]
cache_options: Mapping[str, Any] = {}
"""Set by `install`: `starts_daemon`, `parts`."""


def ledger_at(path: str) -> Ledger:
    """The ledger with this path, made on first use."""
    path = real_path(path)
    with _lock:
        ledger = _ledgers.get(path)
        if ledger is None:
            ledger = _ledgers[path] = Ledger(path)
            _opened.append(path)
            if len(_opened) > _LEDGERS_OPEN_MAX:
                # Tests make logs by the hundreds, and leave them to the garbage collector.
                close_idle(_opened.popleft())
            report.uses(path)
            forks.say_once(path)
        if ledger not in _newest:
            _newest.append(ledger)
        return ledger


def open_cache(path: str) -> Cache:
    """The library's cache of a ledger; where the settings say so, a daemon is started in the background."""
    global _row_appended
    with late_imports:
        from pmm_shm_client.cache import Cache, row_appended
        from pmm_shm_pmm.folds import folds_of

    _row_appended = row_appended
    cache = Cache(path, folds=folds_of(cache_options.get("parts", ())), heeds_flags=False, late_folds=_NOT_IN_PMM)
    if cache_options.get("starts_daemon"):
        thread = threading.Thread(target=_start_daemon, args=(cache,), name="pmm-shm-start", daemon=True)
        _starts.append(thread)
        thread.start()
    return cache


_starts: list[threading.Thread] = []
_is_ending = threading.Event()


@atexit.register
def _await_starts() -> None:
    """A program that ends at once leaves a daemon all the same, which the next one finds at work."""
    _is_ending.set()
    deadline = monotonic() + _START_S
    for thread in _starts:
        thread.join(max(0.0, deadline - monotonic()))


def _start_daemon(cache: Cache) -> None:
    # A warm daemon is no news, and a new one has nothing published yet: the read that is under way comes first.
    _is_ending.wait(_START_DELAY_S)
    try:
        cache.start_daemon()
    except Exception:
        # Reads are exact without one.
        pass
