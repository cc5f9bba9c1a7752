"""Calls that come at a wrong moment or with a wrong argument: each is refused in one line, and nothing is damaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pmm_shm.errors import (
    DaemonAbsentError,
    LedgerBusyError,
    PmmShmError,
)
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.conftest import StartDaemon

# Re-entry.


def test_another_log_of_the_ledger_waits_in_vain_within_an_append(log: EventLog, within: Any) -> None:
    with EventLog(log.path, timeout=0.05) as other:
        outcome = within(lambda: other.append("nested"))
        assert log.append("outer") == 1
        assert isinstance(outcome[0], LedgerBusyError)


# Arguments.


def refused(error: type[PmmShmError], action: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        action()
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("timeout", [math.inf, 1e9, 1 << 80])
def test_a_long_timeout_is_as_long_as_the_protocol_allows(
    ledger: str, start_daemon: StartDaemon, timeout: float
) -> None:
    with connect(ledger) as cache:
        refused(DaemonAbsentError, lambda: cache.wait_for(9, timeout))
        start_daemon(ledger)
        event_id = cache.append("x")
        assert cache.wait_for(event_id, timeout) >= event_id
        assert cache.invalidate(timeout=timeout) >= event_id
