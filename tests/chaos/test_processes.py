"""Four writers and four readers at once, as processes, for 20 seconds in each journal mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.contention import writers_and_readers


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_writers_and_readers(journal: str, tmp_path: Path) -> None:
    writers_and_readers(tmp_path / "pmm.db", journal, 20.0)
