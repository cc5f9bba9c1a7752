"""Fixtures for pytest: `pmm_ledger`, `pmm_cache` and `pmm_daemon`. Each test has its own; nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache

# The library is imported by the fixtures: pytest loads this module in projects that never ask for one.


@pytest.fixture
def pmm_ledger() -> Iterator[str]:
    """The path of a new, empty ledger in a temporary folder."""
    from pmm_shm_client.testing import temporary_ledger

    with temporary_ledger() as path:
        yield path


@pytest.fixture
def pmm_daemon(pmm_ledger: str) -> Iterator[str]:
    """A daemon that serves `pmm_ledger` during the test; the value is the path of the ledger."""
    from pmm_shm_client.testing import running_daemon

    with running_daemon(pmm_ledger):
        yield pmm_ledger


@pytest.fixture
def pmm_cache(pmm_ledger: str) -> Iterator[Cache]:
    """A cache of `pmm_ledger`, as `connect` makes it; with `pmm_daemon` beside it, it reads what that publishes."""
    from pmm_shm_client.cache import connect

    with connect(pmm_ledger) as cache:
        yield cache
