"""Two daemons that are started at once, fifty times."""

from __future__ import annotations

from pathlib import Path

from tests.support.starts import check_two_at_once


def test_of_two_daemons_started_at_once_exactly_one_serves(ledger: str, tmp_path: Path) -> None:
    check_two_at_once(ledger, tmp_path, 50)
