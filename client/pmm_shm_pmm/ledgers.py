"""The ledgers that this process's logs are in: one object per file, however many logs PMM makes of it."""

from __future__ import annotations

# Imported early: the fork hook below must run before that of logging, whose lock threads take that we wait for.
import logging  # noqa: F401
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pmm_shm import limits
from pmm_shm.instance.paths import real_path
from pmm_shm.ledger.connection import close_idle
from pmm_shm.ledger.rows import ID_MIN, RawRow
from pmm_shm_pmm import forks, report
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.followed import COLUMNS, FROM, Followed
from pmm_shm_pmm.loaded import SHORT_IDS_MAX, Loaded, PmmEvent, event_of
from pmm_shm_pmm.opening import open_cache

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache
    from pmm_shm_client.frame import Frame

_FRAMES_MAX = 50
_LEDGERS_KEPT = 2
_LEDGERS_OPEN_MAX = 8


class Ledger(Followed):
    """One SQLite file: what this process has read of it, its frames, and appends to it.

    Parameters:
        path: the real path.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._cache: Cache | None = None

    def append(self, kind: str, content: str, meta: dict[str, Any], expected_head: int | None = None) -> int:
        """Append by the library's writer, and take the event in. Returns its id; raises as `Cache.append`."""
        cache = self.cache
        event_id = cache.append(kind, content, meta, expected_head=expected_head)
        try:
            # Loaded with the cache.
            from pmm_shm_client.cache import row_appended

            row = row_appended(cache, event_id)
            self._read(lambda: self._take_in(row))
        except Exception:
            # It is appended: the next look takes it in.
            pass
        return event_id

    def live(self, make: Callable[[Loaded], list[PmmEvent]] | None) -> list[PmmEvent]:
        """The live list: the same object until the file holds another log.

        Parameters:
            make: makes the list that loads when it is looked at; None for a plain one.
        """

        def read() -> list[PmmEvent]:
            self._take_in()
            loaded = self.loaded
            if loaded.live is None:
                with self._one_snapshot():
                    loaded.live = loaded.whole() if make is None else make(loaded)
            return loaded.live

        self.sync()
        live = self.loaded.live
        return self._read(read) if live is None else live

    def listing(self, make: Callable[[Loaded], list[PmmEvent]]) -> list[PmmEvent]:
        """A list that `make` makes of the log as it is."""

        def read() -> list[PmmEvent]:
            self._take_in()
            if self.loaded.is_whole:
                return make(self.loaded)
            with self._one_snapshot():
                return make(self.loaded)

        return self._read(read)

    def tail(self, count: int) -> list[PmmEvent]:
        """The newest `count` events, ascending, in a new list."""
        self.sync()
        return self.within(self.loaded, lambda loaded: loaded.tail(count))

    def first_after(self, event_id: int, count: int) -> list[PmmEvent]:
        """The first `count` events with a greater id, ascending, in a new list."""
        self.sync()
        return self.within(self.loaded, lambda loaded: loaded.first_after(event_id, count))

    def count(self) -> int:
        """How many events there are."""
        self.sync()
        return self.within(self.loaded, lambda loaded: loaded.count())

    def follow_edits(self) -> None:
        """Read a short log anew where rows were edited: in PMM, a log that is made anew reads the file.

        A long one is append-only; there, the audit of the daemon finds an edit.
        """

        def look() -> bool:
            loaded = self.loaded
            if not self._is_begun or not loaded.events or loaded.newest_id > SHORT_IDS_MAX:
                return False
            self._take_in()
            rows = self._fetch(FROM, (self.loaded.events[0]["id"],), limits.TAIL_ROWS_MAX)[0]
            return [event_of(row) for row in rows] != self.loaded.events

        if self._is_begun and self._read(look):
            self.forget()
            self._cache = None

    # Single events, as of `sync`; callers do not change them.

    def newest(self, kind: str, count: int = 1, before: int | None = None) -> list[PmmEvent]:
        """The newest `count` events of a kind, newest first; `before`: only those with a lower id."""
        return self.events_of(kind, before=before, newest_first=True, limit=count)

    def events_of(
        self,
        kind: str,
        after: int | None = None,
        before: int | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[PmmEvent]:
        """The first `limit` events of a kind, by the index (kind, id); `after` and `before` are excluded."""

        def read() -> list[PmmEvent]:
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
                sql = f"{COLUMNS} WHERE kind = ? AND id >= ? AND id <= ? ORDER BY id{order} LIMIT ?"
                batch, is_all = self._fetch(sql, (kind, low, high), count)
                rows += batch
                if is_all:
                    break
                low, high = (low, batch[-1][0] - 1) if newest_first else (batch[-1][0] + 1, high)
            return [event_of(row) for row in rows]

        return self._read(read)

    def event(self, event_id: int) -> PmmEvent | None:
        """The event with this id; None if there is none."""

        def read() -> PmmEvent | None:
            self._take_in()
            found = self.loaded.event(event_id)
            if found is not None:
                return found
            rows = self._fetch(f"{COLUMNS} WHERE id = ? LIMIT ?", (event_id,), 1)[0]
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


_ledgers: weakref.WeakValueDictionary[str, Ledger] = weakref.WeakValueDictionary()
# A web application makes a log for each request: the ledger stays between them.
_newest: deque[Ledger] = deque(maxlen=_LEDGERS_KEPT)
_opened: deque[str] = deque()
# A fork waits for it: the child would find it held by a thread that it does not have.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


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
