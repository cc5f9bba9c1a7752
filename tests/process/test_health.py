"""What the daemon says of itself: how far it is, and never that all is well while it stands still."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import answers, command, daemons, ledgers
from tests.support.sites import Site
from tests.support.user_folds import FREEZING
from tests.support.waiting import at_most

FROZEN_WITHIN_S = limits.HEARTBEAT_MS_MAX / 1_000 + 5


def status(ledger: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, JSON, stderr) of `pmm-shm status`."""
    ended = command.run("status", ledger, "--json")
    return ended.code, json.loads(ended.out), ended.err


def test_the_daemon_reports_head_position_and_lag(ledger: str, start_daemon: StartDaemon) -> None:
    with EventLog(ledger) as log:
        log.append_many([("user", str(number), {}) for number in range(20)])
        daemon = start_daemon(ledger)
        found = daemon.stats()
        assert (found["head_id"], found["as_of"], found["lag_events"], found["lag_ms"]) == (20, 20, 0, 0)
        assert (found["health"], found["health_reasons"], found["last_error"]) == ("healthy", [], None)
        assert found["heartbeat_age_ms"] < limits.HEARTBEAT_MS_MAX
        code, shown, _ = status(ledger)
        assert (code, shown["health"], shown["reasons"], shown["lag_events"]) == (0, "healthy", [], 0)


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_a_follower_that_stands_still_is_never_healthy(
    ledger: str, tmp_path: Path, how: str, start_daemon: StartDaemon
) -> None:
    """Hazard 21."""
    site = Site(tmp_path / "site")
    site.install(FREEZING, "freezing = tool_use:Freezing")
    daemon = start_daemon(ledger, env=site.environment)
    with connect(ledger) as cache:
        cache.append("freeze", how, {})
        appended = time.monotonic()
        last = [cache.append("user", str(number), {}) for number in range(5)][-1]
        seen = []
        while not seen or seen[-1] != "degraded":
            waited_ms = (time.monotonic() - appended) * 1_000
            found = daemon.stats()
            assert (found["head_id"], found["as_of"], found["lag_events"]) == (last, 0, last)
            # The daemon may have been at the head a slow poll ago; healthy is only what has just come.
            assert found["health"] != "healthy" or waited_ms < limits.LAG_MS_MAX + 500
            assert found["lag_ms"] >= waited_ms - 500
            seen.append(found["health"])
            assert waited_ms < FROZEN_WITHIN_S * 1_000, found
        assert set(seen) <= {"healthy", "lagging", "degraded"}
        assert "has not moved" in found["health_reasons"][0]
        code, shown, complaint = status(ledger)
        assert (code, shown["health"], shown["lag_events"]) == (4, "degraded", last)
        assert "restart the daemon" in complaint
        assert answers.everything(cache) == answers.replayed(ledger)
    # Neither does it keep the daemon from stopping.
    with at_most(2.0):
        daemon.stop()
    assert daemon.process.returncode != 0


def test_a_frozen_daemon_is_degraded_and_a_dead_one_absent(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    daemon.freeze()
    code, shown, _ = status(ledger)
    assert (code, shown["health"]) == (4, "degraded")
    assert "did not answer" in shown["reasons"][0]
    daemon.kill()
    code, shown, _ = status(ledger)
    assert (code, shown["health"]) == (3, "absent")
    assert "start pmm-cached" in shown["reasons"][0]


def test_the_last_error_stays_when_it_is_mended(tmp_path: Path, start_daemon: StartDaemon) -> None:
    path = ledgers.build(tmp_path / "ledger.db", 30)
    daemon = start_daemon(path)
    moved = Path(path).rename(tmp_path / "elsewhere.db")
    found: dict[str, Any] = daemons.until(lambda: (now := daemon.stats())["problem"] and now)
    assert found["health"] == "degraded"
    assert "no such file" in found["problem"]
    assert found["last_error"] == found["problem"]
    moved.rename(path)
    found = daemons.until(lambda: (now := daemon.stats())["health"] == "healthy" and now)
    assert found["problem"] is None
    assert "no such file" in found["last_error"]
    assert found["last_error_age_ms"] >= 0
