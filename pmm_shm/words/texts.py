"""The events in the index of words, and the text of each. Daemon and client share this code."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.newest import position_before_newest
from pmm_shm.ledger.rows import MalformedMeta, RawRow, parse_content, parse_meta
from pmm_shm.ledger.tail import Position, TailReader

WORD_KINDS = (
    "user",
    "response",
    "user_message",
    "assistant_message",
    "reflection",
    "commitment_open",
    "autonomy_directive",
)
"""The kinds that are indexed unless the daemon was given others."""
_ID, _CONTENT, _META = 0, 3, 4


class WordTexts(NamedTuple):
    """The result of one read: (event id, text), ascending; position and flags as in `Tail`."""

    texts: list[tuple[int, str]]
    position: Position
    is_anchored: bool
    is_complete: bool


class WordTextReader:
    """Reads the texts to index along the log; for callers that hold the connection's lock."""

    def __init__(self, connection: Connection, kinds: Collection[str]) -> None:
        self._connection, self._kinds = connection, frozenset(kinds)
        self._tail = TailReader(connection, self._kinds)

    def read(self, after: Position, rows_max: int = limits.TAIL_ROWS_MAX, until_id: int | None = None) -> WordTexts:
        """The texts after `after`, up to event `until_id` if given.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        tail = self._tail.read(after, rows_max, until_id)
        texts = [(row[_ID], text_of(row)) for row in tail.rows if row[2] in self._kinds]
        return WordTexts(texts, tail.position, tail.is_anchored, tail.is_complete)

    def holds(self, position: Position) -> bool:
        """Whether the log continues this position.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return self._tail.holds(position)

    def position_before_newest(self, count: int) -> Position:
        """The position before the newest `count` of these events.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return position_before_newest(self._connection, self._tail, self._kinds, count)


def text_of(row: RawRow) -> str:
    """The text of an event that is indexed: its content, and `text` of its meta if that is another text."""
    content = parse_content(row[_CONTENT])[0]
    try:
        text = parse_meta(row[_META]).get("text")
    except MalformedMeta:
        text = None
    if isinstance(text, str) and text not in content:
        content = f"{content}\n{text}"
    return content[: limits.WORD_CHARS_MAX]
