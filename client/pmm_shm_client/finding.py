"""One search by meaning and by words: the two rankings, filtered, and fused into one.

Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): an event scores weight / (60 + rank) in each ranking
that has it among its first ones. So the two kinds of scores need not be comparable. The weight of an event found by
words depends on how much of the query it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.errors import (
    ConfigError,
    EmbedderError,
    InvalidTextError,
    InvalidVectorError,
    StoreError,
    UnknownModelError,
)
from pmm_shm.names import checked_search_mode
from pmm_shm.vectors import local_bow
from pmm_shm.words.query import WordQuery
from pmm_shm.words.ranking import Ranking
from pmm_shm_client.event_filter import EventFilter, Moment, Selection
from pmm_shm_client.reader import Reader
from pmm_shm_client.searching import FoundBy, Hit, Hits, Match, Query, Searching, checked_k, checked_scope
from pmm_shm_client.word_search import WordSearching, WordsFound

SearchMode = Literal["meaning", "words", "hybrid", "auto"]
WordMode = Literal["words", "hybrid", "auto"]
_NO_MEANING = (StoreError, EmbedderError, InvalidTextError, InvalidVectorError, UnknownModelError)


class SearchRequest(NamedTuple):
    """A checked request.

    Attributes:
        words: the items of the query, if that is a text.
    """

    query: Query
    words: WordQuery | None
    k: int
    scope: Any
    model: str | None
    mode: str
    wanted: EventFilter

    @classmethod
    def of(
        cls,
        query: Query,
        k: int,
        scope: Iterable[int] | None,
        model: str | None,
        mode: str,
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
        is_message: bool = False,
    ) -> SearchRequest:
        """Check arguments as `Cache.search` takes them.

        Raises:
            ConfigError: one means nothing.
            InvalidTextError: the query is empty.
        """
        mode = checked_search_mode("mode", mode)
        words = WordQuery.of(query, is_message=is_message) if isinstance(query, str) else None
        if isinstance(query, str) and not query:
            raise InvalidTextError("text: empty; there is nothing to search for")
        if words is None and mode == "auto":
            mode = "meaning"
        if words is None and mode != "meaning":
            raise ConfigError(f"mode: {mode} needs a text, and the query is a vector")
        wanted = EventFilter.of(kinds, roles, since, until, distinct)
        return cls(query, words, checked_k(k), checked_scope(scope), model, mode, wanted)


class _Meaning(NamedTuple):
    """The events nearest to a query, the best first; `of_words` has the similarities of those found by words."""

    similarities: dict[int, float]
    as_of: int
    is_complete: bool
    embedded_here: int
    model: str
    of_words: dict[int, float]


class Finder:
    """The searches of one cache. Thread-safe."""

    def __init__(self, reader: Reader, searching: Searching, words: WordSearching) -> None:
        self._reader, self._searching, self._words = reader, searching, words

    def find(self, request: SearchRequest) -> Hits[Any]:
        """The best `k` events; see `Cache.search`."""
        if request.mode == "meaning":
            found = self._meaning(request, request.query, request.k, None, [])
            hits = (Hit(*pair) for pair in found.similarities.items())
            return Hits(hits, found.as_of, found.is_complete, found.embedded_here, found.model)
        assert request.words is not None
        words = self._words.search(request.words)
        depth = request.k if request.mode == "words" else max(limits.FUSED_DEPTH, 2 * request.k)
        by_words = self._by_words(request, words, depth)
        if request.mode == "words":
            return self._of_words(by_words, words, None)
        try:
            # Without words there is only what is excluded.
            text = request.words.text.strip() or str(request.query)
            meaning = self._meaning(request, text, depth, words, by_words)
        except _NO_MEANING as error:
            if request.mode == "hybrid" or request.model is not None or self._is_mistaken(error):
                raise
            return self._of_words(by_words[: request.k], words, str(error))
        return self._fused(request, by_words, words, meaning)

    def _is_mistaken(self, error: Exception) -> bool:
        """Whether this process was told to use a model that does not exist; a daemon's may just be missing here."""
        return isinstance(error, UnknownModelError) and self._searching.names_default

    def _by_words(self, request: SearchRequest, words: WordsFound, count: int) -> list[int]:
        ids: Iterable[int] = words.ranking.scores
        if request.scope is not None:
            scope = set(request.scope.tolist())
            ids = (one for one in ids if one in scope)
        if request.mode != "words" and request.wanted.is_open and not request.wanted.is_distinct:
            # Only the best of the fused ranking are looked up in the log.
            return list(islice(ids, count))
        return Selection(self._reader, request.wanted).first(ids, count)

    @staticmethod
    def _of_words(ids: list[int], words: WordsFound, problem: str | None) -> Hits[Match]:
        hits = (Match(event_id, None, words.ranking.scores[event_id], "words") for event_id in ids)
        return Hits(hits, words.as_of, words.is_complete, 0, "", "words", words.indexed_here, problem)

    def _meaning(
        self, request: SearchRequest, query: Query, count: int, words: WordsFound | None, by_words: list[int]
    ) -> _Meaning:
        """The `count` events nearest to the query that pass all filters: exactly those, however rare they are; and how
        similar those are that were found by words.
        """
        selection, scope, until = Selection(self._reader, request.wanted), request.scope, None
        is_open = request.wanted.is_open and not request.wanted.is_distinct
        if words is not None:
            is_open = is_open and not words.ranking.excluded
            if words.ranking.allowed is not None:
                allowed = np.array(sorted(words.ranking.allowed), np.int64)
                scope = allowed if scope is None else np.intersect1d(scope, allowed)
        k = count if is_open else 2 * count
        others: NDArray[np.int64] | None = np.array(sorted(by_words), np.int64) if by_words else None
        known: dict[int, float] = {}
        while True:
            hits, compared = self._searching.compared(query, k, scope, request.model, others)
            known, others = known or compared, None
            similarities = {hit.event_id: hit.similarity for hit in hits}
            if not is_open:
                ranking = [one for one in similarities if words is None or words.ranking.admits(one)]
                similarities = {one: similarities[one] for one in selection.first(ranking, count)}
            if len(similarities) >= count or len(hits) < k:
                break
            if until is None and not request.wanted.is_open and k >= limits.FILTER_DEPTH * count:
                # Few events pass: search among those that do.
                ids, until = selection.all()
                passing = np.array(ids, np.int64)
                scope = passing if scope is None else np.intersect1d(scope, passing)
            else:
                k *= 8
        as_of = hits.as_of if until is None else min(hits.as_of, until)
        return _Meaning(similarities, as_of, hits.is_complete, hits.embedded_here, hits.model, known)

    def _fused(self, request: SearchRequest, by_words: list[int], words: WordsFound, meaning: _Meaning) -> Hits[Match]:
        by_meaning = list(meaning.similarities)
        scores = _fused_scores(by_words, by_meaning, words.ranking)
        leading: set[int] = set()
        if meaning.model == local_bow.NAME:
            # It knows words only, and less well.
            leading = set(by_words)
        elif request.mode == "auto":
            leading = words.ranking.leading & set(by_words)
        ranking = [event_id for event_id in by_words if event_id in leading]
        others = (event_id for event_id in scores if event_id not in leading)
        ranking += sorted(others, key=lambda event_id: (-scores[event_id], event_id))
        bests = dict.fromkeys(ids[0] for ids in (by_words, by_meaning) if ids)
        chosen = Selection(self._reader, request.wanted).first(_with_bests(ranking, list(bests)), request.k)
        similarities = {**meaning.of_words, **meaning.similarities}
        is_of_words, is_of_meaning = set(by_words), meaning.similarities.keys()
        hits = []
        for event_id in chosen:
            found_by: FoundBy = "words" if event_id in is_of_words else "meaning"
            if event_id in is_of_words and event_id in is_of_meaning:
                found_by = "both"
            word_score = words.ranking.scores.get(event_id)
            hits.append(Match(event_id, similarities.get(event_id), word_score, found_by))
        as_of = min(words.as_of, meaning.as_of)
        is_complete = words.is_complete and meaning.is_complete
        return Hits(hits, as_of, is_complete, meaning.embedded_here, meaning.model, request.mode, words.indexed_here)


