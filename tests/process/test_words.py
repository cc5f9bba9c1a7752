"""Search by words without a daemon: the set and the scores are those of a scan; any text is a query."""

from __future__ import annotations

import gc
import json
import math
import pickle
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unicodedata import category, normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm import limits
from pmm_shm.errors import ConfigError, EmbedderError, InvalidTextError, UnknownModelError
from pmm_shm.ledger.rows import Event
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm.vectors.question import question_text
from pmm_shm.words.query import WordQuery, prepared
from pmm_shm.words.ranking import Ranking, ranked
from pmm_shm.words.table import WordTable
from pmm_shm_client import Cache, EventLog, connect
from pmm_shm_client.event_filter import spelled_alike
from tests.support import words
from tests.support.profiles import examples

WORDS = ("alpha", "Beta", "café", "CAFE", "INV-2291", "inv-2292", "2291", "東京都に行く", "京都", "over_all", "naïve.")
Texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=0, max_size=6).map(" ".join), min_size=1, max_size=12)


def table_of(texts: list[tuple[int, str]]) -> WordTable:
    table = WordTable(sqlite3.connect(":memory:", isolation_level=None))
    table.make()
    table.handle.execute("BEGIN")
    table.add(texts)
    table.handle.execute("COMMIT")
    return table


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with EventLog(tmp_path / "l.db") as opened:
        yield opened


@pytest.fixture
def cache(log: EventLog) -> Iterator[Cache]:
    with connect(log.path) as opened:
        yield opened


def told_by(ranking: Ranking) -> tuple[object, ...]:
    """All that a ranking tells, in its order."""
    return list(ranking.best().items()), ranking.query_weight, ranking.allowed, ranking.excluded, ranking.leading


def ids(found: object) -> list[int]:
    return [hit.event_id for hit in found]  # type: ignore[attr-defined]


@settings(max_examples=examples(60), deadline=None)
@given(Texts, st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True))
def test_the_set_and_the_scores_are_those_of_a_scan(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], items: list[str]
) -> None:
    path = str(tmp_path_factory.mktemp("scan") / "l.db")
    with EventLog(path) as log:
        log.append_many([("user", text, None) for text in texts] + [("metrics_turn", " ".join(items), None)])
    with connect(path) as cache:
        found = cache.search(" ".join(items), k=100, mode="words")
    distinct = {item.expression: text for text in items for item in WordQuery.of(text).items}
    # Twelve texts have no common words.
    expected = words.scan(path, list(distinct.values()))
    assert {hit.event_id for hit in found} == expected.keys()
    for hit in found:
        assert hit.word_score is not None
        assert math.isclose(hit.word_score, expected[hit.event_id], rel_tol=1e-9)
    assert ids(found) == sorted(ids(found), key=lambda one: (-(found_score(found, one)), one))
    assert (found.is_complete, found.as_of, found.indexed_here) == (True, len(texts) + 1, len(texts))


def found_score(found: object, event_id: int) -> float:
    return next(hit.word_score for hit in found if hit.event_id == event_id)  # type: ignore[attr-defined]


@settings(max_examples=examples(60), deadline=None)
@given(Texts, st.integers(0, 12), st.lists(st.sampled_from((*WORDS, '"alpha beta"', "-café")), min_size=1, max_size=4))
def test_the_ranking_does_not_depend_on_which_table_has_an_event(texts: list[str], cut: int, items: list[str]) -> None:
    rows = list(enumerate(texts, 1))
    query = WordQuery.of(" ".join(items))
    assert told_by(ranked([table_of(rows[:cut]), table_of(rows[cut:])], query)) == told_by(
        ranked([table_of(rows)], query)
    )


@given(st.text(max_size=40))
@settings(max_examples=examples(150), deadline=None)
def test_any_text_is_a_query(text: str) -> None:
    for query in (WordQuery.of(text), WordQuery.of(text, is_message=True)):
        assert set(ranked([table_of([(1, text), (2, "alpha")])], query).best()) <= {1, 2}


