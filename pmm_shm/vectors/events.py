"""Which events get a vector in a model's table, and of which text: the same for the daemon and for a client's search.

Three sources, the first that has one counts: a row of the ledger's table `event_embeddings`; an `embedding_indexed`
event whose digest is that of the default embedding of the event it names; the embedding of the content of events of
some kinds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.errors import InvalidTextError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.rows import MalformedMeta, RawRow, parse_content, parse_meta
from pmm_shm.ledger.tail import Position, TailReader
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import checked_text

DEFAULT_KINDS = ("user", "response", "user_message", "assistant_message", "reflection")
INDEXED_KIND = "embedding_indexed"
_ID, _KIND, _CONTENT, _META = 0, 2, 3, 4


class Source(enum.IntEnum):
    """Where an event's vector comes from; the smallest number counts."""

    IMPORTED = 1
    INDEXED = 2
    EMBEDDED = 3


class Item(NamedTuple):
    """An event that is to have a vector: that of `text`, or `vector` where it is known already.

    Attributes:
        at: the event of the log that says so: the event itself, or a later one that names it.
    """

    at: int
    event_id: int
    source: Source
    text: str
    vector: list[float] | None = None


class Items(NamedTuple):
    """What one read found.

    Attributes:
        items: each event once, in order of their ids.
        position: up to which event they reach.
        is_anchored: False when the log does not continue the position that was asked for.
        is_complete: whether that was the head of the log, or the event that was to be the last.
    """

    items: list[Item]
    position: Position
    is_anchored: bool
    is_complete: bool


class EventTexts:
    """Reads, along the log, the events of a table; call it with the connection's lock held.

    Parameters:
        kinds: of which events the content is embedded.
        model: the table's; only that of the default embedding has vectors by `embedding_indexed` events.
    """

    def __init__(self, connection: Connection, kinds: Iterable[str], model: str) -> None:
        self._connection = connection
        self._kinds = frozenset(kinds)
        self._reads_digests = model == local_bow.NAME
        wanted = self._kinds | {INDEXED_KIND} if self._reads_digests else self._kinds
        self._tail = TailReader(connection, wanted)

    def read(self, after: Position, rows_max: int = limits.TAIL_ROWS_MAX, until_id: int | None = None) -> Items:
        """The events behind `after`, up to `until_id` where it is given.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        tail = self._tail.read(after, rows_max, until_id)
        return Items(self._items(tail.rows), tail.position, tail.is_anchored, tail.is_complete)

    def _items(self, rows: list[RawRow]) -> list[Item]:
        items: dict[int, Item] = {}
        for item in self._indexed(rows) if self._reads_digests else ():
            items[item.event_id] = item
        for row in rows:
            if row[_KIND] in self._kinds and row[_ID] not in items:
                text = _text(row[_CONTENT])
                if text is not None:
                    items[row[_ID]] = Item(row[_ID], row[_ID], Source.EMBEDDED, text)
        return [items[event_id] for event_id in sorted(items)]

    def _indexed(self, rows: list[RawRow]) -> Iterable[Item]:
        digests: dict[int, dict[str, int]] = {}
        for row in rows:
            if row[_KIND] == INDEXED_KIND:
                named = _named(row)
                if named is not None:
                    digests.setdefault(named[0], {}).setdefault(named[1], row[_ID])
        for event_id, content in self._contents(sorted(digests)):
            text = _text(content)
            if text is None:
                continue
            vector = local_bow.vector(text)
            at = digests[event_id].get(local_bow.digest_of(vector))
            if at is not None:
                yield Item(at, event_id, Source.INDEXED, text, vector)

    def _contents(self, event_ids: list[int]) -> Iterable[tuple[int, object]]:
        """(event id, content column) of those events that are there."""
        done = 0
        while done < len(event_ids):
            part = event_ids[done : done + limits.TAIL_FETCH_ROWS]
            marks = ", ".join("?" * len(part))
            sql = f"SELECT id, content FROM events WHERE id IN ({marks}) ORDER BY id LIMIT ?"
            batch = fetch_batch(self._connection, sql, tuple(part), len(part))
            yield from batch.rows
            # Large contents may have ended the batch before its time.
            done += len(part) if batch.complete or not batch.rows else part.index(batch.rows[-1][0]) + 1


def _named(row: RawRow) -> tuple[int, str] | None:
    """The earlier event that an `embedding_indexed` event names, and the digest; None where it names none."""
    try:
        meta = parse_meta(row[_META])
    except MalformedMeta:
        return None
    event_id, digest = meta.get("eid"), meta.get("digest")
    # An event that is yet to come cannot have been embedded.
    if type(event_id) is not int or not -(1 << 63) <= event_id < row[_ID] or not isinstance(digest, str):
        return None
    return event_id, digest


def _text(content: object) -> str | None:
    """The text to embed; None where it is longer than any that is embedded."""
    try:
        return checked_text(parse_content(content)[0])
    except InvalidTextError:
        return None
