"""Processes that kill themselves at a crash point."""

from __future__ import annotations

import os
import signal
import sys

from pmm_shm import crash_points

UNKNOWN_POINT = 86
"""Exit code of a process that reached a crash point which is not registered."""

DiesAt = tuple[str, int]
"""A crash point, and when it is reached for which time, from 1."""


def die_at(point: str, time_of: int) -> None:
    """Let this process kill itself when it reaches a crash point."""
    left = time_of

    def hook(reached: str) -> None:
        nonlocal left
        if reached not in crash_points.POINTS:
            os._exit(UNKNOWN_POINT)
        if reached == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    crash_points.install(hook)


def die_in_daemon() -> None:
    """`pmm-cached` that dies: the first two arguments are those of `die_at`."""
    from pmm_cached.main import main

    point, time_of = sys.argv[1:3]
    del sys.argv[1:3]
    die_at(point, int(time_of))
    main()