@pytest.mark.parametrize(
    "query", ['a"b', '"', '""', "NOT x", "x OR (", "text:x", "a*", "^a", "{a}", "-", "--", "a\0b", "\ud800"]
)
def test_nothing_is_syntax(query: str) -> None:
    table = table_of([(1, "a b x text or not"), (2, "y")])
    assert set(ranked([table], WordQuery.of(query)).best()) <= {1}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("INV-2291", [1]),
        ("inv-2291", [1]),
        ("INV 2291", [1, 2]),
        ('"inv 2291" about', [1]),
        ('"about the inv"', [1]),
        ('"the about"', []),
        ("invoice -2291", []),
        ("about -inv-2291", [2]),
        ('about -"the inv"', [2]),
        ("cafe", [3]),
        ("CAFÉ", [3]),
        ("東京", [4]),
        ("京都", [4, 5]),
        ("行", [4]),
        ("く", [4]),
        ("東京都に行く。", [4]),
        ("都大", [5]),
        ("第3回", [6]),
        ("3回", [6]),
    ],
)
def test_the_query_language(query: str, found: list[int]) -> None:
    table = table_of(
        [
            (1, "about the INV-2291"),
            (2, "about INV-2292"),
            (3, "a Café"),
            (4, "東京都に行く"),
            (5, "京都大学"),
            (6, "第3回目です"),
        ]
    )
    assert sorted(ranked([table], WordQuery.of(query)).best()) == found


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        ("Αθήνα", ["ΑΘΗΝΑ", "αθηνα", "Αθη\u0301να"]),  # noqa: RUF001
        ("ὁδός", ["ΟΔΌΣ", "οδοσ"]),
        ("Ёлка, Йод", ["елка", "ёлка", "И\u0306ОД"]),  # noqa: RUF001
        ("Straße am See", ["STRASSE", "strasse", '"straße am"']),
        ("ﬁsh № ５", ["FISH", "5", "fish"]),  # noqa: RUF001
        ("ＡＢＣ株式会社", ["ABC株式会社", "abc株式", "株式会社"]),
        ("ﾊﾞﾅﾅ", ["バナナ", "ハ\u3099ナ", "ナナ"]),
        ("한글", ["\u1112\u1161\u11ab\u1100\u1173\u11af", "글"]),
        ("İstanbul", ["istanbul", "ISTANBUL"]),
        ("＂quoted＂", ["quoted", '"＂quoted＂"']),  # noqa: RUF001
        ("all done🥳now", ["done", "done🥳", "now", '"done now"', "done🫡"]),
        ("it cost 500₽ by \u2068Eve\u2069", ["500", "500₽", "eve", '"by eve"']),
        ("❶②\u2b50", ["❶2", "❶②🫡"]),
        ("e" + "\u0f72\u0f71" * 50 + "nd", ["e" + "\u0f71\u0f72" * 60 + "nd"]),
        ("หนังสือภาษาไทย", ["หนังสือ", "ภาษา", "ไทย", "ไทย!", '"ภาษาไทย"', "ส"]),
        ("ភាសាខ្មែរ", ["ភាសា", "ខ្មែរ"]),
        ("हिन्दी की किताब", ["हिन्दी", "हिन्दी।", "किताब", '"की किताब"']),
        ("நல்ல தமிழ்", ["தமிழ்", "தமிழ்."]),
        ("שָׁלוֹם", ["שלום"]),
        ("كَتَبَ", ["كتب"]),
        ("I \u2764\ufe0f tea", ["i \u2764", '"i tea"']),
        ("all done\uf00c", ["done\uf00c", "all"]),
    ],
)
def test_the_spelling_of_a_character_does_not_count(text: str, queries: list[str]) -> None:
    for query in [text, *queries]:
        assert set(ranked([table_of([(1, text), (2, "other")])], WordQuery.of(query)).best()) == {1}, query


