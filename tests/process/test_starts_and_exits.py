"""Processes that begin and end: two daemons at once, and exits whatever the daemon does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire.protocol import PING
from pmm_shm_client import connect
from pmm_shm_client.commands import call
from tests.conftest import StartDaemon
from tests.support.answers import everything, replayed
from tests.support.daemons import DEADLINE_S, environment, until
from tests.support.fork_daemon import in_child, serve_at

# Two daemons at once.

ROUNDS = 50


def answering_pid(ledger: str) -> int | None:
    try:
        pid: int = call(Instance.of(ledger), PING, {}, 1.0)["pid"]
    except DaemonError:
        return None
    return pid


@contextlib.contextmanager
def two_at_once(ledger: str, folder: Path, turn: int) -> Iterator[list[Any]]:
    instant = time.monotonic() + 0.1
    daemons = [
        in_child(serve_at, instant, ["--log-level", "error", ledger], str(folder / f"{turn}-{name}")) for name in "ab"
    ]
    try:
        yield daemons
    finally:
        for daemon in daemons:
            if daemon.is_alive():
                daemon.kill()
            daemon.join(DEADLINE_S)
            daemon.close()


def test_of_two_daemons_started_at_once_exactly_one_serves(ledger: str, tmp_path: Path) -> None:
    """Hazard 11: fifty times, each second time after the former one was killed: never both, never none."""
    with connect(ledger) as cache:
        for turn in range(ROUNDS):
            with two_at_once(ledger, tmp_path, turn) as daemons:
                until(lambda both=daemons: not all(one.is_alive() for one in both), "one of them exits")  # type: ignore[misc]
                winner, loser = sorted(daemons, key=lambda one: one.exitcode is not None)
                assert winner.is_alive(), f"turn {turn}: none serves"
                loser_name = "ab"[daemons.index(loser)]
                said = (tmp_path / f"{turn}-{loser_name}").read_text(encoding="utf-8")
                assert loser.exitcode == 1, said
                assert said.count("\n") == 1
                assert said.startswith(f"pmm-cached: {ledger}: another pmm-cached (pid ")
                until(lambda: answering_pid(ledger) is not None, "the winner answers")
                # The endpoint was not stolen, and the winner's record is what clients find.
                assert answering_pid(ledger) == winner.pid
                event_id = cache.append("user", f"turn {turn}")
                assert cache.wait_for(event_id, DEADLINE_S) >= event_id
                assert winner.is_alive()
                os.kill(winner.pid, signal.SIGKILL if turn % 2 else signal.SIGTERM)
                winner.join(DEADLINE_S)
                assert winner.exitcode == (-signal.SIGKILL if turn % 2 else 0)
        assert everything(cache) == replayed(ledger)
        assert cache.metrics().as_of == ROUNDS


# Exits.

EXITING = """
import asyncio, contextlib, json, sys, threading, time, zmq
from pmm_shm.wire import protocol
from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm_client import commands, connect, connect_async
path, is_closing = sys.argv[1], sys.argv[2] == "close"
cache = connect(path)
cache.append("identity_adopt", "Ada")
cache.frame(), cache.embed("some text"), cache.stats()
lines = []
if sys.argv[3] == "served":
    lines = [commands.CommandConnection(cache._instance, protocol.PING) for _ in range(4)]
    assert all(line.ask(protocol.PING, {}, 10.0)["pid"] for line in lines)

async def listen(ready):
    async with await connect_async(path) as other:
        try:
            async for _ in other.announcements():
                ready.set()
        except DaemonError:
            ready.set()

ready = threading.Event()
threading.Thread(target=lambda: asyncio.run(listen(ready)), daemon=True).start()
while not ready.is_set():
    cache.append("autonomy_tick")
    ready.wait(0.01)
print("ready", flush=True)
sys.stdin.readline()
# The daemon is what it is now: absent, stopped, or killed.
for line in lines:
    # More than the system holds: the rest, up to the high-water mark, stays in this process where nobody reads.
    with contextlib.suppress(zmq.Again):
        for number in range(200):
            line._socket.send(b"x" * 60_000, zmq.NOBLOCK)
for line in lines[:2]:
    line._socket.close()

def wait_in_vain():
    try:
        cache.wait_for(10**9, 60.0)
    except DaemonError:
        pass

threading.Thread(target=wait_in_vain, daemon=True).start()
for call in (lambda: cache.wait_for(10**9, 0.1), lambda: cache.verify(timeout=0.1), cache.stats,
             lambda: cache.embed("another text"), cache.frame):
    try:
        call()
    except DaemonError:
        pass
if is_closing:
    cache.close()
print(time.monotonic(), flush=True)
sys.exit(0)
"""


@pytest.mark.parametrize(
    ("state", "close"),
    [("absent", "leave"), ("stopped", "leave"), ("stopped", "close"), ("killed", "leave"), ("serving", "leave")],
)
def test_a_process_ends_within_a_second_of_its_exit(
    ledger: str, start_daemon: StartDaemon, state: str, close: str
) -> None:
    """Hazard 15: with sockets open, messages unsent, a subscription and a waiter, whatever became of the daemon."""
    daemon = None if state == "absent" else start_daemon(ledger)
    child = subprocess.Popen(
        [sys.executable, "-c", EXITING, ledger, close, "absent" if daemon is None else "served"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        if daemon is not None and state != "serving":
            daemon.freeze() if state == "stopped" else daemon.kill()
        child.stdin.write("\n")
        child.stdin.flush()
        exit_began = float(child.stdout.readline())
        assert child.wait(DEADLINE_S) == 0
        # On a machine that is busy with other things it may wait for its turn, but not for the daemon.
        waited_for_turn_s = min(10.0, os.getloadavg()[0] / (os.cpu_count() or 1) * 0.2)
        assert time.monotonic() - exit_began < 1.0 + waited_for_turn_s
    finally:
        child.kill()
        _, errors = child.communicate()
    assert errors == ""


# How the daemon shares the processor.


def policies(pid: int) -> set[int]:
    return {os.sched_getscheduler(int(name)) for name in os.listdir(f"/proc/{pid}/task")}


def test_the_daemon_pre_empts_no_writer_on_waking(ledger: str, start_daemon: StartDaemon) -> None:
    assert policies(start_daemon(ledger).process.pid) == {os.SCHED_BATCH}


def test_a_daemon_keeps_the_policy_that_it_was_started_under(ledger: str, start_daemon: StartDaemon) -> None:
    def start() -> None:
        # Of this thread alone, and of the processes that it starts.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        pids.append(start_daemon(ledger).process.pid)

    pids: list[int] = []
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert policies(pids[0]) == {os.SCHED_IDLE}
