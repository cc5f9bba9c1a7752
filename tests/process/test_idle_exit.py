"""A daemon that ends when nobody needs it, and what goes on without it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import answers
from tests.support.daemons import DEADLINE_S, Daemon, run_daemon
from tests.support.ledgers import build

IDLE_S = 1.0


def still_runs_after(daemon: Daemon, seconds: float, act: Callable[[], object]) -> bool:
    """Whether it runs after so long in which `act` was called several times an idle time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        act()
        time.sleep(IDLE_S / 5)
    return daemon.process.poll() is None


@pytest.mark.parametrize("act", ["append", "command", "report"])
def test_whoever_is_used_stays(ledger: str, start_daemon: StartDaemon, act: str) -> None:
    daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
    with connect(ledger) as cache:
        acts: dict[str, Callable[[], object]] = {
            "append": lambda: cache.append("user", "hello"),
            "command": cache.stats,
            "report": lambda: (cache.metrics(), cache._reporter.report()),
        }
        assert still_runs_after(daemon, 2.5 * IDLE_S, acts[act])
    assert daemon.process.wait(DEADLINE_S) == 0


def test_reads_go_on_without_it(tmp_path: Path, start_daemon: StartDaemon) -> None:
    ledger = build(tmp_path / "agent.db", 50)
    with connect(ledger) as cache:
        daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
        before = cache.metrics()
        # Plain reads leave no trace in it.
        assert daemon.process.wait(DEADLINE_S) == 0
        assert '"event": "idle"' in daemon.log.read_text(encoding="utf-8")
        assert cache.metrics() == before
        cache.append("identity_adopt", "Ada")
        assert answers.everything(cache) == answers.replayed(ledger)
    with connect(ledger) as cache:
        assert cache.identity().name == "Ada"


def test_a_client_that_waits_is_answered(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
    answer = daemon.call("wait", {"event_id": 5, "timeout_ms": int(2.5 * IDLE_S * 1_000)}, DEADLINE_S)
    assert answer == {"reached": False, "as_of": 0}


def test_a_stop_of_this_kind_is_a_clean_one(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        cache.append("identity_adopt", "Ada")
        first = start_daemon(ledger, "--idle-exit", "0.3")
        assert first.process.wait(DEADLINE_S) == 0
        second = start_daemon(ledger)
        assert second.stats()["rebuilds"] == 0
        assert cache.identity(consistency="snapshot").name == "Ada"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon"])
def test_wrong_values(ledger: str, value: str) -> None:
    ran = run_daemon(ledger, "--idle-exit", value)
    assert (ran.returncode, ran.stdout) == (2, "")
