"""Hostile messages of another seed each time."""

from __future__ import annotations

import pytest

from tests.conftest import StartDaemon
from tests.support import answers
from tests.support.attacks import (
    MESSAGES,
    check_attack,
    events,
)
from tests.support.daemons import Daemon
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
