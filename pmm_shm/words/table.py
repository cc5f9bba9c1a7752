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

from pmm_shm import limits
from pmm_shm.errors import ConfigError
from pmm_shm.ledger.rows import ID_MIN
from pmm_shm.words.query import prepared

if TYPE_CHECKING:
    # The daemon, which only adds texts, does without.
    import numpy as np
    from numpy.typing import NDArray

_K1, _B, _FLOOR = 1.2, 0.75, 1e-6
# Marks belong to words: most vowels of Indian scripts are marks.
_TOKENS = "unicode61 remove_diacritics 2 categories ''L* M* N* Co''"
_MADE = f"CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='{_TOKENS}')"
_ADD = "INSERT INTO words (rowid, text) VALUES (?, ?)"
_TOTALS = "SELECT block FROM words_data WHERE id = 1"
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
_IDS = "SELECT rowid FROM words WHERE words MATCH ?"
_FOUND = (
    "SELECT words.rowid, bm25(words), sz FROM words JOIN words_docsize ON words_docsize.id = words.rowid "
    "WHERE words MATCH ? AND words.rowid >= ? ORDER BY words.rowid DESC LIMIT ?"
)
_ANY = "SELECT 1 FROM words WHERE words MATCH ? AND rowid >= ? LIMIT 1"


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


class _Found(NamedTuple):
    """What was found for an item when the table had so many events: all events with it, or so many of the newest."""

    events: int
    newest: int | None
    found: Occurrences


class KnownWords:
    """What stays true of one table while events are added: none ever leaves it, and ids ascend.

    Attributes:
        counts_min: expression to a number of events that certainly hold it.
        occurrences: expression to what was found for it last.
    """

    def __init__(self) -> None:
        self.counts_min: dict[str, int] = {}
        self.occurrences: dict[str, _Found] = {}

    def note_count(self, expression: str, count: int) -> None:
        if len(self.counts_min) >= limits.WORD_COUNTS_KEPT:
            self.counts_min.clear()
        self.counts_min[expression] = count

    def note_occurrences(self, expression: str, found: _Found) -> None:
        # The one that was used last is the last one.
        self.occurrences.pop(expression, None)
        if len(found.found.ids) <= limits.COMMON_EVENTS_MAX:
            self.occurrences[expression] = found
        if len(self.occurrences) > limits.WORDS_KEPT:
            del self.occurrences[next(iter(self.occurrences))]


class WordTable:
    """The table `words` of one SQLite connection. Not thread-safe.

    Parameters:
        known: what is known of this table from before; it is kept up to date.
    """

    def __init__(self, handle: sqlite3.Connection, known: KnownWords | None = None) -> None:
        self.handle = handle
        self._known = KnownWords() if known is None else known
        # Exact only until events are added.
        self._counts: dict[str, int] = {}

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
        """Add (event id, text), in the order of the ids and after all that are there."""
        self._counts.clear()
        self.handle.executemany(_ADD, ((event_id, prepared(text)) for event_id, text in texts))

    def totals(self) -> Totals:
        """Of the last commit. Raises `sqlite3.DatabaseError` if they are damaged: without them nothing is found."""
        rows = self.handle.execute(_TOTALS).fetchall()
        numbers = [_varints(row[0]) for row in rows]
        if numbers == [[]]:
            return Totals(0, 0)
        if len(numbers) != 1 or len(numbers[0]) != 2:
            raise sqlite3.DatabaseError("the totals of the index are damaged")
        return Totals(*numbers[0])

    def count(self, expression: str, most: int) -> int:
        """In how many events it is; counting ends at `most`."""
        exact = self._counts.get(expression)
        if exact is not None or self._known.counts_min.get(expression, 0) >= most:
            return most if exact is None else min(exact, most)
        # On and on, so that a common word is soon known as that.
        found: int = self.handle.execute(_COUNT, (expression, 2 * most)).fetchone()[0]
        if found >= most:
            self._known.note_count(expression, found)
        if found < 2 * most:
            self._counts[expression] = found
        return min(found, most)

    def ids(self, expression: str) -> set[int]:
        """The events that hold it."""
        return {row[0] for row in self.handle.execute(_IDS, (expression,)).fetchall()}

    def occurrences(self, expression: str, newest: int | None = None) -> Occurrences:
        """The events that hold it, or only so many, the newest; descending ids."""
        totals = self.totals()
        known = self._known.occurrences.get(expression, _Found(0, 0, Occurrences.none()))
        if totals.events == known.events and known.newest in (None, newest):
            return known.found
        if known.newest is not None and (newest is None or newest > known.newest):
            # Only the newest are known, and more are asked for.
            known = _Found(0, 0, Occurrences.none())
        first_id = int(known.found.ids[0]) + 1 if len(known.found.ids) else ID_MIN
        new = self._read(expression, first_id, newest, totals)
        found = Occurrences.together([new, known.found], newest)
        self._known.note_occurrences(expression, _Found(totals.events, newest, found))
        return found

    def _read(self, expression: str, first_id: int, newest: int | None, totals: Totals) -> Occurrences:
        """Those of events from `first_id` on."""
        import numpy as np

        # FTS5 counts all events with the item for a score, even if no new event has it.
        if first_id != ID_MIN and not self.handle.execute(_ANY, (expression, first_id)).fetchall():
            return Occurrences.none()
        rows = self.handle.execute(_FOUND, (expression, first_id, -1 if newest is None else newest)).fetchall()
        if not rows:
            return Occurrences.none()
        is_all = first_id == ID_MIN and len(rows) != newest
        weight = weight_of(totals.events, len(rows) if is_all else self.count(expression, totals.events + 1))
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
