"""One search by meaning and by words: the two rankings, filtered, and fused into one.

Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): an event scores weight / (60 + rank) in each ranking
that has it among its first ones. So the two kinds of scores need not be comparable. The weight of an event found by
words depends on how much of the query it holds. In the ranking by meaning, events that are close to many others come
later (`pmm_shm.vectors.crowding`), and the user's messages come earlier if the query says `I` or `my`. With `wordllama`
those come earlier, too, whose words match those of the query (`pmm_shm.vectors.word_match`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from time import monotonic
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
from pmm_shm.vectors import local_bow, wordllama
from pmm_shm.vectors.crowding import uncrowded
from pmm_shm.vectors.question import is_about_asker, telling_words, undated
from pmm_shm.vectors.word_match import word_matches, words_of
from pmm_shm.words.query import WordQuery
from pmm_shm.words.ranking import Ranking
from pmm_shm_client.event_filter import KINDS_OF_ROLE, EventFilter, Moment, Selection
from pmm_shm_client.hits import FoundBy, Hit, Hits, Match
from pmm_shm_client.reader import Reader
from pmm_shm_client.searching import Query, Searching, checked_k, checked_scope
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
    """The events nearest to a query, the best first; `of_words` has the similarities of those found by words.

    Attributes:
        ranking: the same events, those that are close to many others later, and those that answer the words earlier.
    """

    similarities: dict[int, float]
    ranking: list[int]
    as_of: int
    is_complete: bool
    embedded_here: int
    model: str
    of_words: dict[int, float]


class Finder:
    """The searches of one cache. Thread-safe."""

    def __init__(self, reader: Reader, searching: Searching, words: WordSearching) -> None:
        self._reader, self._searching, self._words = reader, searching, words

    def search(self, *arguments: Any, **options: Any) -> Hits[Any]:
        """The best `k` events; arguments as of `SearchRequest.of`, see `Cache.search`."""
        request = SearchRequest.of(*arguments, **options)
        # Its steps take the lock one by one.
        return self._reader.in_one_file(lambda: self._search(request))

    def _search(self, request: SearchRequest) -> Hits[Any]:
        if request.mode == "meaning":
            found = self._meaning(request, request.query, request.k, None, {})
            hits = (Hit(*pair) for pair in found.similarities.items())
            return Hits(hits, found.as_of, found.is_complete, found.embedded_here, found.model)
        assert request.words is not None
        words = self._words.search(request.words)
        depth = request.k if request.mode == "words" else max(limits.FUSED_DEPTH, 2 * request.k)
        by_words = self._by_words(request, words, depth)
        if request.mode == "words":
            return self._of_words(by_words, words, None)
        # Only where words can do instead, an embedder is not waited for as long as it takes.
        is_patient = request.mode == "hybrid" or request.model is not None
        deadline = None if is_patient else monotonic() + limits.SEARCH_EMBEDDER_S
        try:
            # Without words there is only what is excluded.
            text = request.words.text.strip() or str(request.query)
            meaning = self._meaning(request, text, depth, words, by_words, deadline)
        except _NO_MEANING as error:
            if is_patient or self._is_mistaken(error):
                raise
            return self._of_words(dict(islice(by_words.items(), request.k)), words, str(error))
        return self._fused(request, by_words, words, meaning)

    def _is_mistaken(self, error: Exception) -> bool:
        """Whether this process was told to use a model that does not exist; a daemon's may just be missing here."""
        return isinstance(error, UnknownModelError) and self._searching.names_default

    def _by_words(self, request: SearchRequest, words: WordsFound, count: int) -> dict[int, float]:
        """Event id to score of the `count` best by words."""
        ranking = words.ranking if request.scope is None else words.ranking.within(request.scope)
        if request.mode != "words" and request.wanted.admits_all:
            # Only the best of the fused ranking are looked up in the log.
            return ranking.best(count)
        chosen = Selection(self._reader, request.wanted).first(ranking, count)
        scored = zip(chosen, ranking.scores(chosen), strict=True)
        return {event_id: score for event_id, score in scored if score is not None}

    @staticmethod
    def _of_words(found: dict[int, float], words: WordsFound, problem: str | None) -> Hits[Match]:
        hits = (Match(event_id, None, score, "words") for event_id, score in found.items())
        return Hits(hits, words.as_of, words.is_complete, 0, "", "words", words.indexed_here, problem)

    def _meaning(
        self,
        request: SearchRequest,
        query: Query,
        count: int,
        words: WordsFound | None,
        by_words: Collection[int],
        deadline: float | None = None,
    ) -> _Meaning:
        """The `count` events nearest to the query that pass all filters: exactly those, however rare they are; and how
        similar those are that were found by words and may be among the hits.
        """
        selection, scope, until = Selection(self._reader, request.wanted), request.scope, None
        is_open, is_dated = request.wanted.admits_all, request.wanted.is_dated
        if words is not None:
            is_open = is_open and not words.ranking.excluded
            if words.ranking.allowed is not None:
                allowed = np.array(sorted(words.ranking.allowed), np.int64)
                scope = allowed if scope is None else np.intersect1d(scope, allowed)
        k = count if is_open else 2 * count
        others = [] if words is None else sorted(_shown_at_most(request, by_words, words.ranking))
        served = None if words is None else words.served
        known: dict[int, float] = {}
        while True:
            found = self._searching.nearest(
                query,
                k,
                scope,
                request.model,
                others,
                is_question=words is not None,
                is_dated=is_dated,
                served=served,
                deadline=deadline,
            )
            known.update(found.others)
            similarities, others = found.similarities, []
            if not is_open:
                known.update(similarities)
                ranking = [one for one in similarities if words is None or words.ranking.admits(one)]
                similarities = {one: similarities[one] for one in selection.first(ranking, count)}
            if len(similarities) >= count or len(found.similarities) < k:
                break
            if until is None and not request.wanted.is_open and k >= limits.FILTER_DEPTH * count:
                # Few events pass: search among those that do.
                ids, until = selection.all()
                passing = np.array(ids, np.int64)
                scope = passing if scope is None else np.intersect1d(scope, passing)
            else:
                k *= 8
        as_of = found.as_of if until is None else min(found.as_of, until)
        ranking = list(similarities)
        if words is not None and found.model != local_bow.NAME:
            vectors = found.vectors
            if len(ranking) < len(vectors):
                vectors = vectors[[event_id in similarities for event_id in found.similarities]]
            scores = np.array(list(similarities.values()))
            compared = ranking[: limits.CROWD_DEPTH]
            scores[: len(compared)] += _answering(selection, compared, str(query), found.model, is_dated)
            ranking = [ranking[at] for at in uncrowded(scores, vectors)]
        return _Meaning(similarities, ranking, as_of, found.is_complete, found.embedded_here, found.model, known)

    def _fused(
        self, request: SearchRequest, by_words: dict[int, float], words: WordsFound, meaning: _Meaning
    ) -> Hits[Match]:
        assert request.words is not None
        by_meaning = meaning.similarities
        ranking: Iterable[int]
        if meaning.model == local_bow.NAME:
            # It knows words only, and less well.
            ranking = chain(by_words, (event_id for event_id in by_meaning if event_id not in by_words))
        else:
            leading = words.ranking.leading if request.mode == "auto" else set()
            is_naming = any(item.is_named for item in request.words.items)
            ranking = _fused_ranking(by_words, meaning.ranking, leading, words.ranking, is_naming)
        bests = list(dict.fromkeys(next(iter(ids)) for ids in (by_words, by_meaning) if ids))
        ranking = _with_bests(ranking, bests, limits.BESTS_WITHIN)
        # If anything was found by words, the first of the bests is theirs.
        if by_words and words.ranking.share(by_words[bests[0]]) < limits.LEADING_SHARE_MIN:
            bests = list(islice(by_meaning, 1))
        ranking = _with_bests(ranking, bests, limits.LEADING_BESTS_WITHIN)
        chosen = Selection(self._reader, request.wanted).first(ranking, request.k)
        others = [event_id for event_id in chosen if event_id not in by_words]
        scores = by_words | dict(zip(others, words.ranking.scores(others), strict=True)) if others else by_words
        hits = []
        for event_id in chosen:
            found_by: FoundBy = "words" if event_id in by_words else "meaning"
            similarity = by_meaning.get(event_id)
            if similarity is None:
                similarity = meaning.of_words.get(event_id)
            elif found_by == "words":
                found_by = "both"
            hits.append(Match(event_id, similarity, scores[event_id], found_by))
        as_of = min(words.as_of, meaning.as_of)
        is_complete = words.is_complete and meaning.is_complete
        return Hits(hits, as_of, is_complete, meaning.embedded_here, meaning.model, request.mode, words.indexed_here)


