"""`search` where no daemon has ever made a table."""

from __future__ import annotations

import pytest

from pmm_shm.errors import (
    SnapshotUnavailableError,
)
from pmm_shm_client import connect
from tests.support.searching import (
    fill,
)


def test_no_daemon_ever(ledger: str) -> None:
    fill(ledger, 5)
    with connect(ledger) as cache:
        for query in ("red", [0.0] * 32):
            with pytest.raises(SnapshotUnavailableError, match=r"ledger\.db: no vectors of model 'local-bow'"):
                cache.search(query)
