"""Many chat workers on one ledger, with the built-in responder, while the daemon is killed: what came of it, and how
long a turn took beside the model.

`tests/chaos/test_chat_load.py` checks a run on a small ledger; `make bench-chat` reports one on 100,000 events. It
compares a turn's time with the least that a worker without a cache would need: one full replay for its context, and the
same appends. One worker alone comes first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.daemons import Daemon, environment, until
from pmm_shm.folds.registry import built_in_folds
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.projection.replay import replay
from pmm_shm.wire import protocol
from pmm_shm_client import EventLog, connect
from pmm_shm_client.autostart import is_running
from pmm_shm_client.commands import call

_FIRST_BUILD_S = 120.0
ALONE_P50_MS, ALONE_P99_MS = 1.5, 5.0
"""The target for one worker alone, without recall, on 100,000 events."""

WORKER = """
import json, sys, time
from pmm_shm_client import EventLog, connect
from pmm_shm_chat.offline import OfflineResponder
from pmm_shm_chat.turn import Chat

ledger, name, turns, recall = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
said = [
    "Your name is Echo.", "Could you plan the garden for {}?", "What did you promise?", "Please write note {}.",
    "How are you today?", "Done: plan the garden for {}.", "Remind me to call worker {}.", "Who are you?",
]
with connect(ledger) as cache:
    chat = Chat(cache, OfflineResponder(), recall=recall)
    chat.turn("Hello from " + name)
    print("ready", flush=True)
    sys.stdin.readline()
    times, began = [], time.process_time()
    for number in range(turns):
        turn = chat.turn(said[number % len(said)].format(f"{name} {number}"))
        assert turn.response_id is not None
        times.append(turn.timings.without_model_ms)
    print(json.dumps([times, (time.process_time() - began) * 1e3 / turns]), flush=True)
    sys.stdin.readline()
    print(json.dumps([cache.context().as_of, str(cache.context())]), flush=True)
"""


@dataclass(frozen=True)
class Report:
    """The result of a run; times in ms.

    Attributes:
        contexts: the different (position, context) that the workers had at the end: one, if all is well.
        first_bad_id: of the chain; None if it is linear.
        p50_ms, p99_ms: of a turn without the model.
        cpu_ms: of a worker for a turn, on average, with what the built-in responder needs.
        replay_ms: one full replay of the same ledger.
    """

    workers: int
    turns: int
    contexts: list[tuple[int, str]]
    first_bad_id: int | None
    messages: int
    answers: int
    events: int
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    replay_ms: float


def run(ledger: str, workers: int, turns: int, kills: int, recall: int = 0) -> Report:
    """`workers` processes with `turns` turns each; the daemon is killed `kills` times meanwhile."""
    before = _counted(ledger)
    with _daemon(ledger) as restart, _workers(ledger, workers, turns, recall) as processes:
        for process in processes:
            assert _line(process) == "ready"
        # The first build of a ledger's state is not part of the cost of a turn.
        until(lambda: is_running(Instance.of(ledger)), "the daemon answers")
        call(Instance.of(ledger), protocol.INDEX, {}, _FIRST_BUILD_S)
        began = time.monotonic()
        for process in processes:
            _tell(process)
        for number in range(kills):
            _wait_for_events(ledger, before["events"] + workers * turns * 2 * (number + 1) // (kills + 1))
            restart()
        told = [json.loads(_line(process)) for process in processes]
        times = [ms for turns_ms, _ in told for ms in turns_ms]
        elapsed_s = time.monotonic() - began
        contexts = []
        for process in processes:
            _tell(process)
            as_of, text = json.loads(_line(process))
            contexts.append((as_of, text))
    after = _counted(ledger)
    with EventLog(ledger, create=False) as log:
        chain = log.verify_chain()
    return Report(
        workers,
        turns,
        sorted(set(contexts)),
        chain.first_bad_id,
        after["user"] - before["user"],
        after["response"] - before["response"],
        after["events"] - before["events"],
        elapsed_s,
        statistics.median(times),
        sorted(times)[int(len(times) * 0.99)],
        statistics.mean(cpu_ms for _, cpu_ms in told),
        _replay_ms(ledger),
    )


@contextmanager
def _daemon(ledger: str) -> Iterator[Callable[[], None]]:
    """Serve the ledger; what this gives kills the daemon and starts another."""
    daemon = Daemon(ledger)

    def restart() -> None:
        nonlocal daemon
        daemon.kill()
        time.sleep(0.05)
        daemon = Daemon(ledger)

    try:
        yield restart
    finally:
        daemon.kill()


@contextmanager
def _workers(ledger: str, count: int, turns: int, recall: int) -> Iterator[list[subprocess.Popen[str]]]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, ledger, f"worker {number}", str(turns), str(recall)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, "a worker ended before its time"
    return line


def _tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _counted(ledger: str) -> dict[str, int]:
    with connect(ledger) as cache, EventLog(ledger, create=False) as log:
        return {
            "events": cache.metrics().as_of,
            "user": len(log.query(kind="user")),
            "response": len(log.query(kind="response")),
        }


def _wait_for_events(ledger: str, event_id: int) -> None:
    with connect(ledger) as cache:
        while cache.metrics().as_of < event_id:
            time.sleep(0.005)


def _replay_ms(ledger: str) -> float:
    connection = Connection(ledger, "ro")
    try:
        began = time.perf_counter()
        replay(connection, built_in_folds())
        return (time.perf_counter() - began) * 1_000
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="length of the ledger to begin with")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--kills", type=int, default=2, help="how often the daemon is killed")
    parser.add_argument("--recall", type=int, default=0, help="messages recalled in each turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pmm-shm-chat-") as directory:
        ledger = str(Path(directory) / "agent.db")
        command = [sys.executable, "-m", "pmm_shm_cli", "generate", ledger, "--events", str(arguments.events)]
        subprocess.run(command, env=environment(), check=True, stderr=subprocess.DEVNULL)
        alone = run(ledger, 1, arguments.turns, 0, arguments.recall)
        report = run(ledger, arguments.workers, arguments.turns, arguments.kills, arguments.recall)
    if arguments.json:
        print(json.dumps({**asdict(report), "alone": asdict(alone)}))
    else:
        print(_as_text(alone, report))


def _as_text(alone: Report, report: Report) -> str:
    rows: dict[str, Any] = {
        "one worker alone, p50 and p99": (
            f"{alone.p50_ms:.2f} ms, {alone.p99_ms:.2f} ms; of its own CPU {alone.cpu_ms:.2f} ms "
            f"(target: {ALONE_P50_MS} ms, {ALONE_P99_MS} ms)"
        ),
        "workers, turns each": f"{report.workers}, {report.turns}",
        "events appended": f"{report.events} in {report.elapsed_s:.1f} s",
        "first bad id of the chain": report.first_bad_id,
        "different final contexts": len(report.contexts),
        "turn without the model, p50 and p99": f"{report.p50_ms:.2f} ms, {report.p99_ms:.2f} ms",
        "one full replay": f"{report.replay_ms:.0f} ms: {report.replay_ms / report.p50_ms:.0f} times a turn",
    }
    return "\n".join(f"{name + ':':38}{value}" for name, value in rows.items())


if __name__ == "__main__":
    main()
