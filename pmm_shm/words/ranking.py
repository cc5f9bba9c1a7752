"""The events that hold the words of a query, best first, over all tables that share them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.words.query import Item, WordQuery
from pmm_shm.words.table import Occurrences, Totals, WordTable, scores_of, weight_of


class Ranking(NamedTuple):
    """The result of a search by words.

    Attributes:
        scores: event id to score, above 0, the best first, ties by ascending id: BM25, in which a phrase or a word with
            a digit counts twice.
        query_weight: of all items of the query; the score of an event that holds each of them once is about that.
        allowed: the events that hold every phrase of the query; None if it has none.
        excluded: the events that hold what the query excludes.
        leading: the events that hold a phrase, or a word with a digit.
    """

    scores: dict[int, float]
    query_weight: float
    allowed: set[int] | None
    excluded: set[int]
    leading: set[int]

    def admits(self, event_id: int) -> bool:
        """Whether the event has every phrase and nothing excluded."""
        return event_id not in self.excluded and (self.allowed is None or event_id in self.allowed)

    def share(self, event_id: int) -> float:
        """The share of the query's weight that the event holds, above 0 and up to 1."""
        return min(1.0, self.scores[event_id] / self.query_weight)


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
    scores: dict[int, float] = {}
    leading: set[int] = set()
    kept = _kept(tables, counts, totals.events)
    for item, count in kept.items():
        newest = None if item.is_phrase or count <= common_above(totals.events) else limits.COMMON_EVENTS_MAX
        found = Occurrences.together([table.occurrences(item.expression, newest) for table in tables], newest)
        parts = scores_of(found, _weight(item, count, totals.events), totals.tokens / totals.events).tolist()
        ids = found.ids.tolist()
        if scores:
            for event_id, part in zip(ids, parts, strict=True):
                scores[event_id] = scores.get(event_id, 0.0) + part
        else:
            scores = dict(zip(ids, parts, strict=True))
        if item.is_named:
            leading.update(ids)
    if excluded or allowed is not None:
        admitted = (one for one in scores if one not in excluded and (allowed is None or one in allowed))
        scores = {one: scores[one] for one in admitted}
    query_weight = sum(_weight(item, count, totals.events) for item, count in counts.items())
    return Ranking(_best_first(scores), query_weight, allowed, excluded, leading)


def _best_first(scores: dict[int, float]) -> dict[int, float]:
    """The best first, ties by ascending id."""
    import numpy as np

    ids, values = np.array(list(scores), np.int64), np.array(list(scores.values()))
    order = np.lexsort((ids, -values))
    return dict(zip(ids[order].tolist(), values[order].tolist(), strict=True))


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
