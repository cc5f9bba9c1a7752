"""The processor time and memory of processes, from `/proc`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessUsage:
    """Memory now, and the share of one processor since the last look.

    Parameters:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before: dict[int, tuple[float, float]] = {}

    def of(self, pids: Iterable[int]) -> dict[int, dict[str, Any]]:
        """By pid: `resident_bytes` and `cpu_percent`, each None where it is not known."""
        now, before = self._clock(), self._before
        self._before, found = {}, {}
        for pid in pids:
            used_s, resident_bytes = _usage(pid)
            share = None
            if used_s is not None:
                self._before[pid] = (now, used_s)
                then = before.get(pid)
                if then is not None and now > then[0] and used_s >= then[1]:
                    share = (used_s - then[1]) / (now - then[0]) * 100
            found[pid] = {"cpu_percent": share, "resident_bytes": resident_bytes}
        return found


def _usage(pid: int) -> tuple[float | None, int | None]:
    """(processor time in seconds, resident bytes)"""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None, None
