"""Row 12: what the published state takes, by fold."""

from __future__ import annotations

import os
from pathlib import Path

from bench.context import Bench
from bench.oracle import replaying
from bench.report import Row
from pmm_cached.follower import all_folds
from pmm_shm.instance.paths import DATA_FILE, Instance
from pmm_shm.store.snapshot import SnapshotReader
from pmm_shm_cli.benchmark import require_equal
from pmm_shm_client import connect

_PER_EVENTS = 100_000


def file_size(bench: Bench) -> Row:
    row = Row(12, "Size of the LMDB file", "grows with the state, not with the log: stated per 100,000 events, by fold")
    sizes: dict[int, dict[str, int]] = {}
    for events in bench.scale.events:
        bench.say(f"row 12: {events:,} events")
        with bench.sites.site(events, fresh=True) as site:
            site.start()
            with connect(site.ledger) as cache, replaying(site.ledger) as oracle:
                require_equal(cache, oracle)
            site.stop()
            sizes[events] = _bytes_by_fold(site.ledger)
    names = list(next(iter(sizes.values())))
    row.tables["bytes: keys and values by fold, and the whole file"] = [
        {"fold": name, **{f"{events:,} events": sizes[events][name] for events in sizes}} for name in names
    ]
    smallest, largest = min(sizes), max(sizes)
    if largest > smallest:
        for name in names:
            grown = (sizes[largest][name] - sizes[smallest][name]) * _PER_EVENTS / (largest - smallest)
            row.figure(f"{name}: growth per {_PER_EVENTS:,} events", grown / 1e3, "KB")
    return row


def _bytes_by_fold(ledger: Path) -> dict[str, int]:
    instance = Instance.of(ledger)
    reader = SnapshotReader(instance)
    found: dict[str, int] = {}
    try:
        with reader.begin() as snapshot:
            assert snapshot is not None
            for fold in all_folds():
                found[fold.name] = sum(len(key) + len(value) for key, value in snapshot.base(fold).scan(b""))
    finally:
        reader.close()
    found["data.mdb, blocks on disk"] = os.stat(instance.directory / DATA_FILE).st_blocks * 512
    return found