def _answering(
    selection: Selection, ids: Sequence[int], question: str, model: str, is_dated: bool
) -> NDArray[np.float64]:
    """What is added to the similarities of some events, (n,): for words that match those of a question, and for being
    by the person that it is about.
    """
    question = question[: limits.MATCH_CHARS_MAX]
    scores, words = np.zeros(len(ids)), words_of(question)
    is_matched, is_personal = model == wordllama.NAME, is_about_asker(words)
    if not (is_matched or is_personal):
        return scores
    found = selection.kinds_and_texts(ids, limits.MATCH_CHARS_MAX if is_matched else 0)
    if is_matched:
        asked, texts = words_of(undated(question)) if is_dated else words, [text for _, text in found]
        scores += limits.MATCH_WEIGHT * word_matches(telling_words(asked), texts, wordllama.word_vectors)
    if is_personal:
        scores += limits.ASKER_WEIGHT * np.array([kind in KINDS_OF_ROLE["user"] for kind, _ in found])
    return scores


def _fused_ranking(
    by_words: dict[int, float],
    by_meaning: Iterable[int],
    leading: set[int],
    ranking: Ranking,
    is_naming: bool,
) -> list[int]:
    """The leading events in the order of the words, then the others by score: the weight of the event in each ranking,
    divided by a constant plus its rank there.

    Parameters:
        is_naming: the query has an identifier, a number or a phrase.
    """
    power = limits.NAMING_WORDS_POWER if is_naming else limits.WORDS_POWER
    first = limits.FUSION_CONSTANT + 1
    scores = {event_id: 1.0 / rank for rank, event_id in enumerate(by_meaning, first) if event_id not in leading}
    leaders = []
    for rank, (event_id, score) in enumerate(by_words.items(), first):
        if event_id in leading:
            leaders.append(event_id)
            continue
        # Of a question in other words, a text often holds a word or two, and says something else.
        weight = limits.WORDS_WEIGHT * ranking.share(score) ** power
        scores[event_id] = scores.get(event_id, 0.0) + weight / rank
    ids, values = np.array(list(scores), np.int64), np.array(list(scores.values()))
    others: list[int] = ids[np.lexsort((ids, -values))].tolist()
    return leaders + others


def _shown_at_most(request: SearchRequest, by_words: Collection[int], ranking: Ranking) -> set[int]:
    """Of the events found by words, all that may be hits without being near in meaning.

    Such events keep their order when they are fused, leading ones and others apart. So none behind the first `k` is
    among the hits. One before it that is left out for an equal text has that text among them.
    """
    leading = (event_id for event_id in by_words if event_id in ranking.leading)
    return {*islice(by_words, request.k), *islice(leading if request.mode == "auto" else (), request.k)}


def _with_bests(ranking: Iterable[int], bests: list[int], place: int) -> Iterator[int]:
    """The same ranking, in which the bests are among the first `place`."""
    tail = iter(ranking)
    head = list(islice(tail, place))
    late = [event_id for event_id in bests if event_id not in head]
    kept = [event_id for event_id in head if event_id in bests]
    others = [event_id for event_id in head if event_id not in bests]
    moved = others[place - len(late) - len(kept) :]
    yield from (event_id for event_id in head if event_id not in moved)
    yield from late
    yield from moved
    yield from (event_id for event_id in tail if event_id not in late)