def test_no_sign_belongs_to_a_word() -> None:
    """Nor does one that Python's tables have and those of SQLite's tokenisers have not."""
    signs = [sign for sign in map(chr, range(0x80, 0x110000)) if category(sign)[0] in "PSZ" or category(sign) == "Cf"]
    # Emoji of a later Unicode than Python's.
    signs += [sign for sign in map(chr, range(0x1F000, 0x1FC00)) if category(sign) == "Cn"]
    # Some mean letters: ™ is found as TM.
    signs = [sign for sign in signs if not any(map(str.isalnum, normalize("NFKD", sign)))]
    table = table_of([(event_id, f"tea{sign}") for event_id, sign in enumerate(signs, 1)])
    found = {row[0] for row in table.handle.execute("SELECT rowid FROM words WHERE words MATCH 'tea'")}
    assert [sign for event_id, sign in enumerate(signs, 1) if event_id not in found] == []


@pytest.mark.parametrize(
    ("text", "queries"),
    [("हिन्दी", ["हनद", "हिन्द", "हान्दा"]), ("தமிழ்", ["தமழ", "தமி"]), ("หนังสือ", ["หนงสอ", "หนู"]), ("नीला", ["नल"])],
)
def test_vowels_that_are_marks_count(text: str, queries: list[str]) -> None:
    for query in queries:
        assert len(ranked([table_of([(1, text), (2, "other")])], WordQuery.of(query))) == 0, query


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u05b4\u0591", "\uff9e\u064e"])
def test_a_long_run_of_marks_takes_no_time(marks: str) -> None:
    began = time.process_time()
    prepared("e" + marks * 100_000)
    assert time.process_time() - began < 5.0


def test_the_lowest_and_the_highest_id() -> None:
    rows = [(-(1 << 63), "alpha"), (0, "alpha beta"), ((1 << 63) - 1, "beta")]
    table = table_of(rows)
    for query, found in (("alpha", rows[:2]), ("beta", rows[1:])) * 2:
        assert set(ranked([table], WordQuery.of(query)).best()) == {event_id for event_id, _ in found}


def test_a_message_is_no_query() -> None:
    query = WordQuery.of('- "buy milk" -5', is_message=True)
    assert (query.excluded, [item.is_phrase for item in query.items]) == ([], [False] * 3)


def test_common_words_are_left_out_and_searched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of([(number, f"the word{number} is") for number in range(1, 401)])
    assert list(ranked([table], WordQuery.of("the word7")).best()) == [7]
    assert len(ranked([table], WordQuery.of("the")).best()) == 400
    monkeypatch.setattr(limits, "KEPT_EVENTS_MAX", 2)
    # The rarest are kept, as many as are in so many events together.
    assert list(ranked([table], WordQuery.of("word1 word2 word3")).best()) == [1, 2]
    monkeypatch.setattr(limits, "COMMON_EVENTS_MAX", 40)
    # Of common words alone the rarest is searched, in the newest events.
    assert list(ranked([table_of([(n, "the is") for n in range(500, 600)]), table], WordQuery.of("the is")).best()) == [
        *range(560, 600)
    ]


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(Texts, min_size=1, max_size=6), st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), st.data())
def test_what_is_remembered_of_a_table_changes_no_ranking(
    parts: list[list[str]], queries: list[str], data: st.DataObject
) -> None:
    kept, other, event_id = table_of([]), table_of([(10_000, "alpha 2291")]), 0
    with pytest.MonkeyPatch.context() as patches:
        # Everything is common, and little is remembered.
        for name, value in (("COMMON_EVENTS_MIN", 1), ("WORDS_KEPT", 3), ("WORD_COUNTS_KEPT", 2)):
            patches.setattr(limits, name, value)
        for part in parts:
            patches.setattr(limits, "COMMON_EVENTS_MAX", data.draw(st.integers(1, 4)))
            kept.add([(event_id + place, text) for place, text in enumerate(part, 1)])
            event_id += len(part)
            for text in [*queries, " ".join(queries)]:
                query = WordQuery.of(text)
                anew = ranked([WordTable(kept.handle), other], query)
                assert told_by(ranked([kept, other], query)) == told_by(anew)


