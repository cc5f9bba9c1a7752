"""Processes that begin and end: two daemons at once, and exits whatever the daemon does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pmm_cached.main import _do_not_preempt_writers
from tests.conftest import StartDaemon
from tests.support.daemons import DEADLINE_S, environment
from tests.support.starts import check_two_at_once

# Two daemons at once.


def test_of_two_daemons_started_at_once_exactly_one_serves(ledger: str, tmp_path: Path) -> None:
    check_two_at_once(ledger, tmp_path, 10)


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
    assert policies(start_daemon(ledger, forked=False).process.pid) == {os.SCHED_BATCH}


def test_a_policy_that_the_user_has_chosen_stays() -> None:
    """In a thread: beside other work, a whole daemon of this policy would not get a processor for minutes."""
    found: list[int] = []

    def choose() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        _do_not_preempt_writers()
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=choose)
    thread.start()
    thread.join()
    assert found == [os.SCHED_IDLE]
