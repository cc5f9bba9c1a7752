"""How many events there are of each kind: counted once, then only the events between two positions.

Invariant: counts are continued only from an event that is still in the log as it was; otherwise all is counted anew.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any, NamedTuple

from pmm_shm.ledger.rows import ID_MIN, RawRow
from pmm_shm_web.ledger import LedgerQueries
from pmm_shm_web.shown import spelled
from pmm_shm_web.stream import KIND_CHARS

KINDS_MAX = 1_000
"""Kinds that are counted by name; a hostile ledger may have a million of them."""
COUNT_S = 0.4
PAST_MAX = 16
"""Counts of earlier events that are kept."""
PAST_STEP_IDS = 16_384
"""Counts as of an event are made of those that are kept within this distance."""
_SPAN_IDS = 32_768
_KIND = f"substr(kind, 1, {KIND_CHARS})"


class Facets(NamedTuple):
    """Counts by kind.

    Attributes:
        kinds: (kind, number of events), the most frequent first; a kind is cut to `KIND_CHARS`.
        others: events of the kinds beyond `KINDS_MAX`.
        counted_to: every event up to this one is counted.
        is_complete: whether that was the newest one.
    """

    kinds: tuple[tuple[str, int], ...]
    others: int
    counted_to: int
    is_complete: bool


class _Counted:
    """Counts up to an event, and that event's row."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.others = 0
        self.last_id = ID_MIN
        self.anchor: RawRow | None = None

    def copy(self) -> _Counted:
        other = _Counted()
        other.counts, other.others, other.last_id = dict(self.counts), self.others, self.last_id
        return other

    def add(self, rows: list[RawRow], sign: int = 1) -> None:
        for raw, number in rows:
            text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else spelled(raw)
            if text in self.counts or len(self.counts) < KINDS_MAX:
                self.counts[text] = self.counts.get(text, 0) + sign * number
            else:
                self.others += sign * number

    def facets(self, is_complete: bool) -> Facets:
        ranked = sorted(((kind, n) for kind, n in self.counts.items() if n), key=lambda item: (-item[1], item[0]))
        return Facets(tuple(ranked), self.others, max(0, self.last_id), is_complete)


class KindCounter:
    """Counts the events of a ledger by kind. Thread-safe."""

    def __init__(self, ledger: LedgerQueries) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._shown = Facets((), 0, 0, False)
        self._clear()

    def _clear(self) -> None:
        self._epoch = self._ledger.epoch
        self._now = _Counted()
        self._past: dict[int, _Counted] = {}

    def counts(self) -> Facets:
        """The counts as far as they can be brought in `COUNT_S` seconds; call again where they are not complete.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._lock:
            return self._counted(time.monotonic() + COUNT_S)

    def glance(self) -> Facets:
        """The counts with at most one step more; those of before while another call counts.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if not self._lock.acquire(blocking=False):
            return self._shown
        try:
            return self._counted(0.0)
        finally:
            self._lock.release()

    def _counted(self, deadline_s: float) -> Facets:
        while True:
            is_complete = self._ledger.read(self._step)
            if is_complete or time.monotonic() >= deadline_s:
                self._shown = self._now.facets(is_complete)
                return self._shown

    def counts_until(self, event_id: int) -> Facets | None:
        """The counts of the log that ends with an event; None where the ledger has no index to count them by.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._lock:
            found = self._ledger.read(lambda: self._until(event_id))
        return None if found is None else found.facets(True)

    def _step(self) -> bool:
        """Count the next events, within one read: no other file can come between. Returns whether all are counted."""
        if self._epoch != self._ledger.epoch or not self._is_continued(self._now):
            self._clear()
        head = self._row_id("SELECT max(id) FROM events")
        if head is None or head == self._now.last_id:
            return True
        first = self._now.last_id + 1
        if first > ID_MIN + 1 or not self._is_counted_by_index():
            # From a row that exists: a gap of any size is one step.
            first = self._row_id("SELECT min(id) FROM events WHERE id >= ?", first) or first
            last = min(head, first + _SPAN_IDS)
            rows = self._groups(
                f"SELECT {_KIND} AS one, count(*) AS counted FROM events WHERE id >= ? AND id <= ?", first, last
            )
        else:
            last, rows = head, self._all_until(head)
        self._now.add(rows)
        self._now.last_id, self._now.anchor = last, self._row_of(last)
        return last == head

    def _until(self, event_id: int) -> _Counted | None:
        if self._epoch != self._ledger.epoch:
            self._clear()
        last = self._row_id("SELECT max(id) FROM events WHERE id <= ?", event_id)
        if last is None:
            return _Counted()
        if last in self._past and self._is_continued(self._past[last]):
            return self._past[last]
        # A log without an index can be counted from its start, or from what is counted to its end.
        start = _Counted()
        start.last_id = max(ID_MIN, (self._row_id("SELECT min(id) FROM events") or 0) - 1)
        bases = {start.last_id: start, self._now.last_id: self._now, **self._past}
        near = min(bases, key=lambda one: abs(one - last) if one > ID_MIN else math.inf)
        base = bases[near] if near > ID_MIN and abs(near - last) <= PAST_STEP_IDS else None
        if base is not None and self._is_continued(base):
            found = base.copy()
            low, high = sorted((base.last_id, last))
            sql = f"SELECT {_KIND} AS one, count(*) AS counted FROM events WHERE id > ? AND id <= ?"
            found.add(self._groups(sql, low, high), 1 if last > base.last_id else -1)
        elif self._ledger.has_kind_index():
            found = _Counted()
            found.add(self._all_until(last))
        else:
            return None
        found.last_id, found.anchor = last, self._row_of(last)
        self._past[last] = found
        while len(self._past) > PAST_MAX:
            del self._past[next(iter(self._past))]
        return found

    def _is_continued(self, counted: _Counted) -> bool:
        return counted.anchor is None or self._row_of(counted.last_id) == counted.anchor

    def _is_counted_by_index(self) -> bool:
        # Nobody waits for a reader of a ledger in WAL mode, and the index has all that is needed.
        return self._ledger.connection.is_wal and self._ledger.has_kind_index()

    def _all_until(self, event_id: int) -> list[RawRow]:
        """Groups of the whole log up to an event, from the index alone: `+id` keeps SQLite from scanning the table."""
        return self._groups(
            "SELECT kind AS one, count(*) AS counted FROM events WHERE +id >= ? AND +id <= ?", ID_MIN, event_id
        )

    def _groups(self, sql: str, first: int, last: int) -> list[RawRow]:
        """(kind as bytes, number of events). Not in batches: a part of the groups would be no count."""
        # As bytes: text that is not UTF-8 would end the statement with an error.
        whole = f"SELECT CAST(substr(one, 1, {KIND_CHARS}) AS BLOB), counted FROM ({sql} GROUP BY one)"
        connection = self._ledger.connection
        return connection.retry(lambda: connection.handle().execute(whole, (first, last)).fetchall())

    def _row_id(self, sql: str, *parameters: Any) -> int | None:
        found = self._ledger.row(sql, parameters)
        return None if found is None else found[0]

    def _row_of(self, event_id: int) -> RawRow | None:
        columns = "ts, substr(kind, 1, 80), length(content), substr(content, 1, 200), length(meta)"
        sql = f"SELECT {columns} FROM events WHERE id = ?"
        return self._ledger.row(sql, (event_id,))
