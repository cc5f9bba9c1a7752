"""What answered the reads: nothing was new, the published state with newer events, or a replay; frames count, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_cli.synthetic import generate
from pmm_shm_client import connect
from pmm_shm_client.cache import Cache
from tests.conftest import StartDaemon
from tests.support import daemons
from tests.support.command import run


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return generate(tmp_path / "agent.db", 500, 1)


def counted(cache: Cache, group: str) -> tuple[int, int, int, int]:
    """(hits, misses, caught up, replayed)"""
    numbers: dict[str, Any] = cache.stats()[group]
    return tuple(numbers[name] for name in ("cache_hits", "cache_misses", "caught_up", "replayed"))  # type: ignore[return-value]


def test_a_worker_that_appends_and_reads_is_served_from_shared_memory(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        for number in range(20):
            cache.append("user", str(number))
            cache.metrics()
            cache.identity()
        assert counted(cache, "metrics") == counted(cache, "projection") == (0, 20, 20, 0)
        assert cache.stats()["metrics"]["hit_rate"] == 0.0
        cache.metrics()
        assert counted(cache, "metrics") == (1, 20, 20, 0)
        cache._reporter.report()
        daemons.until(lambda: daemon.stats()["workers"]["metrics_hits"] == 1)
    found = json.loads(run("status", ledger, "--json").out)
    assert found["reads"] == {"hits": 1, "caught_up": 40, "replayed": 0, "served_rate": 1.0}
    assert found["daemon"]["workers"]["metrics_caught_up"] == found["daemon"]["workers"]["projection_caught_up"] == 20
    lines = run("status", ledger).out.splitlines()
    assert len(lines) == len(run("status", ledger, env={"COLUMNS": "50"}).out.splitlines()) == 3
    assert lines[1] == "reads   100.00% of 41 served from shared memory, 0 replayed"


def test_without_a_published_state_reads_are_replayed(ledger: str) -> None:
    with connect(ledger) as cache:
        for number in range(3):
            cache.append("user", str(number))
            cache.metrics()
            cache.frame()
        cache.metrics()
        assert counted(cache, "metrics") == (1, 3, 0, 3)
        assert counted(cache, "projection") == (0, 3, 0, 3)


def test_frames_are_counted(ledger: str, start_daemon: StartDaemon) -> None:
    start_daemon(ledger)
    with connect(ledger) as cache:
        for _ in range(100):
            cache.frame()
        assert counted(cache, "projection") == (99, 1, 1, 0)
        cache.append("user", "x")
        cache.frame()
        # It changes no view but the newest messages; the position alone makes it another frame.
        cache.append("unheard of", "x")
        cache.frame()
        cache.frame()
        assert counted(cache, "projection") == (100, 3, 3, 0)
        cache.frame(consistency="snapshot"), cache.context()
        hits, misses, caught_up, replayed = counted(cache, "projection")
        assert (hits + misses, misses, replayed) == (105, caught_up, 0)


@pytest.mark.parametrize("flag", ["PMM_USE_PROJECTION_CACHE", "PMM_USE_METRICS_CACHE"])
def test_reads_without_the_cache_are_replayed(
    ledger: str, start_daemon: StartDaemon, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_daemon(ledger)
    monkeypatch.setenv(flag, "false")
    with connect(ledger) as cache:
        cache.frame(), cache.frame()
        assert counted(cache, "projection") == (0, 2, 0, 2)


def test_reports_of_frames_reach_the_daemon(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        cache.frame()
        cache._reporter.due = 0.0
        # With the next read that checks more than the mark.
        daemons.until(lambda: cache.frame() and daemon.stats()["workers"]["projection_hits"] >= 1)
