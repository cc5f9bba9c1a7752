"""Four writers and four readers at once, as processes, in each journal mode; and after a fork."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.contention import check_end_state, run_workers, writers_and_readers
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import make_ledger


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_writers_and_readers(journal: str, tmp_path: Path) -> None:
    writers_and_readers(tmp_path / "pmm.db", journal, 4.0)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_after_a_fork(journal: str, tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path, journal)
    with ForkedDaemon(path):
        results = run_workers(path, 3.0, ["fork"] * 2 + ["read"] * 2)
        check_end_state(path, sum(result["appended"] for result in results[:2]))
