"""The events that hold the words of a query, best first, over all tables that share them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.words.query import Item, WordQuery
from pmm_shm.words.table import Occurrences, Totals, WordTable, scores_of, weight_of

_FIRST = 256

EventIds = NDArray[np.int64]
Floats = NDArray[np.float64]


class Ranking:
    """The result of a search by words: the events found, and their scores, above 0: BM25, in which a phrase or a word
    with a digit counts twice. The best are first, ties by ascending id; as many are sorted as are asked for.

    Parameters:
        ids, scores: (n,) int64 ascending, and (n,) float64.
        query_weight: of all items of the query; the score of an event that holds each of them once is about that.
        allowed: the events that hold every phrase of the query; None if it has none.
        excluded: the events that hold what the query excludes.
        leading: the events that hold a phrase, or a word with a digit.
    """

    def __init__(
        self,
        ids: EventIds,
        scores: Floats,
        query_weight: float,
        allowed: set[int] | None,
        excluded: set[int],
        leading: set[int],
    ) -> None:
        self._ids, self._scores = ids, scores
        self.query_weight, self.allowed, self.excluded, self.leading = query_weight, allowed, excluded, leading

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        """The event ids, best first."""
        yield from self.best(_FIRST)
        if len(self) > _FIRST:
            yield from islice(self.best(), _FIRST, None)

    def best(self, count: int | None = None) -> dict[int, float]:
        """Event id to score, of so many or of all."""
        ids, scores = self._ids, self._scores
        if count is not None and count < len(scores):
            least = np.partition(scores, len(scores) - count)[len(scores) - count]
            is_wanted = scores >= least
            ids, scores = ids[is_wanted], scores[is_wanted]
        # Stable: of equal scores, the lower id stays first.
        order = np.argsort(-scores, kind="stable")[:count]
        return dict(zip(ids[order].tolist(), scores[order].tolist(), strict=True))

    def within(self, scope: EventIds) -> Ranking:
        """The same, of these events only."""
        is_wanted = np.isin(self._ids, scope)
        kept = self._ids[is_wanted], self._scores[is_wanted]
        return Ranking(*kept, self.query_weight, self.allowed, self.excluded, self.leading)

    def scores(self, event_ids: Sequence[int]) -> list[float | None]:
        """Of some events; None for one that was not found."""
        if not len(self):
            return [None] * len(event_ids)
        wanted = np.array(event_ids, np.int64)
        numbers = np.minimum(self._ids.searchsorted(wanted), len(self) - 1)
        is_found = (self._ids[numbers] == wanted).tolist()
        found = zip(self._scores[numbers].tolist(), is_found, strict=True)
        return [score if is_known else None for score, is_known in found]

    def admits(self, event_id: int) -> bool:
        """Whether the event has every phrase and nothing excluded."""
        return event_id not in self.excluded and (self.allowed is None or event_id in self.allowed)

    def share(self, score: float) -> float:
        """The share of the query's weight that an event with this score holds, above 0 and up to 1."""
        return min(1.0, score / self.query_weight)


def ranked(tables: Sequence[WordTable], query: WordQuery) -> Ranking:
    """Search tables of which none has an event of another."""
    sizes = [table.totals() for table in tables]
    tables = [table for table, size in zip(tables, sizes, strict=True) if size.events]
    totals = Totals(*(sum(numbers) for numbers in zip(*sizes, strict=True)))
    allowed: set[int] | None = None
    for item in query.items:
        if item.is_phrase:
            ids = _ids(tables, item)
            allowed = ids if allowed is None else allowed & ids
    excluded: set[int] = set()
    for item in query.excluded:
        excluded |= _ids(tables, item)
    counts = _counts(tables, query.items, totals.events)
    leading: set[int] = set()
    parts: list[tuple[EventIds, Floats]] = []
    for item, count in _kept(tables, counts, totals.events).items():
        newest = None if item.is_phrase or count <= common_above(totals.events) else limits.COMMON_EVENTS_MAX
        found = Occurrences.together([table.occurrences(item.expression, newest) for table in tables], newest)
        scores = scores_of(found, _weight(item, count, totals.events), totals.tokens / totals.events)
        parts.append((found.ids, scores))
        if item.is_named:
            leading.update(found.ids.tolist())
    query_weight = sum(_weight(item, count, totals.events) for item, count in counts.items())
    return Ranking(*_added(parts, excluded, allowed), query_weight, allowed, excluded, leading)


def _added(
    parts: list[tuple[EventIds, Floats]], excluded: set[int], allowed: set[int] | None
) -> tuple[EventIds, Floats]:
    """The scores of each event, added in the order of the parts; of those only that may be found; ascending ids."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0)
    ids, scores = map(np.concatenate, zip(*parts, strict=True))
    ids, numbers = np.unique(ids, return_inverse=True)
    # In their order: a sum of floats depends on it.
    scores = np.bincount(numbers, scores)
    if excluded or allowed is not None:
        admitted = [one not in excluded and (allowed is None or one in allowed) for one in ids.tolist()]
        return ids[admitted], scores[admitted]
    return ids, scores


def common_above(events: int) -> int:
    """A word in more events than this is common."""
    share = max(events // limits.COMMON_SHARE, limits.COMMON_EVENTS_MIN)
    return min(share, limits.COMMON_EVENTS_MAX)


def _counts(tables: Sequence[WordTable], items: Sequence[Item], events: int) -> dict[Item, int]:
    """The number of events that hold each item; of a common word, one more than a word may have that is not common."""
    enough = common_above(events) + 1
    return {item: _count(tables, item, events if item.is_phrase else enough) for item in items}


def _kept(tables: Sequence[WordTable], counts: Mapping[Item, int], events: int) -> dict[Item, int]:
    """The items that are searched, the rarest first, and how many events hold each.

    Phrases, and words that are not common: as many as are in `limits.KEPT_EVENTS_MAX` events together, and always the
    rarest. Where all words are common: the rarest one.
    """
    found = sorted((item for item in counts if counts[item]), key=counts.__getitem__)
    common = common_above(events)
    candidates = [item for item in found if item.is_phrase or counts[item] <= common]
    if not candidates:
        return _rarest(tables, found, common, events)
    total = 0
    kept: dict[Item, int] = {}
    for item in candidates:
        total += counts[item]
        if item.is_phrase or not kept or total <= limits.KEPT_EVENTS_MAX:
            kept[item] = counts[item]
    return kept


def _rarest(tables: Sequence[WordTable], items: list[Item], most: int, events: int) -> dict[Item, int]:
    """The rarest of some common words, the first of several, without counting all of the others."""
    while items:
        most = min(2 * most, events)
        rarest, lowest = items[0], _count(tables, items[0], most)
        for item in items[1:]:
            # Up to the lowest count: one that reaches it is not rarer.
            count = _count(tables, item, lowest)
            if count < lowest:
                rarest, lowest = item, count
        if lowest < most or most >= events:
            return {rarest: lowest}
    return {}


def _weight(item: Item, count: int, events: int) -> float:
    return weight_of(events, count) * (limits.NAMED_WEIGHT if item.is_named else 1.0)


def _count(tables: Sequence[WordTable], item: Item, most: int) -> int:
    # Each table counts up to `most`.
    return min(most, sum(table.count(item.expression, most) for table in tables))


def _ids(tables: Sequence[WordTable], item: Item) -> set[int]:
    return set().union(*(table.ids(item.expression) for table in tables))
