"""`search` and `recall`: what the specification's brute force finds, at the event that they say, daemon or not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_shm import limits
from pmm_shm.errors import (
    ConfigError,
    InvalidTextError,
    InvalidVectorError,
    SnapshotUnavailableError,
    UnknownModelError,
)
from pmm_shm_client import connect
from pmm_shm_client.cache import Cache
from tests.support.fork_daemon import ForkedDaemon
from tests.support.search_oracle import check_hits
from tests.support.searching import (
    NEVER,
    fill,
)


@pytest.fixture
def daemon(ledger: str) -> Iterator[ForkedDaemon]:
    with ForkedDaemon(Path(ledger), *NEVER) as daemon:
        yield daemon


# The oracle.


@pytest.mark.parametrize(
    "scope",
    [
        [],
        (),
        {3, 1, 2},
        frozenset({7}),
        [1, 1, 2, 2, 1],
        [-1, -(2**63), 2**63 - 1, 10**9],
        range(1, 50),
        np.array([1, 2, 3]),
        np.array([9, 8, 9], np.int8),
        np.array([1, 2], np.uint64),
        np.empty(0),
        {4: "a dict's keys"},
    ],
    ids=str,
)
def test_scopes(searched: tuple[Cache, dict[int, Any]], scope: Any) -> None:
    cache, vectors = searched
    inside = [int(event_id) for event_id in scope]
    check_hits(cache.search("red pear", 5, scope), vectors, "red pear", 5, inside)
    check_hits(cache.search("red pear", 5, (one for one in inside)), vectors, "red pear", 5, inside)


@pytest.mark.parametrize(
    "scope",
    [
        5,
        "123",
        [1.5],
        [math.nan],
        ["1"],
        [None],
        [2**63],
        [-(2**63) - 1],
        [10**30],
        [2**63, -1],
        np.array([2**63], np.uint64),
        np.array([[1, 2]]),
        np.array(3),
        [True, False],
        [[1], [2, 3]],
        pytest.param(object(), id="object"),
    ],
    ids=str,
)
def test_scopes_that_mean_nothing(searched: tuple[Cache, dict[int, Any]], scope: Any) -> None:
    with pytest.raises(ConfigError, match="scope"):
        searched[0].search("red", 5, scope)


@pytest.mark.parametrize("k", [0, -1, True, "5", 1.0, None, limits.SEARCH_K_MAX + 1, 2**70])
def test_counts_that_mean_nothing(searched: tuple[Cache, dict[int, Any]], k: Any) -> None:
    with pytest.raises(ConfigError, match="k: "):
        searched[0].search("red", k)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", InvalidTextError),
        ("x" * (limits.TEXT_CHARS_MAX + 1), InvalidTextError),
        ([0.1] * 31, InvalidVectorError),
        ([0.1] * 33, InvalidVectorError),
        ([], InvalidVectorError),
        ([math.nan] * 32, InvalidVectorError),
        ([math.inf] * 32, InvalidVectorError),
        ([[0.1] * 32], InvalidVectorError),
        (["a"] * 32, InvalidVectorError),
        (None, InvalidVectorError),
        (b"bytes", InvalidVectorError),
        pytest.param(object(), InvalidVectorError, id="object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_queries_that_mean_nothing(searched: tuple[Cache, dict[int, Any]], query: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        searched[0].search(query)


def test_models_that_are_not_there(searched: tuple[Cache, dict[int, Any]]) -> None:
    cache, _ = searched
    with pytest.raises(UnknownModelError, match="nobody"):
        cache.search("a text", model="nobody")
    with pytest.raises(SnapshotUnavailableError, match=r"no vectors of model 'nobody'.*start pmm-cached"):
        cache.search([1.0] * 32, model="nobody")
    with pytest.raises(ConfigError):
        cache.search("red", model="")


def test_lone_surrogates_are_a_text_like_any_other(searched: tuple[Cache, dict[int, Any]]) -> None:
    cache, vectors = searched
    check_hits(cache.search("red \ud800", 4), vectors, "red \ud800", 4)


# Without a daemon.


def test_no_daemon_ever(ledger: str) -> None:
    fill(ledger, 5)
    with connect(ledger) as cache:
        for query in ("red", [0.0] * 32):
            with pytest.raises(SnapshotUnavailableError, match=r"ledger\.db: no vectors of model 'local-bow'"):
                cache.search(query)
