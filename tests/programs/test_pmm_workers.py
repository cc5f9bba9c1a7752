"""Several processes of PMM on one ledger: what is checked before an append still holds when it is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.run_golden import make_ledger

_WORKER = """
import sys
from importlib import import_module
from tests.support.launched import launched

with launched(strict=True):
    log = import_module("pmm.storage.eventlog").EventLog(sys.argv[1])
    tracker = import_module("pmm.commitments.tracker").CommitmentTracker(log)
    print("ready", flush=True)
    sys.stdin.readline()
    closed = [number for number in range(20) if tracker.close_with_evidence(f"c{number}", "done", "d")]
    opened = [number for number in range(5) if tracker.add_commitment(f"{'x' * number} promise {number}")]
    print(len(closed), len(opened))
"""


def test_of_three_workers_one_closes_and_one_opens_each_commitment(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    events = [
        {
            "id": number + 1,
            "ts": f"2025-01-01T00:00:{number:02}+00:00",
            "kind": "commitment_open",
            "content": "o",
            "meta": {"cid": f"c{number}", "text": f"zz{number}"},
        }
        for number in range(20)
    ]
    make_ledger(path, events)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _WORKER, str(path)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert [sum(int(answer[place]) for answer in answers) for place in (0, 1)] == [20, 5]
    from pmm_shm.ledger.eventlog import EventLog

    with EventLog(path, create=False) as log:
        closes = [event.meta["cid"] for event in log.events("commitment_close", limit=None)]
        opens = [event.meta["text"] for event in log.events("commitment_open", limit=None)]
        assert log.verify_chain().ok
    assert sorted(closes) == sorted({f"c{number}" for number in range(20)}), json.dumps(closes)
    assert len(opens) == len(set(opens)) == 25
