"""How many events there are of each kind: counted once, then only the events that were appended since."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

from pmm_shm.ledger.rows import ID_MIN
from pmm_shm_web.ledger import Ledger
from pmm_shm_web.shown import spelled
from pmm_shm_web.stream import KIND_CHARS

KINDS_MAX = 1_000
"""Kinds that are counted by name; a hostile ledger may have a million of them."""
COUNT_S = 0.4
_SPAN_IDS = 32_768


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


class KindCounter:
    """Counts the events of a ledger by kind. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._epoch = self._ledger.epoch
        self._counts: dict[str, int] = {}
        self._others = 0
        self._counted_to = ID_MIN

    def counts(self) -> Facets:
        """The counts as far as they can be brought in `COUNT_S` seconds; call again where they are not complete.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        deadline_s = time.monotonic() + COUNT_S
        with self._lock:
            while True:
                is_complete = self._ledger.read(self._step)
                if is_complete or time.monotonic() >= deadline_s:
                    ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
                    return Facets(tuple(ranked), self._others, max(0, self._counted_to), is_complete)

    def counts_until(self, event_id: int) -> Facets | None:
        """The counts of the log that ends with an event; None where the ledger has no index to count them by."""

        def read() -> list[tuple[str, int]] | None:
            if not self._ledger.has_kind_index():
                return None
            # Of the index alone: `+id` keeps SQLite from scanning the table.
            sql = (
                f"SELECT substr(kind, 1, {KIND_CHARS}), count(*) FROM events WHERE +id <= ? GROUP BY kind "
                "ORDER BY 2 DESC, 1 LIMIT ?"
            )
            return [(_name(kind), number) for kind, number in self._ledger.rows(sql, (event_id,), KINDS_MAX).rows]

        found = self._ledger.read(read)
        return None if found is None else Facets(tuple(found), 0, event_id, True)

    def _step(self) -> bool:
        """Count the next events, within one read: no other file can come between. Returns whether all are counted."""
        if self._epoch != self._ledger.epoch:
            self._clear()
        found = self._ledger.row("SELECT max(id) FROM events")
        head = ID_MIN if found is None or found[0] is None else int(found[0])
        if head < self._counted_to:
            # Events are gone.
            self._clear()
        if head == self._counted_to:
            return True
        first, kind = self._counted_to + 1, f"substr(kind, 1, {KIND_CHARS})"
        if self._counted_to == ID_MIN and self._ledger.connection.is_wal and self._ledger.has_kind_index():
            # Nobody waits for a reader of a ledger in WAL mode, and the index has all that is needed.
            last, sql = head, f"SELECT {kind}, count(*) FROM events WHERE +id >= ? AND +id <= ? GROUP BY kind LIMIT ?"
        else:
            start = self._ledger.row("SELECT min(id) FROM events WHERE id >= ?", (first,))
            assert start is not None
            first, last = start[0], min(head, start[0] + _SPAN_IDS)
            sql = f"SELECT {kind}, count(*) FROM events WHERE id >= ? AND id <= ? GROUP BY 1 LIMIT ?"
        # Not in batches: a part of the groups would be no count.
        with_all = self._ledger.connection
        rows = with_all.retry(lambda: with_all.handle().execute(_as_blob(sql, kind), (first, last, -1)).fetchall())
        for raw, number in rows:
            name = _name(raw)
            if name in self._counts or len(self._counts) < KINDS_MAX:
                self._counts[name] = self._counts.get(name, 0) + number
            else:
                self._others += number
        self._counted_to = last
        return last == head


def _name(raw: Any) -> str:
    """A kind as text; what is not text is spelled."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return text if isinstance(text, str) else spelled(text)


def _as_blob(sql: str, kind: str) -> str:
    """The statement with the kind as bytes: text that is not UTF-8 would end it with an error."""
    return sql.replace(f"SELECT {kind}", f"SELECT CAST({kind} AS BLOB)", 1)
