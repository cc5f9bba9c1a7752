"""An event log of its own, and its indexes."""

from __future__ import annotations

from tests.support import ledgers

INDEXES = {"idx_events_kind_id", "idx_events_ts_id", "idx_metrics_lookup"}


def indexes(path: str) -> set[str]:
    names = ledgers.execute(path, "SELECT name FROM sqlite_master WHERE type = 'index'")
    return {name for (name,) in names}
