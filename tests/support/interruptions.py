"""Ledgers whose readers are interrupted."""

from __future__ import annotations

import pytest

from pmm_shm_client import Cache, connect
from tests.support.golden_cases import answers_of, canonical


def equals_replay(cache: Cache) -> bool:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PMM_USE_PROJECTION_CACHE", "false")
        environment.setenv("PMM_USE_METRICS_CACHE", "false")
        with connect(cache.path) as oracle:
            return canonical(answers_of(oracle, [])) == canonical(answers_of(cache, []))
