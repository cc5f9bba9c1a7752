"""The nearest rows by brute force."""

from __future__ import annotations

import math
from typing import Any

import pytest
from numpy.typing import NDArray


def similarity(vector: NDArray[Any], query: NDArray[Any]) -> float:
    """The specification's cosine, every sum exact: a reference without numpy's arithmetic."""
    rows, wanted = [float(x) for x in vector], [float(x) for x in query]
    norm = math.sqrt(math.fsum(x * x for x in rows)) * math.sqrt(math.fsum(x * x for x in wanted))
    return math.fsum(x * y for x, y in zip(rows, wanted, strict=True)) / norm if norm else 0.0


def brute_force(ids: list[int], vectors: NDArray[Any], query: NDArray[Any], k: int) -> list[tuple[int, float]]:
    scored = [(event_id, similarity(vector, query)) for event_id, vector in zip(ids, vectors, strict=True)]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


def check(found: list[tuple[int, float]], ids: list[int], vectors: NDArray[Any], query: NDArray[Any], k: int) -> None:
    """`found` is the best k: the right similarities, in order, ties by id, where "tie" is equal but for rounding."""
    wanted = brute_force(ids, vectors, query, k)
    assert len(found) == len(wanted)
    assert [sim for _, sim in found] == pytest.approx([sim for _, sim in wanted], abs=1e-12)
    assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))
    exact = dict(zip(ids, vectors, strict=True))
    for (event_id, sim), (wanted_id, _) in zip(found, wanted, strict=True):
        assert sim == pytest.approx(similarity(exact[event_id], query), abs=1e-12)
        # Another id in this place is right only if float64 cannot tell the two apart.
        assert event_id == wanted_id or similarity(exact[wanted_id], query) == pytest.approx(sim, abs=1e-14)
