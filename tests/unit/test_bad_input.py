"""Wrong files, wrong settings, wrong messages: one clear line, and nothing created or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_shm.errors import (
    ConfigError,
)
from pmm_shm_client import EventLog, connect
from tests.support.messages import one_line

# Settings.


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(ledger: str, timeout: float) -> None:
    for action in (lambda: connect(ledger, timeout=timeout), lambda: EventLog(ledger, timeout=timeout)):
        with pytest.raises(ConfigError) as caught:
            action()
        one_line(caught.value, "timeout")


def test_a_wrong_consistency_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(tmp_path / "absent.db", consistency="eventually")  # type: ignore[arg-type]
    one_line(caught.value, "consistency", "'eventually'")
