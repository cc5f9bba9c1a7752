"""What the daemon says of itself: how far it is, and never that all is well while it stands still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pmm_cached.health import HeadProbe, assess
from pmm_shm import limits
from pmm_shm.ledger.tail import START, Position
from tests.support import ledgers


def numbers(**changes: Any) -> dict[str, Any]:
    """Those of a healthy daemon, but for the changes."""
    return {
        "problem": None,
        "embeddings": {"problem": None},
        "heartbeat_age_ms": 100,
        "rebuild_waits_for_pid": None,
        "quarantined": 0,
        "is_published": True,
        "lag_events": 0,
        "lag_ms": 0,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "health", "is_current"),
    [
        ({}, "healthy", True),
        # It has just come: nobody calls that lagging.
        ({"lag_events": 3, "lag_ms": limits.LAG_MS_MAX}, "healthy", True),
        ({"lag_events": 3, "lag_ms": limits.LAG_MS_MAX + 1}, "lagging", False),
        ({"is_published": False}, "lagging", False),
        ({"heartbeat_age_ms": limits.HEARTBEAT_MS_MAX + 1}, "degraded", False),
        ({"problem": "the disk is full"}, "degraded", False),
        ({"embeddings": {"problem": "the embedder fails"}}, "degraded", True),
        ({"rebuild_waits_for_pid": 7}, "degraded", False),
        ({"quarantined": 2}, "degraded", True),
        ({"quarantined": 2, "lag_events": 1, "lag_ms": 5_000}, "degraded", False),
    ],
)
def test_a_judgement_names_its_reasons(changes: dict[str, Any], health: str, is_current: bool) -> None:
    found = assess(numbers(**changes))
    assert (found.health, found.is_current) == (health, is_current)
    assert bool(found.health_reasons) == (health != "healthy")
    assert all("\n" not in reason for reason in found.health_reasons)


def replica(**changes: Any) -> dict[str, Any]:
    """The numbers of a replica that is followed, but for the changes."""
    return {
        "name": "agent",
        "is_running": True,
        "lag_events": 0,
        "lag_ms": 0,
        "looked_ms": 100,
        "difference": None,
        "problem": None,
        "needs_a_person": False,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "health", "reason"),
    [
        ({}, "healthy", ""),
        ({"looked_ms": limits.REPLICA_LAG_MS_MAX}, "healthy", ""),
        (
            {"looked_ms": limits.REPLICA_LAG_MS_MAX + 1},
            "lagging",
            "for 3,001 ms: its follower stands still",
        ),
        ({"looked_ms": limits.REPLICA_DEGRADED_MS}, "lagging", "not confirmed for 30,000 ms"),
        ({"looked_ms": limits.REPLICA_DEGRADED_MS + 1}, "degraded", "not confirmed for 30,001 ms"),
        # It has not looked at all, since it started.
        ({"looked_ms": None, "lag_ms": limits.REPLICA_LAG_MS_MAX + 1}, "lagging", "not confirmed for 3,001 ms"),
        ({"looked_ms": None, "lag_ms": limits.REPLICA_DEGRADED_MS + 1}, "degraded", "not confirmed for 30,001 ms"),
        ({"problem": "no primary"}, "lagging", "no primary"),
        ({"is_running": False}, "lagging", "its follower does not run"),
        ({"lag_events": 2, "lag_ms": limits.LAG_MS_MAX}, "healthy", ""),
        (
            {"lag_events": 2, "lag_ms": limits.LAG_MS_MAX + 1},
            "lagging",
            "2 events behind its source",
        ),
        ({"needs_a_person": True, "problem": "too deep"}, "degraded", "is not followed: too deep"),
        ({"difference": "event 7: other"}, "degraded", "differs from its source 'agent': event 7: other"),
    ],
)
def test_a_replica_that_stands_still_is_never_healthy(changes: dict[str, Any], health: str, reason: str) -> None:
    found = assess(numbers(replica=replica(**changes)))
    assert found.health == health
    assert found.is_current == (health == "healthy")
    assert reason in "; ".join(found.health_reasons)
    assert bool(found.health_reasons) == (health != "healthy")


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_probe_counts_what_is_not_applied(tmp_path: Path, journal: str) -> None:
    path = ledgers.build(tmp_path / "ledger.db", 30, journal=journal)
    probe = HeadProbe(path)
    assert probe.lag_behind(START) == (30, 30)
    assert probe.lag_behind(Position(30, b"")) == (30, 0)
    assert probe.lag_behind(Position(10, b"")) == (30, 20)
    # Replaced: the next look is at the new file.
    other = ledgers.build(tmp_path / "other.db", journal=journal, ids=[-5, 0, 7, 10**9])
    Path(other).replace(path)
    assert probe.lag_behind(Position(-5, b"")) == (10**9, 3)
    assert probe.lag_behind(START) == (10**9, 4)
    Path(path).unlink()
    assert probe.lag_behind(START) is None
    probe.close()
