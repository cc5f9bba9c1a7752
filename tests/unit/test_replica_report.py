"""What a follower reports, and how the daemon reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pmm_replicator.report import ReplicationReport
from pmm_shm.ledger.source.report import REPORT_FILE, ReplicaStatus, read_status


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def status(directory: Path, clock: Clock | None = None) -> ReplicaStatus:
    found = read_status(directory, clock or Clock())
    assert found is not None
    return found


def test_a_follower_that_has_looked_is_not_behind(tmp_path: Path, clock: Clock) -> None:
    report = ReplicationReport(tmp_path, "agent", clock)
    report.update(server="db:5432", timeline=3, forks=1, lost_files=["a"])
    report.looked(7, 7)
    report.update()
    clock.now_s += 5.0
    found = status(tmp_path, clock)
    assert (found.pid, found.is_running, found.name, found.server) == (os.getpid(), True, "agent", "db:5432")
    assert (found.timeline, found.forks, found.lost_files) == (3, 1, ("a",))
    assert (found.head_id, found.source_head_id, found.lag_events, found.lag_ms) == (7, 7, 0, 0)
    assert found.looked_ms == 5_000


def test_the_lag_counts_from_when_it_began(tmp_path: Path, clock: Clock) -> None:
    report = ReplicationReport(tmp_path, "agent", clock)
    report.looked(7, 9)
    report.update()
    clock.now_s += 0.25
    report.looked(8, 9)
    report.update()
    clock.now_s += 5.0
    found = status(tmp_path, clock)
    assert (found.head_id, found.lag_events) == (8, 1)
    assert (found.lag_ms, found.looked_ms) == (5_250, 5_000)
    report.looked(9, 9)
    report.update()
    assert (status(tmp_path).lag_events, status(tmp_path).lag_ms) == (0, 0)


def test_a_problem_counts_from_the_last_look_and_ends_with_the_next(tmp_path: Path, clock: Clock) -> None:
    report = ReplicationReport(tmp_path, "agent", clock)
    report.looked(7, 7)
    report.update(problem="no primary")
    clock.now_s += 5.0
    found = status(tmp_path, clock)
    assert (found.problem, found.lag_ms) == ("no primary", found.looked_ms)
    report.looked(7, 7)
    assert status(tmp_path).problem is None


def test_a_follower_that_never_looked_stands_still_since_the_first_one_started(tmp_path: Path, clock: Clock) -> None:
    ReplicationReport(tmp_path, "agent", clock).update(problem="no primary")
    clock.now_s += 0.5
    ReplicationReport(tmp_path, "agent", clock).update()
    clock.now_s += 5.0
    found = status(tmp_path, clock)
    assert found.looked_ms is None
    assert found.lag_ms == 5_500
    first = ReplicationReport(tmp_path, "agent", clock)
    first.looked(1, 1)
    first.update()
    ReplicationReport(tmp_path, "agent", clock).update()
    assert status(tmp_path).looked_ms is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x"}', "\xff"])
def test_what_is_no_report_is_none(tmp_path: Path, clock: Clock, text: str) -> None:
    (tmp_path / REPORT_FILE).write_text(text, encoding="latin-1")
    assert read_status(tmp_path) is None
    # The next follower reports all the same.
    report = ReplicationReport(tmp_path, "agent", clock)
    report.looked(1, 1)
    assert status(tmp_path).head_id == 1


def test_many_looks_in_a_row_are_not_each_written(tmp_path: Path, clock: Clock) -> None:
    report = ReplicationReport(tmp_path, "agent", clock)
    report.looked(1, 1)
    report.looked(2, 2)
    assert status(tmp_path).head_id == 1
    # A problem that is over is written at once.
    report.update(problem="no primary")
    report.looked(3, 3)
    assert (status(tmp_path).head_id, status(tmp_path).problem) == (3, None)


def test_a_process_that_is_gone_does_not_run(tmp_path: Path, clock: Clock) -> None:
    report = ReplicationReport(tmp_path, "agent", clock)
    report.looked(1, 1)
    values: dict[str, Any] = json.loads((tmp_path / REPORT_FILE).read_text())
    (tmp_path / REPORT_FILE).write_text(json.dumps({**values, "pid": 2**22 + 1}))
    assert not status(tmp_path).is_running
