"""The history of the scores: against a naive recomputation, however it is reached, in bounded space."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from pmm_shm.wire import protocol
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import daemons, ledgers
from tests.support.answers import everything, golden_case, insert, replayed

OLD_DAEMON = """
import sys
from pmm_shm.folds import registry
registry.BUILT_IN = tuple(fold for fold in registry.BUILT_IN if fold.name != "history")
from pmm_cached.main import main
main()
"""


def test_a_store_that_was_published_without_it(ledger: str, start_daemon: StartDaemon) -> None:
    """A worker that is newer than its daemon reads exactly; a new daemon rebuilds, and publishes it."""
    insert(ledger, golden_case("case-1-039")["events"])
    command = [sys.executable, "-c", OLD_DAEMON, ledger]
    old = subprocess.Popen(command, env=daemons.environment(), stderr=subprocess.DEVNULL)
    try:
        with connect(ledger) as cache:
            folds = daemons.until(lambda: published_folds(cache), "the old daemon has published")
            assert "history" not in folds
            assert everything(cache) == replayed(ledger)
    finally:
        old.terminate()
        old.wait(timeout=daemons.DEADLINE_S)
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        assert daemons.until(lambda: "history" in published_folds(cache), "the history is published")
        assert everything(cache) == replayed(ledger)
        assert cache._reader.replays == 0
        assert cache.history(consistency="snapshot") == cache.history()
        assert cache.verify()
        assert "history" in daemon.stats()["folds"]
        # It is followed from then on.
        ledgers.execute(
            ledger, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'invariant_violation', '', '{}')"
        )
        head = ledgers.execute(ledger, "SELECT max(id) FROM events")[0][0]
        daemon.call(protocol.WAIT, {"event_id": head, "timeout_ms": 30_000})
        assert cache.history(consistency="snapshot").as_of == head
        assert everything(cache) == replayed(ledger)


def published_folds(cache: Any) -> dict[str, Any]:
    """The folds that are published; empty before anything is."""
    with cache._reader.snapshots.begin() as snapshot:
        if snapshot is None or snapshot.header.position.as_of == 0:
            return {}
        return dict(snapshot.header.folds)
