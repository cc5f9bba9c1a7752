"""The events that have a vector in a model's table, and the text of each. Daemon and client share this code.

An event's vector has one of three sources; the first one available counts: a row of the ledger's table
`event_embeddings`; an `embedding_indexed` event with the digest of the default embedding of the event that it names;
the embedding of the event's content, for events of some kinds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.errors import InvalidTextError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.newest import position_before_newest
from pmm_shm.ledger.rows import MalformedMeta, RawRow, parse_content, parse_meta
from pmm_shm.ledger.tail import Position, TailReader
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import checked_text

DEFAULT_KINDS = ("user", "response", "user_message", "assistant_message", "reflection")
INDEXED_KIND = "embedding_indexed"
_ID, _KIND, _CONTENT, _META = 0, 2, 3, 4


class VectorSource(enum.IntEnum):
    """The source of an event's vector; the smallest number takes precedence."""

    IMPORTED = 1
    INDEXED = 2
    EMBEDDED = 3


class EventText(NamedTuple):
    """An event that needs a vector: that of `text`, or `vector` if it is known already."""

    event_id: int
    source: VectorSource
    text: str
    vector: list[float] | None = None


class EventTextBatch(NamedTuple):
    """The result of one read: the events that need a vector, ascending; position and flags as in `Tail`."""

    texts: list[EventText]
    position: Position
    is_anchored: bool
    is_complete: bool


def has_event_embeddings(connection: Connection) -> bool:
    """Whether the ledger has a table `event_embeddings` with rows. The caller holds the connection's lock."""
    table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'event_embeddings' LIMIT ?"
    rows = "SELECT 1 FROM event_embeddings LIMIT ?"
    return all(fetch_batch(connection, sql, (), 1).rows for sql in (table, rows))


class EventTextReader:
    """Reads the events of a table along the log; for callers that hold the connection's lock.

    Parameters:
        kinds: events of these kinds have their content embedded.
        model: of the table; `embedding_indexed` events count for the default embedding only.
    """

    def __init__(self, connection: Connection, kinds: Iterable[str], model: str) -> None:
        self._connection = connection
        self._kinds = frozenset(kinds)
        self._reads_digests = model == local_bow.NAME
        self._tail = TailReader(connection, self._kinds | {INDEXED_KIND} if self._reads_digests else self._kinds)

    def read(
        self, after: Position, rows_max: int = limits.TAIL_ROWS_MAX, until_id: int | None = None
    ) -> EventTextBatch:
        """The events after `after`, up to `until_id` if given.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        tail = self._tail.read(after, rows_max, until_id)
        return EventTextBatch(self._texts(tail.rows), tail.position, tail.is_anchored, tail.is_complete)

    def position_of_newest(self, count: int) -> Position:
        """The position before the newest `count` events whose content is embedded; the start if there are no more.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return position_before_newest(self._connection, self._tail, self._kinds, count)

    def _texts(self, rows: Sequence[RawRow]) -> list[EventText]:
        found = {one.event_id: one for one in self._indexed(rows)} if self._reads_digests else {}
        for row in rows:
            if row[_KIND] in self._kinds and row[_ID] not in found:
                text = _text(row[_CONTENT])
                if text is not None:
                    found[row[_ID]] = EventText(row[_ID], VectorSource.EMBEDDED, text)
        return [found[event_id] for event_id in sorted(found)]

    def _indexed(self, rows: Sequence[RawRow]) -> Iterable[EventText]:
        """The events that `embedding_indexed` events among the rows name with the right digest."""
        digests: dict[int, set[str]] = {}
        for row in rows:
            named = _named(row) if row[_KIND] == INDEXED_KIND else None
            if named is not None:
                digests.setdefault(named[0], set()).add(named[1])
        for event_id, content in self._contents(sorted(digests)):
            text = _text(content)
            if text is None:
                continue
            vector = local_bow.vector(text)
            if local_bow.digest_of(vector) in digests[event_id]:
                yield EventText(event_id, VectorSource.INDEXED, text, vector)

    def _contents(self, event_ids: list[int]) -> Iterable[tuple[int, object]]:
        """(event id, content column) of those events that exist."""
        done = 0
        while done < len(event_ids):
            part = event_ids[done : done + limits.TAIL_FETCH_ROWS]
            marks = ", ".join("?" * len(part))
            sql = f"SELECT id, content FROM events WHERE id IN ({marks}) ORDER BY id LIMIT ?"
            batch = fetch_batch(self._connection, sql, tuple(part), len(part))
            yield from batch.rows
            # Large contents may have ended the batch early.
            done += len(part) if batch.complete or not batch.rows else part.index(batch.rows[-1][0]) + 1


def _named(row: RawRow) -> tuple[int, str] | None:
    """The earlier event that an `embedding_indexed` event names, and the digest; None if it names none."""
    try:
        meta = parse_meta(row[_META])
    except MalformedMeta:
        return None
    event_id, digest = meta.get("eid"), meta.get("digest")
    # A later event cannot have been embedded.
    if type(event_id) is not int or not -(1 << 63) <= event_id < row[_ID] or not isinstance(digest, str):
        return None
    return event_id, digest


def _text(content: object) -> str | None:
    """The text to embed; None if it is too long."""
    try:
        return checked_text(parse_content(content)[0])
    except InvalidTextError:
        return None
