"""Writers and readers at once, as processes, on one ledger: while they work, and the state that they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_client import EventLog, connect
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import answers_of, canonical, make_ledger

WORKERS = 4
KINDS = [
    ("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": 0.4}, "stage": "S1"}),
    ("commitment_open", "promise", {"cid": "c", "text": "t"}),
    ("evidence_candidate", "", {"cid": "c"}),
    ("commitment_close", "", {"cid": "c"}),
    ("reflection", "my name is Echo and identity persists", {}),
    ("trait_update", "", {"trait": "o", "delta": 0.01}),
    ("autonomy_directive", "Keep the ledger", {"source": "reply"}),
    ("user", "hello", {}),
]


def write(path: str, number: int, until: float) -> dict[str, Any]:
    """Append as fast as it goes; after each append the own event must be in the next read."""
    appended, longest_s, as_of = 0, 0.0, 0
    with connect(path) as cache:
        while time.monotonic() < until:
            kind, content, meta = KINDS[appended % len(KINDS)]
            meta = {**meta, "cid": f"{number}-{appended // 4 % 50}"} if "cid" in meta else meta
            started = time.monotonic()
            event_id = cache.append(kind, content, meta)
            longest_s = max(longest_s, time.monotonic() - started)
            appended += 1
            seen = cache.metrics().as_of
            assert seen >= event_id, f"own append {event_id} is missing: the read stands at {seen}"
            assert seen >= as_of, f"as_of went back from {as_of} to {seen}"
            as_of = seen
    return {"appended": appended, "longest_ms": longest_s * 1_000}


def read(path: str, number: int, until: float) -> dict[str, Any]:
    """Read everything in turns; `as_of` never goes back, and a frame is of one position."""
    as_of, reads = 0, 0
    with connect(path) as cache:
        while time.monotonic() < until:
            method = ("metrics", "identity", "commitments", "stage", "recent", "frame")[(reads + number) % 6]
            seen = getattr(cache, method)().as_of
            assert seen >= as_of, f"as_of went back from {as_of} to {seen}"
            as_of = seen
            reads += 1
        frame = cache.frame()
        assert frame.metrics().as_of == frame.recent().as_of == frame.as_of
    return {"reads": reads}


def fork_and_work(path: str, number: int, until: float) -> dict[str, Any]:
    """A process that has read and appended forks; both sides go on."""
    with connect(path) as cache:
        cache.append("user", f"before the fork {number}")
        cache.metrics()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                result = write(path, number + 100, until)
                own = cache.append("user", "the child, with the parent's cache")
                assert cache.metrics().as_of >= own
                Path(f"{path}.child-{number}").write_text(json.dumps(result["appended"] + 1))
                status = 0
            finally:
                os._exit(status)
        own = cache.append("user", "the parent, with its cache")
        assert cache.metrics().as_of >= own
    result = write(path, number, until)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
    child = json.loads(Path(f"{path}.child-{number}").read_text())
    return {**result, "appended": result["appended"] + 2 + child}


def run_workers(path: Path, seconds: float, works: list[str]) -> list[dict[str, Any]]:
    until = time.monotonic() + seconds
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, work, str(path), str(number), str(until)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number, work in enumerate(works)
    ]
    results = []
    for process in processes:
        out, error = process.communicate(timeout=seconds + 60)
        assert process.returncode == 0, error
        results.append(json.loads(out))
    return results


def check_end_state(path: Path, expected_events: int) -> None:
    """The chain is linear, no event is lost, and what is published equals a replay."""
    with EventLog(path) as log, connect(path) as cache, pytest.MonkeyPatch.context() as environment:
        report = log.verify_chain()
        assert report.ok, report
        assert report.rows_checked == expected_events
        assert len(log.read_all()) == expected_events
        cache.wait_for(log.read_tail(limit=1)[0]["id"], 30.0)
        assert cache.verify()
        environment.setenv("PMM_USE_PROJECTION_CACHE", "false")
        environment.setenv("PMM_USE_METRICS_CACHE", "false")
        with connect(path) as replaying, connect(path, consistency="snapshot") as snapshot:
            wanted = canonical(answers_of(replaying, []))
            assert canonical(answers_of(cache, [])) == wanted
            assert canonical(answers_of(snapshot, [])) == wanted


def writers_and_readers(path: Path, journal: str, seconds: float) -> None:
    """Four of each beside a daemon; nobody starves, nothing is lost."""
    make_ledger(path, journal)
    with ForkedDaemon(path) as daemon:
        results = run_workers(path, seconds, ["write"] * WORKERS + ["read"] * WORKERS)
        appended = [result["appended"] for result in results[:WORKERS]]
        reads = [result["reads"] for result in results[WORKERS:]]
        assert min(appended) > max(appended) / 4, f"a writer starves: {appended}"
        assert max(result["longest_ms"] for result in results[:WORKERS]) < 3_000
        assert min(reads) > 100, f"a reader starves: {reads}"
        check_end_state(path, sum(appended))
        assert daemon.is_alive


if __name__ == "__main__":
    works = {"write": write, "read": read, "fork": fork_and_work}
    outcome = works[sys.argv[1]](sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    print(json.dumps(outcome))
