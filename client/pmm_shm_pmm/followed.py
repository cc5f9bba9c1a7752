"""A ledger that is followed: its events as this process has read them, up to the newest.

It is read with a connection of the library: that is closed before a fork, follows a file that was replaced, and has the
mark by which a look at an unchanged ledger costs no system call.

Invariant: events are loaded under the connection's lock, which is held neither while PMM's code runs, nor while another
lock is waited for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError, LedgerError
from pmm_shm.ledger.connection import Connection, close_replaced
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.files import LedgerMoved
from pmm_shm.ledger.freshness import Freshness, Mark, commit_count
from pmm_shm.ledger.rows import ID_MIN, RawRow
from pmm_shm_pmm import report
from pmm_shm_pmm.loaded import Loaded, PmmEvent, event_of

if TYPE_CHECKING:
    from pmm_shm_pmm.ledgers import Ledger

_T = TypeVar("_T")
COLUMNS = "SELECT id, ts, kind, content, meta FROM events"
FROM = f"{COLUMNS} WHERE id >= ? ORDER BY id LIMIT ?"
_ATTEMPTS_MAX = 5
_COUNT_MAX = 0xFFFF_FFFF
_Memo = tuple[Any, Mark, int]


class Followed:
    """The events of one SQLite file: the base of `Ledger`. Threads may share it.

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
        self.loaded = self._loaded_from(None)
        self._is_begun = False
        self._spare_fetch: Callable[[str, tuple[Any, ...], int], tuple[list[RawRow], bool]] | None = None
        self.spare: Callable[[], Any] | None = None

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

    def within(self, loaded: Loaded, look: Callable[[Loaded], _T]) -> _T:
        """`look` at these events with the lock held. Where they are not all loaded, and another log has taken the place
        of theirs, at those of that.
        """

        def read() -> _T:
            if loaded.is_whole:
                return look(loaded)
            self._take_in()
            with self._one_snapshot():
                return look(self.loaded)

        return self._read(read)

    def after(self, loaded: Loaded, event_id: int) -> list[PmmEvent]:
        """The events with a greater id that are loaded, ascending, in a new list."""
        with self._connection.lock:
            return loaded.after(event_id)

    def forget(self) -> None:
        """Read the log anew at the next look."""
        with self._connection.lock:
            self._memo, self.loaded, self._is_begun = None, self._loaded_from(None), False

    # With the lock held.

    def _loaded_from(self, newest: RawRow | None) -> Loaded:
        return Loaded(cast("Ledger", self), newest)

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
                self.loaded, self._is_begun = self._loaded_from(None), False
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
                self.loaded, self._is_begun = self._loaded_from(None), False
        newest_id = self.loaded.newest_id
        self._memo = (self._freshness.header, mark, newest_id)
        return newest_id

    def _advance(self) -> bool:
        """Take in the rows behind the newest one; False where that is gone or is another."""
        if not self._is_begun:
            rows = self._fetch(f"{COLUMNS} ORDER BY id DESC LIMIT ?", (), 1)[0]
            self.loaded, self._is_begun = self._loaded_from(rows[0] if rows else None), True
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
                rows = self._connection.handle().execute(FROM, (low, limits.TAIL_FEW_ROWS)).fetchall()
                if len(rows) < limits.TAIL_FEW_ROWS:
                    return rows, True
            except sqlite3.Error:
                pass
        return self._fetch(FROM, (low,), limits.TAIL_ROWS_MAX)

    def fetch_older(self, loaded: Loaded, count: int | None) -> list[PmmEvent]:
        """The newest `count` events before those that are loaded, ascending; None for all."""
        before = loaded.events[0]["id"]
        found: list[PmmEvent] = []
        while count is None or len(found) < count:
            wanted = limits.TAIL_ROWS_MAX if count is None else count - len(found)
            sql = f"{COLUMNS} WHERE id < ? ORDER BY id DESC LIMIT ?"
            rows, is_all = self._fetch(sql, (before,), wanted)
            # At once: the texts of all rows together would take as much memory as the events.
            found += map(event_of, rows)
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
