"""Reports a cache's counters to the daemon, which shows the sums of all workers.

A report is a hint: one datagram that never blocks, sent after a miss or at the end, at most every
`limits.REPORT_EVERY_S`. A hit sends nothing and reads no clock. Without a daemon nothing happens.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable

from pmm_shm import limits
from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.late import late_imports
from pmm_shm.typed import Any

Counters = dict[str, int]
_reporters: weakref.WeakSet[Reporter] = weakref.WeakSet()


class Reporter:
    """The reports of one cache. In a forked child it is a new worker, whose counters begin at 0.

    Parameters:
        count: returns the cache's counters, by the names in `protocol.COUNTERS`.

    Attributes:
        due: the monotonic instant after which the next miss reports.
    """

    def __init__(self, instance: Instance, count: Callable[[], Counters]) -> None:
        self._instance = instance
        # The cache refers to its reporter: a cycle would keep its connections open until the next garbage collection.
        self._count = weakref.WeakMethod(count)
        self._start_as({})
        self._is_silent = False
        _reporters.add(self)

    def _start_as(self, before: Counters) -> None:
        self._worker = int.from_bytes(os.urandom(8), "big") >> 1
        self._before = before
        self._reported: Counters = {}
        self.due = time.monotonic() + limits.REPORT_EVERY_S

    def silence(self) -> None:
        """Report nothing from now on: this process only displays, and is not a worker."""
        _reporters.discard(self)
        self._is_silent, self.due = True, math.inf

    def hurry(self) -> None:
        """Report after the next miss: the daemon is to show something that cannot wait."""
        if not self._is_silent:
            self.due = 0.0

    def report(self, *, is_last: bool = False) -> None:
        """Report the counters, if they have changed since the last report."""
        found = self._counted()
        if self._is_silent or found is None:
            return
        self.due = time.monotonic() + limits.REPORT_EVERY_S
        counters = {name: max(0, count - self._before.get(name, 0)) for name, count in found.items()}
        # The end of a worker matters only if it has reported before.
        if counters == (self._reported or dict.fromkeys(counters, 0)) and not (is_last and any(counters.values())):
            return
        if _is_sent(self._instance, {"worker": self._worker, "counters": counters, "is_last": is_last}):
            self._reported = counters

    def after_fork(self) -> None:
        """Called in the child: the counts so far belong to the parent."""
        found = self._counted()
        if found is not None:
            self._start_as(found)

    def _counted(self) -> Counters | None:
        count = self._count()
        return None if count is None else count()


def _is_sent(instance: Instance, report: dict[str, Any]) -> bool:
    try:
        with late_imports:
            import socket

            from pmm_shm.instance.paths import file_id
            from pmm_shm.wire.endpoints import recorded_endpoints
            from pmm_shm.wire.protocol import REPORT, Request

        path = recorded_endpoints(instance).reports
        if not path:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(Request(0, REPORT, report, file_id(instance.ledger)).pack(), path)
    except (DaemonError, OSError, ValueError, ImportError, RuntimeError):
        # No daemon, a stopped one, an untrusted directory, a damaged record: the next report may arrive. Or the
        # interpreter is ending, and imports fail. Or the host's program forbids sockets, by an audit hook, for example.
        return False
    return True


def _after_fork() -> None:
    for reporter in list(_reporters):
        reporter.after_fork()


os.register_at_fork(after_in_child=_after_fork)
