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
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from pmm_cached.roles import Roles
from pmm_shm import limits
from pmm_shm.errors import ConfigError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.wire import protocol
from pmm_shm.wire.results import ClaimResult
from pmm_shm_chat.autonomy import Autonomy
from pmm_shm_client import connect
from pmm_shm_client.roles import Role
from tests.support.daemons import environment, until
from tests.support.fork_daemon import ForkedDaemon

LEASE = limits.ROLE_LEASE_S


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Elections(RuleBasedStateMachine):
    """Three workers and one role: a worker that believes it holds the role is the only one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.daemon = Roles(self.clock)
        self.tokens: list[int | None] = [None] * 3
        self.until = [0.0] * 3
        self.granted: list[int] = []

    @rule(worker=st.integers(0, 2), answer_takes_s=st.floats(0.0, LEASE / 2))
    def claim(self, worker: int, answer_takes_s: float) -> None:
        asked = self.clock.now
        claim = self.daemon.claim("tick", self.tokens[worker])
        self.clock.now += answer_takes_s
        assert claim is not None
        assert 0 <= claim.remaining_ms <= LEASE * 1_000
        if claim.token is not None and claim.token != self.tokens[worker]:
            assert claim.token not in self.granted
            self.granted.append(claim.token)
        self.tokens[worker] = claim.token
        self.until[worker] = asked + LEASE if claim.token is not None else 0.0
        self.check()

    @rule(worker=st.integers(0, 2))
    def resign(self, worker: int) -> None:
        token = self.tokens[worker]
        if token is not None:
            self.until[worker] = 0.0
            self.daemon.resign("tick", token)

    @rule(seconds=st.floats(0.0, 2 * LEASE))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.check()

    @rule()
    def restart(self) -> None:
        self.daemon = Roles(self.clock)
        self.granted = []

    def check(self) -> None:
        assert sum(self.clock.now < until for until in self.until) <= 1


TestElections = Elections.TestCase
TestElections.settings = settings(max_examples=200, deadline=None)


def test_no_role_in_the_first_lease_time() -> None:
    clock = Clock()
    roles = Roles(clock)
    assert roles.claim("tick", None) == ClaimResult(None, int(LEASE * 1_000))
    clock.now += LEASE
    claim = roles.claim("tick", None)
    assert claim is not None
    assert claim.token is not None
    assert roles.claim("tick", None) == ClaimResult(None, int(LEASE * 1_000))
    assert roles.claim("other", None) != claim


def test_roles_are_bounded() -> None:
    clock = Clock()
    roles = Roles(clock)
    clock.now += LEASE
    for number in range(limits.ROLES_MAX):
        assert roles.claim(f"role {number}", None) is not None
    assert roles.claim("one more", None) is None
    clock.now += LEASE
    assert roles.claim("one more", None) is not None


def test_without_a_daemon_nobody_holds_a_role(ledger: str) -> None:
    role = Role(Instance.of(ledger), "tick")
    assert not role.claim()
    assert not role.is_held()
    role.resign()


@pytest.mark.parametrize(
    "args",
    [
        {"role": "", "token": None},
        {"role": "x" * 65, "token": None},
        {"role": 5, "token": None},
        {"role": "tick", "token": -1},
        {"role": "tick", "token": "1"},
        {"role": "tick"},
    ],
)
def test_claims_are_checked(args: dict[str, Any]) -> None:
    data = protocol.Request(1, protocol.CLAIM, args).pack()
    with pytest.raises(protocol.ProtocolError):
        protocol.unpack_request(data, protocol.ORDINARY)


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


def test_one_of_many_workers_ticks(ledger: str, workers: Callable[[], list[subprocess.Popen[str]]]) -> None:
    states: dict[int, str] = {}
    running = workers()
    time.sleep(0.3)
    assert ticks(ledger) == []
    with ForkedDaemon(Path(ledger)):
        until(lambda: len(ticks(ledger)) >= 5, "ticks")
        (leader,) = elected(running, states)
        began, before = time.monotonic(), len(ticks(ledger))
        time.sleep(1.0)
        rate = (len(ticks(ledger)) - before) / (time.monotonic() - began)
        assert rate <= 11.5
        # Stopped, it is followed by another; it finds out when it goes on.
        running[leader].send_signal(signal.SIGSTOP)
        seen = len(ticks(ledger))
        until(lambda: len(ticks(ledger)) > seen + 2, "another worker's ticks")
        states.pop(leader)
        (second,) = elected(running, states)
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
    with ForkedDaemon(Path(ledger)):
        started = time.monotonic()
        until(lambda: len(ticks(ledger)) > seen, "ticks go on")
        assert time.monotonic() - started > LEASE * 0.9
    with EventLog(ledger) as log:
        assert log.verify_chain().first_bad_id is None
        events = log.read_all()
    for event in ticks(ledger):
        assert set(event["meta"]) == {"telemetry", "stage"}
        assert set(event["meta"]["telemetry"]) == {"IAS", "GAS"}
    assert any(event["kind"] == "reflection" for event in events)


def test_parameters_that_mean_nothing(ledger: str) -> None:
    with connect(ledger) as cache:
        for seconds, events in ((0, 1), (-1.0, 1), (float("nan"), 1), (1.0, -1), (1.0, 2.5)):
            with pytest.raises(ConfigError):
                Autonomy(cache, seconds, events)  # type: ignore[arg-type]
