"""Waits for conditions of other processes: looking again and again costs little."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE_S = 30.0
_T = TypeVar("_T")


def until(condition: Callable[[], _T], what: str = "", deadline_s: float = DEADLINE_S) -> _T:
    """The first true value of `condition`; fails where a look that began after the deadline found none."""
    began = time.monotonic()
    while True:
        # Before the look: one that a busy machine held up says nothing about the deadline.
        waited_s = time.monotonic() - began
        value = condition()
        if value:
            return value
        if waited_s >= deadline_s:
            raise AssertionError(f"not within {deadline_s:g} s: {what or condition}")
        pause(waited_s)


def pause(waited_s: float) -> None:
    """Sleep between two looks: the longer the wait has been, the longer, from 2 to 20 ms."""
    time.sleep(min(max(0.002, waited_s / 10), 0.02))
