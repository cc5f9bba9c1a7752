"""Calls that must not keep anybody waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SHORT_S = 0.3
SLACK_S = 5.0
"""What a busy machine may add to a deadline; the calls in question would wait for ever, or for 30 s and more."""


@contextmanager
def at_most(deadline_s: float) -> Iterator[None]:
    """The block must end within the deadline, and what a busy machine may add to it."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < deadline_s + SLACK_S


def raises_within(error: type[Exception], action: Callable[[], Any], deadline_s: float = SHORT_S) -> str:
    with at_most(deadline_s), pytest.raises(error) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text
