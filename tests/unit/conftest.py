"""Unit tests start no process, connect to nothing and never sleep: one that does fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

_FORBIDDEN = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "socket.connect"}
_is_unit_test = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    # `ctypes.util.find_library` asks this program for the name of a library.
    if _is_unit_test and event in _FORBIDDEN and arguments[:1] != ("/sbin/ldconfig",):
        pytest.fail(f"{event}{arguments!r}: not in tests/unit, but in tests/process")


# Audit hooks cannot be removed: this one does nothing outside of unit tests.
sys.addaudithook(_refuse)


def _no_sleep(seconds: float) -> NoReturn:
    pytest.fail(f"sleep({seconds}): not in tests/unit, but in tests/process")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    global _is_unit_test
    monkeypatch.setattr(time, "sleep", _no_sleep)
    _is_unit_test = True
    yield
    _is_unit_test = False
