"""Roles and the ticks that hang on them: one holder at a time, whoever dies, stops or restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError
from pmm_shm.ledger.eventlog import EventLog
from tests.support.daemons import environment, until
from tests.support.fork_daemon import ForkedDaemon

LEASE = limits.ROLE_LEASE_S
WORKER = """
import sys, time
from pmm_shm_client import connect
from pmm_shm_chat.autonomy import Autonomy
with connect(sys.argv[1]) as cache:
    autonomy = Autonomy(cache, 0.1, 20)
    autonomy.start()
    was = False
    while True:
        if autonomy.is_elected != was:
            was = not was
            print("elected" if was else "not", flush=True)
        time.sleep(0.01)
"""


@pytest.fixture
def workers(ledger: str) -> Iterator[Callable[[], list[subprocess.Popen[str]]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> list[subprocess.Popen[str]]:
        for _ in range(3):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, ledger], env=environment(), stdout=subprocess.PIPE, text=True
                )
            )
            os.set_blocking(started[-1].stdout.fileno(), False)  # type: ignore[union-attr]
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ticks(ledger: str) -> list[dict[str, Any]]:
    with EventLog(ledger) as log:
        return [event for event in log.read_all() if event["kind"] == "autonomy_tick"]


def elected(workers: list[subprocess.Popen[str]], states: dict[int, str]) -> list[int]:
    for number, process in enumerate(workers):
        assert process.stdout is not None
        try:
            words = os.read(process.stdout.fileno(), 65_536).decode().split()
        except BlockingIOError:
            continue
        if words:
            states[number] = words[-1]
    return [number for number, state in states.items() if state == "elected"]


def is_stopped_outside_an_append(process: subprocess.Popen[str], ledger: str) -> bool:
    """Stop it; one that stands within an append, and would keep all others from theirs, goes on."""
    process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    until(lambda: state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T", "it is stopped")
    try:
        with EventLog(ledger, timeout=0.5) as log:
            log.append("note")
    except LedgerBusyError:
        process.send_signal(signal.SIGCONT)
        return False
    return True


def test_one_of_many_workers_ticks(ledger: str, workers: Callable[[], list[subprocess.Popen[str]]]) -> None:
    states: dict[int, str] = {}
    running = workers()
    time.sleep(0.3)
    assert ticks(ledger) == []
    with ForkedDaemon(Path(ledger)):
        until(lambda: len(ticks(ledger)) >= 5, "ticks")
        (leader,) = until(lambda: elected(running, states), "it knows")
        began, before = time.monotonic(), len(ticks(ledger))
        time.sleep(1.0)
        rate = (len(ticks(ledger)) - before) / (time.monotonic() - began)
        assert rate <= 11.5
        # Stopped, it is followed by another; it finds out when it goes on.
        until(lambda: is_stopped_outside_an_append(running[leader], ledger), "it stands")
        seen = len(ticks(ledger))
        until(lambda: len(ticks(ledger)) > seen + 2, "another worker's ticks")
        states.pop(leader)
        (second,) = until(lambda: elected(running, states), "it knows")
        running[leader].send_signal(signal.SIGCONT)
        until(lambda: elected(running, states) == [second], "the first one knows")
        # Killed, too.
        running[second].kill()
        states.pop(second)
        seen = len(ticks(ledger))
        until(lambda: len(ticks(ledger)) > seen + 2, "a third worker's ticks")
    # Without a daemon the ticks end within a lease time.
    time.sleep(LEASE + 0.3)
    seen = len(ticks(ledger))
    started = time.monotonic()
    with ForkedDaemon(Path(ledger)):
        until(lambda: len(ticks(ledger)) > seen, "ticks go on")
        assert time.monotonic() - started > LEASE * 0.9
    with EventLog(ledger) as log:
        assert log.verify_chain().first_bad_id is None
        events = log.read_all()
    for event in ticks(ledger):
        assert set(event["meta"]) == {"telemetry", "stage"}
        assert set(event["meta"]["telemetry"]) == {"IAS", "GAS"}
    assert any(event["kind"] == "reflection" for event in events)
