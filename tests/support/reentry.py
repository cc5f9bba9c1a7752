"""Calls in the middle of an append."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import (
    PmmShmError,
)
from pmm_shm.ledger import new_events
from pmm_shm.ledger.eventlog import EventLog


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with EventLog(tmp_path / "l.db") as log:
        yield log


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], list[Exception | None]]:
    """Have something called once by this thread in the middle of its next append; what it raised is in the list."""

    def arrange(action: Callable[[], Any]) -> list[Exception | None]:
        outcome: list[Exception | None] = []
        original = new_events.hash_of_parts

        def interrupted(*parts: Any) -> str:
            if not outcome:
                outcome.append(None)
                try:
                    action()
                except Exception as error:
                    outcome[0] = error
            return original(*parts)

        monkeypatch.setattr(new_events, "hash_of_parts", interrupted)
        return outcome

    return arrange


def refused(error: type[PmmShmError], action: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        action()
    assert str(caught.value)
    assert "\n" not in str(caught.value)
