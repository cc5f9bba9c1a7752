"""Roles and the ticks that hang on them: one holder at a time, whoever dies, stops or restarts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from pmm_cached.roles import Roles
from pmm_shm import limits
from pmm_shm.errors import ConfigError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm.wire.results import ClaimResult
from pmm_shm_chat.autonomy import Autonomy
from pmm_shm_client import connect
from pmm_shm_client.roles import Role
from tests.support.profiles import examples

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
TestElections.settings = settings(max_examples=examples(200))


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
    data = protocol.Request(1, protocol.CLAIM, args, None).pack()
    with pytest.raises(protocol.ProtocolError):
        protocol.unpack_request(data, protocol.ORDINARY)


def test_parameters_that_mean_nothing(ledger: str) -> None:
    with connect(ledger) as cache:
        for seconds, events in ((0, 1), (-1.0, 1), (float("nan"), 1), (1.0, -1), (1.0, 2.5)):
            with pytest.raises(ConfigError):
                Autonomy(cache, seconds, events)  # type: ignore[arg-type]
