"""Near words and similar sets, against a comparison of all pairs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmm_shm_pmm import restructuring
from pmm_shm_pmm.near_words import NearWords
from pmm_shm_pmm.restructuring import similar_groups

_words = st.one_of(
    st.text("ab1", min_size=1, max_size=6),
    st.builds(lambda start, end: start * 11 + end, st.sampled_from(["abc", "abd"]), st.text("ab", max_size=3)),
)


def _distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@given(st.lists(_words, max_size=12), st.lists(_words, max_size=6), st.lists(_words, max_size=6))
def test_near_words_are_those_within_distance_one(first: list[str], second: list[str], others: list[str]) -> None:
    words = NearWords()
    words.add(first)
    words.add(second)
    known = {*first, *second}
    assert words.near(others) == {word for word in known if any(_distance(word, other) <= 1 for other in others)}
    assert len(words) == len(known)


@pytest.mark.parametrize("length", [31, 32, 33, 34])
def test_long_words_are_near_as_short_ones(length: int) -> None:
    word = "".join("abcdefghij"[place % 10] for place in range(length))
    words = NearWords()
    words.add([word])
    assert words.near([word, "a"]) == {word}
    for other in (word[:-1], word[1:], word + "x", "x" + word, word[:9] + "x" + word[10:], word[:9] + word[10:]):
        assert words.near([other]) == {word}, other
    for other in (word[:-2], word + "xx", "x" + word[:-2] + "x", word[1] + word[0] + word[2:]):
        assert words.near([other]) == set(), other


_sets = st.lists(st.frozensets(st.sampled_from("abcdefgh"), max_size=6), max_size=10)
_thresholds = st.one_of(
    st.sampled_from([0.9, 0.5, 1.0, 0.0, -1, 1, 1.1, 2 / 3, 1 / 3, 0.75, 0.2, math.nan, math.inf, 1e-12, 0.6]),
    st.floats(0.01, 1.0),
)


@given(_sets, _thresholds)
def test_groups_are_those_of_all_pairs(sets: list[frozenset[str]], threshold: float) -> None:
    taken: set[int] = set()
    groups = []
    for place, own in enumerate(sets):
        if place in taken:
            continue
        group = [place]
        for other in range(place + 1, len(sets)):
            if other not in taken:
                union = len(own | sets[other])
                if (len(own & sets[other]) / union if union else 1.0) >= threshold:
                    group.append(other)
        if len(group) > 1:
            taken.update(group)
            groups.append(group)
    assert list(similar_groups(sets, threshold)) == groups


def test_a_merge_of_many_compares_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    similarity = restructuring._similarity

    def counting(one: frozenset[str], other: frozenset[str]) -> float:
        nonlocal compared
        compared += 1
        return similarity(one, other)

    monkeypatch.setattr(restructuring, "_similarity", counting)
    sets = [frozenset((f"w{place}", f"v{place // 2}", *"abcdefgh")) for place in range(2_000)]
    assert list(similar_groups(sets, 0.9)) == []
    assert compared == 1_000
