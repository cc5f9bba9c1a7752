"""The events that hold the words of a query, best first, over all tables that share them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.words.query import Item, WordQuery
from pmm_shm.words.table import Totals, WordTable, score_of, weight_of


class Ranking(NamedTuple):
    """The result of a search by words.

    Attributes:
        scores: event id to BM25 score, above 0; the best first, ties by ascending id.
        allowed: the events that hold every phrase of the query; None if it has none.
        excluded: the events that hold what the query excludes.
        leads: the query has a phrase, an item with a digit or a rare word, and some event holds it.
    """

    scores: dict[int, float]
    allowed: set[int] | None
    excluded: set[int]
    leads: bool

    def admits(self, event_id: int) -> bool:
        """Whether the event has every phrase and nothing excluded."""
        return event_id not in self.excluded and (self.allowed is None or event_id in self.allowed)


def ranked(tables: Sequence[WordTable], query: WordQuery) -> Ranking:
    """Search tables of which none has an event of another."""
    totals = Totals(*(sum(numbers) for numbers in zip(*(table.totals() for table in tables), strict=True)))
    phrases = [item for item in query.items if item.is_phrase]
    allowed: set[int] | None = None
    for item in phrases:
        ids = _ids(tables, item)
        allowed = ids if allowed is None else allowed & ids
    excluded: set[int] = set()
    for item in query.excluded:
        excluded |= _ids(tables, item)
    kept = _kept(tables, query.items, totals)
    scores: dict[int, float] = {}
    for item, _ in kept:
        found = [one for table in tables for one in table.occurrences(item.expression)]
        weight = weight_of(totals.events, len(found))
        for one in found:
            score = score_of(one, weight, totals.tokens / totals.events)
            scores[one.event_id] = scores.get(one.event_id, 0.0) + score
    admitted = [one for one in scores if one not in excluded and (allowed is None or one in allowed)]
    admitted.sort(key=lambda event_id: (-scores[event_id], event_id))
    rare = totals.events // limits.RARE_SHARE
    leads = any(item.is_phrase or item.has_digit or count <= rare for item, count in kept)
    return Ranking({event_id: scores[event_id] for event_id in admitted}, allowed, excluded, leads)


def common_above(events: int) -> int:
    """A word in more events than this is common."""
    share = max(events // limits.COMMON_SHARE, limits.COMMON_EVENTS_MIN)
    return min(share, limits.COMMON_EVENTS_MAX)


def _kept(tables: Sequence[WordTable], items: list[Item], totals: Totals) -> list[tuple[Item, int]]:
    """The items that are searched, with the number of events that hold each, the rarest first.

    Phrases, and words that are not common: as many as are in `limits.COMMON_EVENTS_MAX` events together, and always
    the rarest. Where all words are common: the rarest `limits.COMMON_KEPT`.
    """
    common = common_above(totals.events)
    counted = [(item, _count(tables, item, totals.events if item.is_phrase else common + 1)) for item in items]
    found = [(item, count) for item, count in counted if count]
    kept = sorted((one for one in found if one[0].is_phrase or one[1] <= common), key=lambda one: one[1])
    if not kept:
        exact = [(item, _count(tables, item, totals.events)) for item, _ in found]
        return sorted(exact, key=lambda one: one[1])[: limits.COMMON_KEPT]
    total = 0
    chosen: list[tuple[Item, int]] = []
    for item, count in kept:
        total += count
        if item.is_phrase or not chosen or total <= limits.COMMON_EVENTS_MAX:
            chosen.append((item, count))
    return chosen


def _count(tables: Sequence[WordTable], item: Item, most: int) -> int:
    return sum(table.count(item.expression, most) for table in tables)


def _ids(tables: Sequence[WordTable], item: Item) -> set[int]:
    return set().union(*(table.ids(item.expression) for table in tables))
