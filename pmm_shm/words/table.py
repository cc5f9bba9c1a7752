"""One FTS5 table of texts: the daemon's in its file, and a client's in memory for events that are not in that yet.

The table is contentless: FTS5 keeps no text. What it keeps of each event is the count of its tokens; how often an item
is in an event follows from FTS5's own score. Both, and the number of events with the item, are integers that two tables
share out between them. So the ranking does not depend on which event is in which table.

Source of the ranking: Okapi BM25 as FTS5 computes it, https://sqlite.org/fts5.html#the_bm25_function, with its k1, b
and floor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pmm_shm.errors import ConfigError
from pmm_shm.words.query import prepared

if TYPE_CHECKING:
    # The daemon, which only adds texts, does without.
    import numpy as np
    from numpy.typing import NDArray

_K1, _B, _FLOOR = 1.2, 0.75, 1e-6
_MADE = "CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='unicode61 remove_diacritics 2')"
_ADD = "INSERT INTO words (rowid, text) VALUES (?, ?)"
_TOTALS = "SELECT block FROM words_data WHERE id = 1"
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
_IDS = "SELECT rowid FROM words WHERE words MATCH ?"
_FOUND = (
    "SELECT words.rowid, bm25(words), sz FROM words JOIN words_docsize ON words_docsize.id = words.rowid "
    "WHERE words MATCH ? ORDER BY words.rowid DESC LIMIT ?"
)


class Totals(NamedTuple):
    """The number of events, and of the tokens in all of them."""

    events: int
    tokens: int


class Occurrences(NamedTuple):
    """The events that hold an item: (n,) int64 ids, how often each of them holds it, and how many tokens each has, both
    (n,) float64.
    """

    ids: NDArray[np.int64]
    times: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @classmethod
    def none(cls) -> Occurrences:
        """No event."""
        return cls.together([])

    @classmethod
    def together(cls, parts: Sequence[Occurrences], newest: int | None = None) -> Occurrences:
        """Those of several tables, or only so many, the newest."""
        import numpy as np

        parts = [part for part in parts if len(part.ids)]
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0), np.empty(0))
        found = parts[0] if len(parts) == 1 else cls(*map(np.concatenate, zip(*parts, strict=True)))
        if newest is None or len(found.ids) <= newest:
            return found
        order = np.argsort(-found.ids)[:newest]
        return cls(found.ids[order], found.times[order], found.tokens[order])


class WordTable:
    """The table `words` of one SQLite connection. Not thread-safe."""

    def __init__(self, handle: sqlite3.Connection) -> None:
        self.handle = handle

    def make(self) -> None:
        """Create the table.

        Raises:
            ConfigError: this SQLite has no FTS5.
            sqlite3.Error: it cannot be created.
        """
        try:
            self.handle.execute(_MADE)
        except sqlite3.OperationalError as error:
            if "no such module" not in str(error):
                raise
            raise ConfigError(
                "this Python's SQLite has no FTS5, which searches by words need: use another build"
            ) from None

    def add(self, texts: Iterable[tuple[int, str]]) -> None:
        """Add (event id, text); no event twice."""
        self.handle.executemany(_ADD, ((event_id, prepared(text)) for event_id, text in texts))

    def totals(self) -> Totals:
        """Of the last commit."""
        row = self.handle.execute(_TOTALS).fetchone()
        numbers = [] if row is None else _varints(row[0])
        return Totals(numbers[0], numbers[1]) if len(numbers) > 1 else Totals(0, 0)

    def count(self, expression: str, most: int) -> int:
        """In how many events it is; counting ends at `most`."""
        found: int = self.handle.execute(_COUNT, (expression, most)).fetchone()[0]
        return found

    def ids(self, expression: str) -> set[int]:
        """The events that hold it."""
        return {row[0] for row in self.handle.execute(_IDS, (expression,)).fetchall()}

    def occurrences(self, expression: str, newest: int | None = None) -> Occurrences:
        """The events that hold it, or only so many, the newest; descending ids."""
        import numpy as np

        rows = self.handle.execute(_FOUND, (expression, -1 if newest is None else newest)).fetchall()
        if not rows:
            return Occurrences.none()
        totals = self.totals()
        is_cut = newest is not None and len(rows) == newest
        weight = weight_of(totals.events, self.count(expression, totals.events) if is_cut else len(rows))
        ids, scores, sizes = zip(*rows, strict=True)
        packed = b"".join(sizes)
        if len(packed) == len(rows):
            tokens = np.frombuffer(packed, np.uint8).astype(np.float64)
        else:
            tokens = np.array([_varints(size)[0] for size in sizes], np.float64)
        # The score is -weight * n * (k1 + 1) / (n + length), for an item that is in the event n times.
        share = np.array(scores) / -weight
        times = np.rint(share * _length(tokens, totals.tokens / totals.events) / (_K1 + 1.0 - share))
        return Occurrences(np.array(ids, np.int64), times, tokens)


def weight_of(events: int, events_with: int) -> float:
    """The inverse document frequency of an item that is in `events_with` of `events`."""
    from math import log

    return max(log((events - events_with + 0.5) / (events_with + 0.5)), _FLOOR)


def scores_of(found: Occurrences, weight: float, average_tokens: float) -> NDArray[np.float64]:
    """The part of one item in the score of each event; above 0."""
    return weight * found.times * (_K1 + 1.0) / (found.times + _length(found.tokens, average_tokens))


def _length(tokens: NDArray[np.float64], average: float) -> NDArray[np.float64]:
    return _K1 * (1.0 - _B + _B * tokens / average)


def _varints(data: bytes) -> list[int]:
    """The numbers in one of FTS5's records: SQLite's varints, https://sqlite.org/fileformat2.html#varint."""
    numbers, value, length = [], 0, 0
    for byte in data:
        length += 1
        if length == 9:
            numbers.append(value << 8 | byte)
        elif byte & 0x80:
            value = value << 7 | byte & 0x7F
            continue
        else:
            numbers.append(value << 7 | byte)
        value = length = 0
    return numbers
