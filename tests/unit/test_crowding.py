"""The ranking by meaning in a fused search: events that are close to many others come later."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.vectors.crowding import uncrowded
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm_client import EventLog, connect
from tests.support.nearest import similarity
from tests.support.profiles import examples

# Small integers make equal rows and zero vectors; the scales make rows whose squares float32 cannot hold.
rows = st.integers(1, 5).flatmap(
    lambda dimension: st.lists(
        st.tuples(
            st.lists(st.integers(-3, 3).map(float), min_size=dimension, max_size=dimension),
            st.sampled_from([1.0, 2.0**100, 2.0**-100]),
        ),
        min_size=1,
        max_size=30,
    )
)


def expected(similarities: list[float], vectors: NDArray[Any]) -> list[float]:
    """The score of each row by the rule, every sum exact."""
    scores = []
    for at, row in enumerate(vectors):
        others = (similarity(row, other) for number, other in enumerate(vectors) if number != at)
        nearest = sorted(others, reverse=True)[: limits.CROWD_SIZE]
        crowding = math.fsum(nearest) / len(nearest) if nearest else 0.0
        scores.append(similarities[at] - limits.CROWD_WEIGHT * crowding)
    return scores


@settings(max_examples=examples(200), deadline=None)
@given(rows, st.data())
def test_the_order_is_that_of_the_rule(drawn: list[tuple[list[float], float]], data: st.DataObject) -> None:
    vectors = np.array([[x * scale for x in values] for values, scale in drawn], np.float32)
    some = st.lists(st.floats(-1, 1), min_size=len(vectors), max_size=len(vectors))
    similarities = sorted(data.draw(some), reverse=True)
    order = uncrowded(similarities, vectors)
    assert sorted(order) == list(range(len(vectors)))
    scores = expected(similarities, vectors)
    for before, after in pairwise(order):
        is_tie = math.isclose(scores[before], scores[after], abs_tol=2e-9)
        assert scores[before] > scores[after] or is_tie


def test_equal_events_keep_their_order_and_those_far_behind_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    # A product's last bits depend on where a row is in it.
    for count in range(8, 40):
        random = np.random.default_rng(count)
        vectors = random.normal(size=(count, 256)).astype(np.float32)
        equal = sorted(random.choice(count, 4, replace=False).tolist())
        vectors[equal] = vectors[equal[0]]
        assert [number for number in uncrowded([0.0] * count, vectors) if number in equal] == equal
    monkeypatch.setattr(limits, "CROWD_DEPTH", 3)
    # The first two are close to each other, and each further one to none.
    apart = np.eye(6, dtype=np.float32)
    apart[1] = apart[0]
    assert uncrowded([0.9, 0.9, 0.8, 0.8, 0.8, 0.8], apart) == [2, 0, 1, 3, 4, 5]
    assert uncrowded([], np.empty((0, 6), np.float32)) == []


POLITE = [f"polite {number}" for number in range(12)]
APART = [f"apart {number}" for number in range(4)]


def placed(texts: list[str]) -> list[list[float]]:
    """Twelve texts are close together, and a little nearer to the question than four that are apart from all."""
    vectors = []
    for text in texts:
        vector = [0.0] * 6
        kind, _, number = text.partition(" ")
        vector[0] = {"question": 1.0, "polite": 0.62, "apart": 0.6}.get(kind, -1.0)
        if kind == "polite":
            vector[1] = 0.78 + int(number) / 1_000
        elif kind == "apart":
            vector[2 + int(number)] = 0.8
        vectors.append(vector)
    return vectors


def test_many_similar_events_do_not_hide_those_that_are_nearly_as_near(tmp_path: Path) -> None:
    polite, apart, other = list(range(1, 13)), [13, 14, 15, 16], 17
    with EventLog(tmp_path / "l.db") as log:
        log.append_many([("user", text, None) for text in [*POLITE, *APART, "else"]])
    with connect(log.path, embedder=FunctionEmbedder("placed", 6, placed)) as cache:
        by_meaning = cache.search("question", 20)
        assert [hit.event_id for hit in by_meaning] == [*polite, *apart, other]
        for mode in ("hybrid", "auto"):

            def found(mode: str = mode, **options: Any) -> list[int]:
                return [hit.event_id for hit in cache.search("question", 20, mode=mode, **options)]  # type: ignore[call-overload]

            # The best by meaning stays among the first three.
            whole = [13, 14, 1, 15, 16, *polite[1:], other]
            assert found() == whole
            similarities = {hit.event_id: hit.similarity for hit in cache.search("question", 20, mode="hybrid")}
            assert similarities == {hit.event_id: hit.similarity for hit in by_meaning}
            # What a filter leaves out crowds nobody.
            assert found(scope=[1, 13, 14]) == [1, 13, 14]
    with EventLog(log.path) as again:
        again.append_many([("response", text, None) for text in ["question", *POLITE]])
    with connect(log.path, embedder=FunctionEmbedder("placed", 6, placed)) as cache:
        assert [hit.event_id for hit in cache.search("question", 20, mode="hybrid", kinds=["user"])] == whole


def test_a_share_of_a_question_counts_less_than_of_one_that_names_something(tmp_path: Path) -> None:
    texts = [f"event{number} is one of many notes" for number in range(30)]
    texts[20] = "garden lawn mower rake hoe"

    def by_number(asked: list[str]) -> list[tuple[float, ...]]:
        numbers = [texts.index(text) if text in texts else 0 for text in asked]
        return [(math.cos(number / 10), math.sin(number / 10)) for number in numbers]

    with EventLog(tmp_path / "l.db") as log:
        # The second has more of the words. So it is the best by words, which is among the first three anyway.
        log.append_many([("user", text, None) for text in [*texts, "garden lawn mower rake hoe shed"]])
    with connect(log.path, embedder=FunctionEmbedder("by-number", 2, by_number)) as cache:

        def place(query: str) -> int:
            return [hit.event_id for hit in cache.search(query, 31, mode="hybrid")].index(21)

        # A word with a digit counts twice: both events hold the same share of both questions.
        assert place("garden lawn mower rake hoe shed pond fence hedge") > 5
        assert place("garden lawn mower rake hoe shed pond 77") < 3
