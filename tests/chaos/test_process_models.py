"""Two hundred clients at once."""

from __future__ import annotations

from tests.conftest import StartDaemon
from tests.support.crowd import check_crowd


def test_two_hundred_clients_at_once(ledger: str, start_daemon: StartDaemon) -> None:
    check_crowd(ledger, start_daemon(ledger), 200)
