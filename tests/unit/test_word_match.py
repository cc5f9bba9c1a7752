"""The match of words in a fused search, and which bests lead it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.vectors import wordllama
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm.vectors.question import is_about_asker, telling_words
from pmm_shm.vectors.word_match import word_matches, words_of
from pmm_shm.vectors.wordllama import WordLlama, _KeptWords, word_vectors
from pmm_shm_client import EventLog, connect
from tests.support.profiles import examples

WORDS = [f"word{number}" for number in range(16)]
Words = st.lists(st.sampled_from(WORDS), max_size=8)


def made(words: Sequence[str]) -> NDArray[np.float32]:
    """A vector of length 1 for each word, always the same."""
    rows = [np.random.default_rng(int(word[4:])).normal(size=6) for word in words]
    return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


def expected(asked: list[str], texts: list[list[str]]) -> list[float]:
    """By the definition in the module, word by word."""
    vectors = dict(zip(WORDS, made(WORDS).astype(np.float64), strict=True))
    every = {word for text in texts for word in text}

    def rarity(word: str) -> float:
        count = sum(word in text for text in texts)
        return max(0.01, math.log((len(texts) + 1) / (count + 0.5)) / math.log((len(texts) + 1) / 0.5))

    def match(word: str, other: str) -> float:
        near = sorted((vectors[word] @ vectors[one] for one in every), reverse=True)[: limits.MATCH_NEIGHBOURS]
        return rarity(other) * min(1.0, math.exp((vectors[word] @ vectors[other] - near[-1]) / limits.MATCH_FALL))

    total = sum(rarity(word) for word in asked)
    return [
        sum(rarity(word) * max((match(word, other) for other in text), default=0.0) for word in asked) / total
        for text in texts
    ]


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True), st.lists(Words, max_size=12))
def test_the_match_is_that_of_the_definition(asked: list[str], texts: list[list[str]]) -> None:
    found = word_matches(asked, [" ".join(text) for text in texts], made)
    assert found.tolist() == pytest.approx(expected(asked, texts), abs=1e-9)
    for one, text in enumerate(texts):
        # Exactly, because equal texts keep their order.
        assert all(found[one] == found[other] for other, same in enumerate(texts) if same == text)


def test_texts_without_words_match_nothing_and_long_ones_by_their_beginning() -> None:
    assert word_matches([], ["word1"], made).tolist() == [0.0]
    assert word_matches(["word1"], [], made).tolist() == []
    assert word_matches(["word1"], ["", "...", "word1"], made).tolist()[:2] == [0.0, 0.0]
    assert words_of("Don't say: DON'T") == ["don", "t", "say"]
    assert words_of("x" * limits.MATCH_CHARS_MAX + " word1") == ["x" * limits.MATCH_CHARS_MAX]


def test_the_words_of_a_question_that_tell_something() -> None:
    words = words_of("What did I book on 13 April?")
    assert telling_words(words) == ["i", "book", "on", "13", "april"]
    assert telling_words(["who", "is"]) == ["who", "is"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Where did I put my keys?", True),
        ("Is our cat ill", True),
        ("I'm looking for the ferry", True),
        ("What did you tell me about the ferry?", False),
        ("Who teaches at the school?", False),
        ("Mine, WE, us!", True),
        ("", False),
    ],
)
def test_a_question_about_who_asks_it(text: str, wanted: bool) -> None:
    assert is_about_asker(words_of(text)) is wanted


def test_the_vectors_of_words_have_length_one_and_know_their_like() -> None:
    lift, elevator, boss, strange = word_vectors(["lift", "elevator", "boss", "\ud800"])
    assert [float(row @ row) for row in (lift, strange)] == pytest.approx([1.0, 1.0])
    assert lift @ elevator > 0.4 > boss @ elevator


@given(
    st.lists(
        st.text(min_size=1, max_size=40).flatmap(lambda text: st.sampled_from(words_of(text) or ["a"])), min_size=1
    )
)
@settings(max_examples=examples(40), deadline=None)
def test_the_vector_of_a_word_depends_on_nothing_else(words: list[str]) -> None:
    together = word_vectors([*words, *(f"{word}{number}" for number, word in enumerate(words))])
    for word, vector in zip(words, together, strict=False):
        (alone,) = _KeptWords().of([word])
        assert np.array_equal(vector, alone)
        mean = WordLlama().embed([word])[0]
        assert np.allclose(alone, mean / np.linalg.norm(mean), atol=1e-6)


def test_the_vectors_of_more_words_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MATCH_VECTORS_KEPT", 4)
    kept = _KeptWords()
    names = ["lift", "elevator", "boss", "oak", "elm", "ash", "yew"]
    wanted = dict(zip(names, word_vectors(names), strict=True))
    for asked in (names[:3], names[2:5], names, names[5:], names[::-1], ["yew", "yew", "lift"], names[3:]):
        assert np.array_equal(kept.of(asked), np.array([wanted[name] for name in asked]))


def test_a_signal_handler_searches_in_the_midst_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    make = wordllama._made_vectors
    asked: list[list[str]] = [["lift", "elevator", "elm"], ["boss", "lift"]]
    answers: list[NDArray[np.float32]] = []

    def interrupted(words: Sequence[str]) -> NDArray[np.float32]:
        monkeypatch.setattr(wordllama, "_made_vectors", make)
        answers.append(word_vectors(asked[0]))
        return make(words)

    monkeypatch.setattr(wordllama, "_kept_words", _KeptWords())
    monkeypatch.setattr(wordllama, "_made_vectors", interrupted)
    search = threading.Thread(target=lambda: answers.append(word_vectors(asked[1])), daemon=True)
    search.start()
    search.join(20.0)
    assert not search.is_alive(), "it waits for itself"
    for words, found in zip(asked, answers, strict=True):
        assert np.array_equal(found, _KeptWords().of(words))
        assert np.array_equal(found, word_vectors(words))


def test_the_words_kept_are_those_asked_for_last(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = wordllama._made_vectors
    monkeypatch.setattr(wordllama, "_made_vectors", lambda words: made.extend(words) or make(words))
    monkeypatch.setattr(limits, "MATCH_VECTORS_KEPT", 4)
    kept = _KeptWords()
    for asked in (
        ["a", "b", "c"],
        ["b", "c", "d"],
        ["c", "e", "f"],
        ["f", "e", "c"],
        ["a", "b", "c", "d", "e"],
        ["a", "d"],
    ):
        kept.of(asked)
    assert made == ["a", "b", "c", "d", "e", "f", "a", "b", "d"]


Noted = st.lists(st.lists(st.sampled_from(["oak", "elm", "ash", "yew", "fir"]), max_size=4).map(" ".join), min_size=3)


@settings(max_examples=examples(30), deadline=None)
@given(Noted, st.lists(st.sampled_from(["oak", "elm", "ash", "pine", "box"]), min_size=1, max_size=4, unique=True))
def test_the_bests_are_among_the_first(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], asked: list[str]
) -> None:
    query = " ".join(asked)

    def apart(given_texts: list[str]) -> list[list[float]]:
        return [np.random.default_rng([*map(ord, text)]).normal(size=4).tolist() for text in given_texts]

    with EventLog(tmp_path_factory.mktemp("bests") / "l.db") as log:
        log.append_many([("user", text, None) for text in [*texts, "cedar"]])
    with connect(log.path, embedder=FunctionEmbedder("apart", 4, apart)) as cache:
        found = [hit.event_id for hit in cache.search(query, 3, mode="hybrid")]
        assert found == [hit.event_id for hit in cache.search(query, 3, mode="hybrid")]
        assert cache.search(query, 1)[0].event_id in found
        by_words = cache.search(query, 1, mode="words")
        if by_words:
            place = 3 if len(asked) == 1 else 5
            assert by_words[0].event_id in [hit.event_id for hit in cache.search(query, place, mode="hybrid")]


def test_a_best_by_words_with_little_of_the_query_does_not_lead(tmp_path: Path) -> None:
    texts = [f"note{number}" for number in range(40)]

    def by_number(asked: list[str]) -> list[tuple[float, ...]]:
        numbers = [int(text[4:]) if text in texts else 0 if text.startswith("note") else 60 for text in asked]
        return [(math.cos(number / 40), math.sin(number / 40)) for number in numbers]

    with EventLog(tmp_path / "l.db") as log:
        log.append_many([("user", text, None) for text in [*texts, "garden"]])
    with connect(log.path, embedder=FunctionEmbedder("by-number", 2, by_number)) as cache:

        def place(query: str) -> int:
            return [hit.event_id for hit in cache.search(query, 41, mode="hybrid")].index(41)

        # The only event with a word of the query holds half of it, or a fifth.
        assert place("note garden") < limits.LEADING_BESTS_WITHIN
        assert limits.LEADING_BESTS_WITHIN <= place("note garden lawn rake hoe") < limits.BESTS_WITHIN
