"""`decide`: several workers on one frame, of which one acts."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.support import ledgers
from tests.support.fork_daemon import ForkedDaemon
from tests.support.forking import in_child

COMMITMENTS = 40
WORKERS = 3


@pytest.fixture(params=["wal", "delete"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return ledgers.build(tmp_path / "agent.db", 0, journal=request.param)


def test_a_decision_is_made_again_until_it_holds(path: str) -> None:
    with EventLog(path) as other, connect(path) as cache:
        seen = []

        def decision(frame: Any) -> list[Any]:
            seen.append(frame.as_of)
            if len(seen) < 4:
                other.append("user", "in between")
            return [("response", f"after {frame.as_of}", {})]

        assert cache.decide(decision) == [4]
        assert seen == [0, 1, 2, 3]
        assert cache.event(4).content == "after 3"  # type: ignore[union-attr]


def close_one(frame: Any) -> list[Any]:
    """The oldest commitment that is open is done."""
    return [("commitment_close", f"worker {os.getpid()}", {"cid": cid}) for cid in list(frame.commitments().open)[:1]]


def work(path: str, answer: str) -> None:
    """Close commitments until none is open; the answer is how many this worker closed, and how often it decided."""
    decided = 0

    def decision(frame: Any) -> list[Any]:
        nonlocal decided
        decided += 1
        time.sleep(0.001)  # Whoever thinks lets others come first.
        return close_one(frame)

    with connect(path) as cache:
        closed = 0
        while cache.decide(decision):
            closed += 1
    Path(answer).write_text(json.dumps([closed, decided]), encoding="utf-8")


@pytest.mark.parametrize("is_served", [False, True])
def test_workers_that_decide_at_once_close_each_commitment_once(path: str, tmp_path: Path, is_served: bool) -> None:
    with EventLog(path) as log:
        log.append_many([("commitment_open", "", {"cid": f"c{n}", "text": f"t{n}"}) for n in range(COMMITMENTS)])
    daemon = ForkedDaemon(Path(path)) if is_served else None
    try:
        answers = [str(tmp_path / f"answer-{number}") for number in range(WORKERS)]
        workers = [in_child(work, path, answer) for answer in answers]
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    finally:
        if daemon is not None:
            daemon.stop()
    with connect(path) as cache:
        closed = [event.meta["cid"] for event in cache.events("commitment_close", limit=None)]
        assert closed == [f"c{n}" for n in range(COMMITMENTS)]
    counts = [json.loads(Path(answer).read_text(encoding="utf-8")) for answer in answers]
    assert sum(count for count, _ in counts) == COMMITMENTS
    # They did meet: otherwise this proves nothing.
    assert sum(decided for _, decided in counts) >= COMMITMENTS + WORKERS