@settings(max_examples=examples(60), deadline=None)
@given(st.dictionaries(st.integers(0, 999), st.integers(1, 9)), st.integers(1, 12), st.lists(st.integers(0, 1_100)))
def test_a_ranking_is_sorted_as_far_as_it_is_asked_for(scored: dict[int, int], count: int, asked: list[int]) -> None:
    ascending = sorted(scored)
    ranking = Ranking(
        np.array(ascending, np.int64), np.array([scored[one] for one in ascending], float), 1.0, None, set(), set()
    )
    wanted = sorted(scored, key=lambda one: (-scored[one], one))
    assert (list(ranking), list(ranking.best()), list(ranking.best(count))) == (wanted, wanted, wanted[:count])
    assert ranking.best(count) == {one: float(scored[one]) for one in wanted[:count]}
    assert ranking.scores(asked) == [scored.get(one) for one in asked]
    within = ranking.within(np.unique(np.array(asked, np.int64)))
    assert list(within) == [one for one in wanted if one in asked]


def test_a_long_ranking_is_told_to_its_end() -> None:
    values = np.random.default_rng(5).integers(1, 9, 1_500).astype(float)
    ranking = Ranking(np.arange(1_500), values, 1.0, None, set(), set())
    assert list(ranking) == list(ranking.best()) == sorted(range(1_500), key=lambda one: (-values[one], one))


def test_the_texts_of_a_commitment_and_of_other_kinds(log: EventLog, cache: Cache) -> None:
    log.append("commitment_open", "COMMIT: call her", {"cid": "c1", "text": "telephone Ana"})
    log.append("metrics_turn", "telephone", {})
    log.append("reflection", "telephone", {"text": 7})
    assert ids(cache.search("telephone", mode="words")) == [3, 1]


def test_each_append_is_found_at_once_and_a_replaced_one_is_not(log: EventLog, cache: Cache) -> None:
    for number in range(1, 30):
        assert log.append("user", f"number n{number}", {}) == number
        found = cache.search(f"n{number}", mode="words")
        assert (ids(found), found.is_complete, found.as_of) == ([number], True, number)


