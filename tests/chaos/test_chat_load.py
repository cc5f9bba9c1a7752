"""The proof under load: four chat workers on one ledger, and a daemon that is killed twice."""

from __future__ import annotations

from bench.chat import run
from pmm_shm.ledger.eventlog import EventLog

WORKERS, TURNS, KILLS = 4, 200, 2


def test_four_workers_and_a_daemon_that_dies(ledger: str) -> None:
    report = run(ledger, WORKERS, TURNS, KILLS, recall=2)
    assert report.first_bad_id is None
    # The greeting, too.
    assert report.messages == report.answers == WORKERS * (TURNS + 1)
    ((as_of, context),) = report.contexts
    with EventLog(ledger) as log:
        events = log.read_all()
    assert as_of == events[-1]["id"] == len(events)
    assert "Name: Echo\n" in context
    # Every message and answer has its index entry, and every turn is whole: in one worker's order, if not in the log's.
    named = {event["meta"]["eid"] for event in events if event["kind"] == "embedding_indexed"}
    assert named == {event["id"] for event in events if event["kind"] in ("user", "response")}
    for worker in range(WORKERS):
        mine = [
            event["content"] for event in events if event["kind"] == "user" and f"worker {worker}" in event["content"]
        ]
        assert len(mine) == 1 + TURNS // 2
