"""The oracle of every benchmark: a full replay for every answer, by the product itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pmm_shm_cli.benchmark import caches
from pmm_shm_client.cache import Cache


@contextlib.contextmanager
def replaying(ledger: str | Path) -> Iterator[Cache]:
    """Every read of it replays from the first event: only the kinds that the answer needs, in batches."""
    with caches(Path(ledger)) as (_, off):
        yield off
