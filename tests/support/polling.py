"""Looking again and again costs little."""

from __future__ import annotations

import time


def pause(waited_s: float) -> None:
    """Sleep between two looks: the longer the wait has been, the longer, from 2 to 20 ms."""
    time.sleep(min(max(0.002, waited_s / 10), 0.02))
