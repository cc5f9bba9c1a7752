"""A full replay for every answer: what an agent without caches pays.

It runs our own folds, fetches only the kinds that an answer needs, and decodes nothing twice, so that it is exact, and
faster than most agents are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pmm_shm_client.benchmark import caches
from pmm_shm_client.cache import Cache


@contextlib.contextmanager
def naive(ledger: str | Path) -> Iterator[Cache]:
    """Every read of it is a `pmm_shm.replay` from the first event."""
    with caches(Path(ledger)) as (_, off):
        yield off
