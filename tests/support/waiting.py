"""Clients that must not keep anybody waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

SHORT_S = 0.3
SLACK_S = 5.0
"""What a busy machine may add to a deadline; the calls in question would wait for ever, or for 30 s and more."""


def raises_within(error: type[Exception], action: Callable[[], Any], deadline_s: float = SHORT_S) -> str:
    started = time.monotonic()
    with pytest.raises(error) as caught:
        action()
    assert time.monotonic() - started < deadline_s + SLACK_S
    text = str(caught.value)
    assert "\n" not in text
    return text