def _fused_scores(by_words: list[int], by_meaning: list[int], ranking: Ranking) -> dict[int, float]:
    """Event id to score: the weight of the event in each ranking, divided by a constant plus its rank there."""
    scores = {event_id: 1.0 / (limits.FUSION_CONSTANT + rank) for rank, event_id in enumerate(by_meaning, 1)}
    for rank, event_id in enumerate(by_words, 1):
        # Of a question in other words, a text often holds a word or two, and says something else.
        weight = limits.WORDS_WEIGHT * ranking.share(event_id) ** limits.WORDS_POWER
        scores[event_id] = scores.get(event_id, 0.0) + weight / (limits.FUSION_CONSTANT + rank)
    return scores


def _with_bests(ranking: list[int], bests: list[int]) -> list[int]:
    """The same ranking, in which the best of each search are among the first `limits.BESTS_WITHIN`."""
    place = limits.BESTS_WITHIN
    head, tail = ranking[:place], ranking[place:]
    late = [event_id for event_id in bests if event_id not in head]
    kept = [event_id for event_id in head if event_id in bests]
    others = [event_id for event_id in head if event_id not in bests]
    room = place - len(late) - len(kept)
    moved = others[room:] if late else []
    head = [event_id for event_id in head if event_id not in moved] + late
    return [*head, *moved, *(event_id for event_id in tail if event_id not in late)]
