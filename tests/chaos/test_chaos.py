"""Kill loops, a short version: a new seed each time, or the one in PMM_CHAOS_SEED."""

from __future__ import annotations

from tests.support.chaos_runs import run_chaos


def test_kill_loops() -> None:
    report = run_chaos("wal", 20, daemon_kills=60, client_kills=40, stops=6)
    assert report["acknowledged"] > 20
    assert report["restarts"] > 0
    assert report["folded"] <= report["missed"]


def test_kill_loops_on_a_rollback_journal() -> None:
    report = run_chaos("delete", 10, daemon_kills=40, client_kills=25, stops=0)
    assert report["acknowledged"] > 20
    assert report["restarts"] > 0
    assert report["folded"] <= report["missed"]
