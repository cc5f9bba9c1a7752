"""Hostile messages, many and of another seed each time, and a peer that reads no answer."""

from __future__ import annotations

import pytest
import zmq

from pmm_shm.instance.paths import file_id
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import find_endpoints
from tests.conftest import StartDaemon
from tests.support import answers
from tests.support.attacks import (
    MESSAGES,
    Honest,
    anonymous_bytes,
    check_attack,
    dealer,
    events,
)
from tests.support.daemons import Daemon, until
from tests.support.fuzz_commands import seed_of


@pytest.fixture
def daemon(ledger: str, start_daemon: StartDaemon) -> Daemon:
    """A daemon of a ledger with some events, without the periodic verification, so that nothing changes by itself."""
    answers.insert(ledger, events())
    return start_daemon(ledger, "--verify-every", "0", "--embedder", "none")


def test_hostile_messages_of_another_seed_each_time(daemon: Daemon) -> None:
    seed = seed_of(None)
    for number in range(5):
        check_attack(daemon, seed + number, MESSAGES)


def test_100_000_hostile_messages(daemon: Daemon) -> None:
    check_attack(daemon, seed_of(4), MESSAGES)


def test_a_peer_that_reads_no_answer_costs_bounded_memory(daemon: Daemon) -> None:
    for _ in range(200):
        daemon.stats()
    memory, before = anonymous_bytes(daemon.pid), daemon.stats()["commands"]
    with dealer(find_endpoints(daemon.instance).commands) as peer:
        peer.setsockopt(zmq.RCVHWM, 1)
        for number in range(10_000):
            peer.send(protocol.Request(number, protocol.STATS, {}, file_id(daemon.instance.ledger)).pack())
        with Honest(daemon) as honest:
            until(lambda: daemon.stats()["commands"] - before > 10_000, "all are carried out")
    assert honest.errors == []
    assert anonymous_bytes(daemon.pid) - memory < 16 << 20