def test_without_an_index_the_newest_are_searched(log: EventLog, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORD_EVENTS_MAX", 50)
    log.append_many([("user", f"n{number}", None) for number in range(1, 4_001)])
    found = cache.search("n4000", mode="words")
    assert (ids(found), found.is_complete, found.as_of) == ([4_000], False, 0)
    assert ids(cache.search("n3", mode="words")) == []
    log.append_many([("user", f"m{number}", None) for number in range(1, 130)])
    assert ids(cache.search("m129 n3900", mode="words")) == [4_129]
    assert ids(cache.search("m90", mode="words")) == [4_090]


# Filters, and both searches together.


@pytest.fixture
def told(log: EventLog, cache: Cache) -> Cache:
    """Messages of two roles and reflections at known times."""
    for number in range(1, 61):
        kind = ("user", "response", "reflection")[number % 3]
        log.append(kind, f"The garden, {('plan', 'Plan!', 'rest')[number % 2]} number{number % 20}.", {})
    return cache


@pytest.mark.parametrize("depth", [0, 100])
@pytest.mark.parametrize("mode", ["meaning", "words", "hybrid", "auto"])
@pytest.mark.parametrize(
    "options",
    [
        {"kinds": ["reflection"]},
        {"roles": ["user"]},
        {"roles": ["assistant"], "since": 10, "until": 40},
        {"kinds": ["user", "reflection"], "until": 3},
        {"kinds": ["no such kind"]},
        {"scope": [1, 5, 9, 12], "roles": ["user", "assistant"]},
        {"since": "2020-01-01", "until": "2999-12-31T00:00:00+02:00"},
        {"until": "2020-01-01"},
    ],
    ids=str,
)
def test_a_filtered_search_is_a_filtered_ranking(
    told: Cache, mode: str, options: dict[str, object], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FILTER_DEPTH", depth)
    search = told.search
    whole = search("garden plan", k=10_000, mode=mode if mode in ("meaning", "words") else "words")  # type: ignore[call-overload]
    found = search("garden plan", k=7, mode=mode, **options)  # type: ignore[call-overload]
    events = {event.id: event for event in told.events(limit=None)}
    if mode in ("meaning", "words"):
        wanted = [hit.event_id for hit in whole if passes(events[hit.event_id], options)]
        assert ids(found) == wanted[:7]
    else:
        passing = [one for one, event in events.items() if passes(event, options)]
        assert ids(found) == ids(search("garden plan", k=7, mode=mode, scope=passing))  # type: ignore[call-overload]
        assert set(ids(found)) <= set(passing)
        assert len(found) == min(7, len(passing))


def passes(event: Event, options: dict[str, object]) -> bool:
    kinds: set[str] = set(options.get("kinds", ("user", "response", "reflection")))  # type: ignore[call-overload]
    if "roles" in options:
        roles = {"user": "user", "response": "assistant"}
        kinds &= {kind for kind, role in roles.items() if role in options["roles"]}  # type: ignore[operator]
    since, until = options.get("since", 0), options.get("until", 60)
    first = since if isinstance(since, int) else 0
    last = until if isinstance(until, int) else 0 if str(until) < "2021" else 60
    return event.kind in kinds and first < event.id <= last and event.id in options.get("scope", [event.id])  # type: ignore[operator]


@pytest.mark.parametrize("mode", ["meaning", "words", "hybrid", "auto"])
def test_equal_texts_collapse(told: Cache, mode: str) -> None:
    found = told.recall("garden", k=50, mode=mode, distinct=True)  # type: ignore[call-overload]
    spelled = ["".join(filter(str.isalnum, hit.event["content"].casefold())) for hit in found]
    assert len(spelled) == len(set(spelled)) == 20
    assert len(told.search("garden", k=50, mode=mode)) == 50  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("one", "other", "are_alike"),
    [
        ("Dinner at eight.", "dinner, at  EIGHT!", True),
        ("`dinner` at_eight", "Dinner at eight", True),
        ("dinner at the caf\u00e9", "dinner at the cafe\u0301", True),
        ("dinner \U0001f44d", "dinner \U0001f44e", False),
        ("dinner \u0915\u0940", "dinner \u0915\u093e", False),
        ("dinner in C", "dinner in C++", False),
    ],
)
def test_texts_that_differ_in_more_than_case_and_punctuation_stay(
    ledger: str, one: str, other: str, are_alike: bool
) -> None:
    with EventLog(ledger) as log:
        log.append_many([("user", one, None), ("user", other, None)])
    with connect(ledger) as cache:
        assert len(cache.search("dinner", mode="words", distinct=True)) == (1 if are_alike else 2)


def apart(texts: list[str]) -> list[list[float]]:
    """Vectors that have nothing to do with the words of a text."""
    return [np.random.default_rng([*map(ord, text)]).normal(size=4).tolist() for text in texts]


@pytest.mark.parametrize(
    "embedder", ["local-bow", "wordllama", FunctionEmbedder("apart", 4, apart)], ids=["local-bow", "wordllama", "apart"]
)
@settings(max_examples=examples(60), deadline=None)
@given(
    Texts,
    st.lists(st.sampled_from((*WORDS, '"alpha"', "-café")), min_size=1, max_size=3),
    # A hit by words that holds little of the query comes late in the fused ranking.
    st.integers(0, 9),
    st.integers(1, 6),
    st.sampled_from([{}, {"kinds": ["user"]}, {"roles": ["user"], "since": 2}, {"until": 9}, {"scope": [1, 2, 4, 8]}]),
    st.booleans(),
)
def test_a_fused_search_has_the_best_of_both(
    tmp_path_factory: pytest.TempPathFactory,
    embedder: Any,
    texts: list[str],
    items: list[str],
    unknown: int,
    k: int,
    options: dict[str, Any],
    distinct: bool,
) -> None:
    query = " ".join([*items, *(f"unknown{'x' * number}" for number in range(unknown))])
    path = str(tmp_path_factory.mktemp("fused") / "l.db")
    with EventLog(path) as log:
        log.append_many([(("user", "response")[at % 2], text, None) for at, text in enumerate(texts)])
    asked = WordQuery.of(query)
    text = asked.text.strip() or query
    if embedder == "wordllama":
        text = question_text(text, is_dated=False)
    phrases, excluded = ('"alpha"' in query, "-café" in query)

    def is_admitted(event_id: int) -> bool:
        content = texts[event_id - 1]
        return not (excluded and words.times_in("café", content)) and (words.times_in("alpha", content) or not phrases)

    with connect(path, embedder=embedder) as cache:
        by_words = cache.search(query, 100, mode="words", **options)
        by_meaning = [one for one in cache.search(text, 100, **options) if is_admitted(one.event_id)]
        word_scores = {one.event_id: one.word_score for one in cache.search(query, 100, mode="words")}
        similarities = {one.event_id: one.similarity for one in cache.search(text, 100)}
        bests = {hits[0].event_id for hits in (by_words, by_meaning) if hits}
        for mode in ("hybrid", "auto"):
            found = cache.search(query, k, mode=mode, distinct=distinct, **options)  # type: ignore[call-overload]
            whole = cache.search(query, 50, mode=mode, distinct=distinct, **options)  # type: ignore[call-overload]
            assert set(ids(whole)) <= {one.event_id for one in (*by_words, *by_meaning)}
            first = ids(whole)[: limits.BESTS_WITHIN]
            if distinct:
                shown = {spelled_alike(texts[one - 1]) for one in first}
                assert {spelled_alike(texts[one - 1]) for one in bests} <= shown
            else:
                assert bests <= set(first)
            # Fewer hits are the first of more.
            assert ids(found) == ids(whole)[:k]
            for hit in found:
                assert hit.word_score == word_scores.get(hit.event_id)
                assert hit.similarity == similarities.get(hit.event_id)


@settings(max_examples=examples(60), deadline=None)
@given(
    Texts,
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
    st.sampled_from(["hybrid", "auto"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_each_hit_of_a_fused_search_says_how_near_it_is(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], query: str, mode: Any, k: int, distinct: bool
) -> None:
    """However few hits of each search are fused: also of those that only the words found."""
    path = str(tmp_path_factory.mktemp("near") / "l.db")
    with EventLog(path) as log:
        log.append_many([("user", text, None) for text in texts])
    embedder = FunctionEmbedder("by-length", 2, lambda batch: [[1.0, len(text) % 7] for text in batch])
    with connect(path, embedder=embedder) as cache, pytest.MonkeyPatch.context() as patches:
        patches.setattr(limits, "FUSED_DEPTH", 2)
        # Some words are common, so that a search by words finds few.
        patches.setattr(limits, "COMMON_EVENTS_MIN", 2)
        near = {one.event_id: one.similarity for one in cache.search(query, 100)}
        by_words = [one.event_id for one in cache.search(query, 100, mode="words", distinct=distinct)]
        found = cache.search(query, k, mode=mode, distinct=distinct)
        assert [hit.similarity for hit in found] == [near.get(hit.event_id) for hit in found]
        scores = {one.event_id: one.word_score for one in cache.search(query, 100, mode="words")}
        assert [hit.word_score for hit in found] == [scores.get(hit.event_id) for hit in found]
        if k > 1 and not distinct:
            assert {*list(near)[:1]} <= set(ids(found))
        first = set(by_words[: max(2, 2 * k)])
        assert {hit.event_id for hit in found if hit.found_by != "meaning"} <= first
        of_words = [hit.event_id for hit in found if hit.found_by == "words"]
        if mode == "hybrid" and by_words and by_words[0] not in of_words:
            assert of_words == [one for one in by_words if one in of_words]


def test_a_leading_hit_behind_better_ones_says_how_near_it_is(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FUSED_DEPTH", 2)
    query = "kiwi plum 2291"
    log.append_many(
        [("user", text, None) for text in ("kiwi plum", "2291 is what we meant", "2291 is late", *["filler"] * 20)]
    )
    near = {query: [1.0, 0.0], "filler": [1.0, 0.0]}
    embedder = FunctionEmbedder("near-fillers", 2, lambda texts: [near.get(text, [0.0, 1.0]) for text in texts])
    with connect(log.path, embedder=embedder) as cache:
        assert ids(cache.search(query, 2, mode="words")) == [1, 3]
        (hit,) = cache.search(query, 1, mode="auto")
        assert (hit.event_id, hit.similarity, hit.found_by) == (3, 0.0, "words")


def test_the_nearest_hit_has_its_score_by_words_however_late_it_is_there(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FUSED_DEPTH", 2)
    texts = ["kiwi" + " and more" * number for number in range(1, 10)]
    log.append_many([("user", text, None) for text in texts])
    near = {"kiwi": [1.0, 0.0], texts[-1]: [1.0, 0.0]}
    embedder = FunctionEmbedder("near-last", 2, lambda batch: [near.get(text, [0.0, 1.0]) for text in batch])
    with connect(log.path, embedder=embedder) as cache:
        by_words = cache.search("kiwi", 9, mode="words")
        assert ids(by_words)[-1] == 9
        hits = {hit.event_id: hit for hit in cache.search("kiwi", 3, mode="hybrid")}
        assert (hits[9].word_score, hits[9].found_by) == (by_words[-1].word_score, "meaning")


@pytest.mark.parametrize("mode", ["meaning", "auto"])
def test_a_date_is_a_whole_day(log: EventLog, cache: Cache, mode: str) -> None:
    times = ("2026-01-30T23:59:59.999999Z", "2026-01-31T00:00:00+00:00", "2026-01-31T23:59:59.999999+00:00")
    with closing(sqlite3.connect(cache.path)) as handle, handle:
        for ts in (*times, "2026-02-01T01:00:00+01:00"):
            handle.execute("INSERT INTO events (ts, kind, content, meta) VALUES (?, 'user', 'the boat', '{}')", (ts,))

    def found(**options: Any) -> list[int]:
        return sorted(ids(cache.search("boat", mode=mode, **options)))  # type: ignore[call-overload]

    assert found(since="2026-01-31", until="2026-01-31") == [2, 3]
    assert found(until="2026-01-31") == [1, 2, 3]
    assert found(until="2026-01-31T00:00:00Z") == [1, 2]
    assert found(since="2026-02-01") == [4]


def test_what_means_nothing_is_refused(told: Cache) -> None:
    for options in (
        {"mode": "best"},
        {"kinds": "user"},
        {"roles": ["system"]},
        {"since": "yesterday"},
        {"until": 1.5},
        {"since": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))},
        {"k": 0, "mode": "words"},
        {"scope": ["x"], "mode": "words"},
    ):
        with pytest.raises(ConfigError):
            told.search("garden", **options)  # type: ignore[call-overload]
    with pytest.raises(ConfigError):
        told.search([1.0] * 32, mode="words")
    with pytest.raises(InvalidTextError):
        told.search("", mode="words")


def test_auto_does_without_an_embedder_that_fails(told: Cache) -> None:
    def fail(_: list[str]) -> list[list[float]]:
        raise RuntimeError("the provider is down")

    with connect(told.path, embedder=FunctionEmbedder("failing", 3, fail)) as other:
        found = other.search("number3", mode="auto")
        assert found.problem is not None
        assert "the provider is down" in found.problem
        assert ids(found) == ids(told.search("number3", mode="words"))
        assert {hit.found_by for hit in found} == {"words"}
        with pytest.raises(EmbedderError):
            other.search("number3", mode="hybrid")
    with pytest.raises(UnknownModelError):
        told.search("number3", mode="auto", model="no-such-model")


def test_results_go_elsewhere(told: Cache) -> None:
    found = told.recall("number3", mode="auto")
    assert pickle.loads(pickle.dumps(found)) == found
    assert pickle.loads(pickle.dumps(found)).mode == "auto"
    assert json.loads(found.to_json())["hits"][0]["found_by"] == "both"


def test_a_closed_cache_leaves_no_database_open(log: EventLog) -> None:
    """From Python 3.13 on, a database that nobody has closed is warned of."""
    log.append("user", "alpha")
    gc.collect()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with connect(log.path) as cache:
            assert [hit.event_id for hit in cache.search("alpha", mode="words")] == [1]
            log.append("user", "alpha again")
            assert len(cache.search("alpha", mode="words")) == 2
        gc.collect()
    assert not [str(one.message) for one in told if issubclass(one.category, ResourceWarning)]
