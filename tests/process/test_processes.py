"""Writers and readers that fork, as processes, in each journal mode; tests/chaos has many of them at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.contention import check_end_state, run_workers
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import make_ledger


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_after_a_fork(journal: str, tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path, journal)
    with ForkedDaemon(path):
        results = run_workers(path, 2.0, ["fork"] * 2 + ["read"] * 2)
        check_end_state(path, sum(result["appended"] for result in results[:2]))
