"""The nearest vectors: equal to a float64 brute force, whatever the rows are and however they lie in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pmm_shm.vectors.nearest import SearchRows, inverse_norms, nearest, nearest_rows
from tests.support.nearest import check
from tests.support.profiles import examples


def in_blocks(ids: list[int], vectors: NDArray[np.float32], sizes: list[int]) -> list[SearchRows]:
    """The rows dealt out to blocks in turn, each in order of ids."""
    numbers = np.arange(len(ids)) % max(1, len(sizes))
    blocks = []
    for block in range(max(1, len(sizes))):
        mine = np.flatnonzero(numbers == block)
        mine = mine[np.argsort(np.array(ids, np.int64)[mine], kind="stable")] if len(mine) else mine
        # As the table stores them, and as the tail is read.
        order: Any = "F" if block % 2 else "C"
        blocks.append(SearchRows.of(np.array(ids, np.int64)[mine], np.array(vectors[mine], order=order)))
    return blocks


# Small integers make ties, duplicates and zero vectors; the exponents make rows that float32 can hardly hold.
coordinates = st.integers(-3, 3).map(float)
scales = st.sampled_from([1.0, 1.0, 1.0, 0.25, 2.0**60, 2.0**-60, 2.0**120, 2.0**-120])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], NDArray[np.float32], NDArray[np.float64], int, list[int]]:
    dimension = draw(st.integers(1, 8))
    row = st.lists(coordinates, min_size=dimension, max_size=dimension)
    rows = draw(st.lists(st.tuples(row, scales), min_size=0, max_size=40))
    ids = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(rows), max_size=len(rows), unique=True))
    vectors = np.array([[x * scale for x in values] for values, scale in rows], np.float32).reshape(-1, dimension)
    query = np.array(draw(row), np.float64) * draw(scales)
    return ids, vectors, query, draw(st.integers(1, 45)), draw(st.lists(st.just(0), min_size=1, max_size=4))


@settings(max_examples=examples(300))
@given(cases())
def test_equals_a_float64_brute_force(case: Any) -> None:
    ids, vectors, query, k, sizes = case
    found, rows, others = nearest_rows(in_blocks(ids, vectors, sizes), query, k)
    check(list(found.items()), ids, vectors, query, k)
    assert others == {}
    assert rows.tolist() == [vectors[ids.index(event_id)].tolist() for event_id in found]
    assert nearest(in_blocks(ids, vectors, sizes), query, k) == list(found.items())


@settings(max_examples=examples(200))
@given(cases(), st.data())
def test_a_scope_is_the_same_search_over_fewer_rows(case: Any, data: st.DataObject) -> None:
    ids, vectors, query, k, sizes = case
    inside = data.draw(st.sets(st.sampled_from(ids)) if ids else st.just(set()))
    scope = np.array(sorted(inside | {0, 5}), np.int64)
    chosen = [number for number, event_id in enumerate(ids) if event_id in inside | {0, 5}]
    found = nearest(in_blocks(ids, vectors, sizes), query, k, scope)
    whole = dict(nearest(in_blocks(ids, vectors, sizes), query, len(ids) or 1))
    expected = {one: whole[one] for one in scope.tolist() if one in whole}
    beside = nearest_rows(in_blocks(ids, vectors, sizes), query, k, scope[:1], scope.tolist())
    assert beside.similarities | beside.others == expected
    check(found, [ids[number] for number in chosen], vectors[chosen], query, k)


@settings(max_examples=examples(200))
@given(cases(), st.data())
def test_dead_rows_are_not_found(case: Any, data: st.DataObject) -> None:
    ids, vectors, query, k, sizes = case
    blocks, dead_ids = [], set()
    for rows in in_blocks(ids, vectors, sizes):
        dead = data.draw(st.sets(st.integers(0, len(rows) - 1)) if len(rows) else st.just(set()))
        dead_ids |= {int(rows.ids[number]) for number in dead}
        blocks.append(SearchRows(rows.ids, rows.vectors, rows.inverse_norms, np.array(sorted(dead), np.uint32)))
    alive = [number for number, event_id in enumerate(ids) if event_id not in dead_ids]
    for scope in (None, np.array(sorted(ids), np.int64)):
        check(nearest(blocks, query, k, scope), [ids[number] for number in alive], vectors[alive], query, k)
    beside = nearest_rows(blocks, query, 1, others=sorted(ids))
    assert beside.others.keys() | beside.similarities.keys() == set(ids) - dead_ids


@pytest.mark.parametrize("k", [1, 10, 3_000])
def test_many_rows_with_near_ties(k: int) -> None:
    # Rows that float32 cannot tell apart: they differ in the last bit of one coordinate.
    random = np.random.default_rng(5)
    base = random.standard_normal(32).astype(np.float32)
    vectors = np.repeat(base[np.newaxis], 8_000, axis=0)
    for number in range(0, 8_000, 7):
        column = number % 32
        vectors[number, column] = np.nextafter(vectors[number, column], np.float32(np.inf if number % 2 else -np.inf))
    vectors[::3] = random.standard_normal((len(vectors[::3]), 32))
    ids = random.permutation(8_000).tolist()
    query = base.astype(np.float64) + 1e-3
    check(nearest(in_blocks(ids, vectors, [0, 0, 0]), query, k), ids, vectors, query, k)


@pytest.mark.parametrize("order", ["F", "C"])
def test_a_block_that_is_multiplied_in_several_parts(order: Any) -> None:
    random = np.random.default_rng(6)
    vectors = np.array(random.standard_normal((7_000, 100), dtype=np.float32), order=order)
    query = random.standard_normal(100)
    ids = list(range(7_000))
    check(nearest([SearchRows.of(np.array(ids), vectors)], query, 20), ids, vectors, query, 20)


def test_all_rows_equal_gives_the_smallest_ids() -> None:
    vectors = np.ones((30_000, 4), np.float32)
    ids = np.random.default_rng(1).permutation(30_000).tolist()
    assert [event_id for event_id, _ in nearest(in_blocks(ids, vectors, [0, 0]), np.ones(4), 5)] == [0, 1, 2, 3, 4]


def test_the_vectors_of_the_best_are_theirs_however_many_candidates_there_are() -> None:
    ids = np.random.default_rng(1).permutation(30_000)
    # Powers of two: all rows are equally similar, to the last bit.
    vectors = np.repeat(2.0 ** (ids % 5 - 2)[:, np.newaxis], 4, axis=1).astype(np.float32)
    found, rows, _ = nearest_rows(in_blocks(ids.tolist(), vectors, [0, 0]), np.ones(4), 7)
    assert list(found) == list(range(7))
    assert rows[:, 0].tolist() == [2.0 ** (event_id % 5 - 2) for event_id in range(7)]


def test_equal_rows_are_equally_similar_wherever_they_lie() -> None:
    random = np.random.default_rng(2)
    row = random.standard_normal(33).astype(np.float32)
    vectors = random.standard_normal((999, 33)).astype(np.float32)
    vectors[[0, 17, 500, 998]] = row
    found = nearest(in_blocks(list(range(999)), vectors, [0, 0, 0]), random.standard_normal(33) * 0.1 + row, 4)
    assert [event_id for event_id, _ in found] == [0, 17, 500, 998]
    assert len({sim for _, sim in found}) == 1


def test_zero_query_and_zero_vectors_have_similarity_zero() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], np.float32)
    blocks = [SearchRows.of(np.array([1, 2, 3], np.int64), vectors)]
    assert nearest(blocks, np.zeros(2), 3) == [(1, 0.0), (2, 0.0), (3, 0.0)]
    assert nearest(blocks, np.array([5.0, 0.0]), 3) == [(2, 1.0), (1, 0.0), (3, -1.0)]


def test_inverse_norms_say_where_float32_is_too_narrow() -> None:
    norms = inverse_norms(np.array([[0, 0], [3, 4], [3e38, 3e38], [1e-40, 0]], np.float32))
    assert norms[0] == 0.0
    assert norms[1] == np.float32(0.2)
    assert np.isnan(norms[2:]).all()
