"""Frames of earlier events, and kept ones, beside a daemon that publishes, rebuilds and dies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pmm_shm.ledger.restore import restore
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import answers, ledgers


def replayed_at(path: str, folder: Path, event_id: int) -> dict[str, Any]:
    """Every answer of a log that ends with an event, by a plain full replay of a copy."""
    copy = str(folder / f"until-{event_id}.db")
    Path(copy).unlink(missing_ok=True)
    ledgers.execute(path, "VACUUM INTO ?", copy)
    ledgers.execute(copy, "DELETE FROM events WHERE id > ?", event_id)
    return answers.replayed(copy)


def test_frames_of_a_ledger_that_a_daemon_serves(ledger: str, tmp_path: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        for n in range(12):
            cache.append_many([("commitment_open", "", {"cid": f"c{n}", "text": "t"}), ("identity_adopt", f"E{n}", {})])
            frame = cache.frame()
            if n == 4:
                cache.wait_for(frame.as_of, 30.0)
                cache.invalidate()
            if n == 8:
                daemon.kill()
        assert frame.as_of == 24
        for event_id in (24, 22, 20, 18, 16, 14, 12, 10):
            kept = cache.kept_frame(event_id)
            assert kept is not None
            assert answers.everything(kept) == replayed_at(ledger, tmp_path, event_id)
        for event_id in (23, 7, 8, 1):
            assert cache.kept_frame(event_id) is None
            assert answers.everything(cache.frame_at(event_id)) == replayed_at(ledger, tmp_path, event_id)


def test_frames_over_a_restore_beside_a_daemon(ledger: str, tmp_path: Path, start_daemon: StartDaemon) -> None:
    start_daemon(ledger)
    backup = str(tmp_path / "backup.db")
    with connect(ledger) as cache:
        cache.append("identity_adopt", "Ada", {})
        ledgers.execute(ledger, "VACUUM INTO ?", backup)
        for name in ("Bea", "Eve", "Zoe"):
            cache.wait_for(cache.append("identity_adopt", name, {}), 30.0)
            assert cache.frame().identity().name == name
        shutil.copy(backup, backup + "-2")
        restore(backup + "-2", ledger, keep=False)
        last = [cache.append("identity_adopt", name, {}) for name in ("Ida", "Ute", "Mia", "Eva")][-1]
        cache.wait_for(last, 30.0)
        frame = cache.frame()
        assert (frame.as_of, frame.identity().name) == (5, "Eva")
        assert [cache.kept_frame(event_id) for event_id in (2, 3, 4)] == [None] * 3
        assert [cache.frame_at(event_id).identity().name for event_id in (1, 2, 3, 4)] == ["Ada", "Ida", "Ute", "Mia"]
