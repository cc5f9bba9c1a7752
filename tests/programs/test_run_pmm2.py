"""A ledger of PMM 2 that an older PMM opens: PMM's own functions do all of it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_pmm.installing import install, uninstall
from pmm_shm_pmm.settings import RunSettings
from tests.support import ledgers, standin_package


@pytest.fixture(autouse=True)
def _standin() -> Iterator[None]:
    with standin_package.importable():
        yield
        uninstall()


@pytest.mark.parametrize("is_pmm2", [True, False])
def test_the_log_is_pmms_own(tmp_path: Path, is_pmm2: bool) -> None:
    path = str(tmp_path / "second.db")
    ledgers.execute(path, f"CREATE TABLE {'pmm_writer_lease' if is_pmm2 else 'other'} (x)")
    patcher = install(RunSettings(starts_daemon=False))
    assert patcher is not None
    eventlog: Any = importlib.import_module("pmm.storage.eventlog")
    log = eventlog.EventLog(path)
    try:
        assert log.append(kind="user", content="hello", meta={}) == 1
        assert [event["content"] for event in log.read_all()] == ["hello"]
        counts = patcher.counts["pmm.storage.eventlog:EventLog"]
        assert bool(counts.fallbacks["a ledger of PMM 2"]) == is_pmm2
        assert bool(counts.answered) != is_pmm2
    finally:
        log._conn.close()
