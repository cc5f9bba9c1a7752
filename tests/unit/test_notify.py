"""What the daemon tells a service manager: the protocol by itself, then a real daemon and a real socket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pmm_cached.follower import Follower, all_folds
from pmm_cached.notify import Notifier, status_line
from pmm_cached.status import Status
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.store.writer import StoreWriter

# The protocol.


@pytest.mark.parametrize("address", ["", "@", "relative", "vsock:2:1", "/nowhere/at/all", "/" + "x" * 200])
def test_without_a_socket_nothing_is_done(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"} if address else {"WATCHDOG_USEC": "1000"})
    for _ in range(3):
        notifier.ready()
        notifier.feed()
        notifier.status("x")
        notifier.stopping()
    notifier.close()
    assert notifier.is_wanted == address.startswith("/")


@pytest.mark.parametrize(
    ("variables", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "me"}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(variables: dict[str, str], period_s: float | None) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/nowhere", **variables})
    assert notifier.watchdog_s == period_s
    assert notifier.feeding_s == (float("inf") if period_s is None else period_s / 2)


def test_the_line_for_people() -> None:
    numbers: dict[str, Any] = {"health": "healthy", "as_of": 1_234, "lag_events": 0, "health_reasons": []}
    assert status_line(numbers) == "healthy, as of event 1234"
    numbers.update(health="degraded", lag_events=3, health_reasons=["the disk is full", "and more"])
    assert status_line(numbers) == "degraded, as of event 1234, 3 behind; the disk is full; and more"


def test_progress_is_told_within_a_batch(tmp_path: Path) -> None:
    """A slow fold is no hanging one."""
    path = str(tmp_path / "ledger.db")
    with EventLog(path) as log:
        log.append_many([("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": 0.5}}) for _ in range(1_000)])
    instance = Instance.of(path)
    instance.directory.mkdir(mode=0o700)
    writer, status, signs = StoreWriter(instance), Status(path), []
    folds = all_folds()
    follower = Follower(path, writer, folds, status, lambda: signs.append(status.followed_monotonic))
    generations = {fold: writer.begin_generation(fold) for fold in folds}
    writer.flip(writer.header.position, generations, [])
    follower.adopt_published()
    signs.clear()
    while not follower.step().is_complete:
        pass
    assert len(signs) > 1_000 / 100
    assert signs == sorted(signs)
    follower.close()
    writer.close(is_clean=True)
