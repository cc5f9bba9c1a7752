"""The counters that workers report, summed, and the number of workers.

They are only displayed: anybody who can reach the socket can report anything. The newest counters of each worker are
kept, and only their growth is added to the sums. So a report that is lost, repeated or late does no harm, and the work
of a worker that has ended stays counted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmm_shm import limits
from pmm_shm.wire.protocol import COUNTERS

_LIVENESS_CHECK_S = 1.0
# A worker of another pid namespace has no pid here: nobody sees it end.
_INVISIBLE_S = 600.0
_READS = ("hits", "caught_up", "replayed")


@dataclass
class _WorkerRecord:
    """The last report of one cache of one process.

    Attributes:
        started: when the process was started, in ticks since boot; None if that is not known.
        is_colliding: at its last reads it had the pid of a process of another pid namespace.
        has_left: it said so itself.
        reported_at: monotonic seconds.
    """

    pid: int
    started: int | None
    counters: dict[str, int]
    is_ended: bool = False
    is_colliding: bool = False
    has_left: bool = False
    reported_at: float = 0.0


def started_at(pid: int) -> int | None:
    """When a process was started, in ticks since boot; None if no such process is alive."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


class Workers:
    """The table of workers. Thread-safe, bounded.

    Attributes:
        reports: how many came.

    Parameters:
        clock: monotonic seconds.
        started: as `started_at`.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, started: Callable[[int], int | None] = started_at
    ) -> None:
        self._clock = clock
        self._started = started
        self._lock = threading.Lock()
        self._known: OrderedDict[int, _WorkerRecord] = OrderedDict()
        self._seen = 0
        self.reports = 0
        self._totals = dict.fromkeys(COUNTERS, 0)
        self._liveness_checked_at = -_LIVENESS_CHECK_S

    def report(self, worker: int, pid: int, counters: Mapping[str, int], *, is_last: bool = False) -> None:
        """Record the counters of a worker, each since the worker began."""
        with self._lock:
            self.reports += 1
            known = self._known.get(worker)
            if known is None:
                self._make_room()
                known = self._known[worker] = _WorkerRecord(pid, self._started(pid), dict.fromkeys(COUNTERS, 0))
                self._seen += 1
            self._known.move_to_end(worker)
            for name in COUNTERS:
                grown = max(0, counters[name] - known.counters[name])
                known.counters[name] += grown
                self._totals[name] = min(self._totals[name] + grown, limits.COUNTER_MAX)
                if name == "pid_collisions":
                    known.is_colliding = grown > 0
            known.is_ended = known.is_ended or is_last
            known.has_left = is_last
            known.reported_at = self._clock()

    def as_dict(self) -> dict[str, Any]:
        """How many workers are alive, how many have reported, and the sums of their counters."""
        with self._lock:
            self._check_liveness()
            live = sum(not worker.is_ended for worker in self._known.values())
            return {"live": live, "seen": self._seen, **self._totals}

    def processes(self) -> list[dict[str, int]]:
        """The live workers by process, those that have reported last first: `pid`, the number of its `caches`, their
        reads by what answered them, and the age of the last report.
        """
        now = self._clock()
        with self._lock:
            self._check_liveness()
            found: dict[int, dict[str, int]] = {}
            # The newest report of a process gives its place and its age.
            for worker in reversed(self._known.values()):
                if worker.is_ended or (worker.pid not in found and len(found) == limits.WORKER_PROCESSES_LISTED):
                    continue
                age_ms = int((now - worker.reported_at) * 1_000)
                row = found.setdefault(
                    worker.pid, {"pid": worker.pid, "caches": 0, **dict.fromkeys(_READS, 0), "reported_age_ms": age_ms}
                )
                row["caches"] += 1
                for name in _READS:
                    grown = row[name] + sum(worker.counters[f"{group}_{name}"] for group in ("projection", "metrics"))
                    row[name] = min(grown, limits.COUNTER_MAX)
            return list(found.values())

    def of_same_pid(self) -> int:
        """How many workers have the pid of a process of another pid namespace, and so no access to the snapshot."""
        with self._lock:
            self._check_liveness()
            return sum(self._is_colliding(worker) for worker in self._known.values())

    def _is_colliding(self, worker: _WorkerRecord) -> bool:
        if not worker.is_colliding or worker.has_left:
            return False
        return self._clock() - worker.reported_at < _INVISIBLE_S if worker.pid == 0 else not worker.is_ended

    def _check_liveness(self) -> None:
        now = self._clock()
        if now - self._liveness_checked_at < _LIVENESS_CHECK_S:
            return
        self._liveness_checked_at = now
        for worker in self._known.values():
            if not worker.is_ended:
                worker.is_ended = worker.started is None or self._started(worker.pid) != worker.started

    def _make_room(self) -> None:
        """If there are too many, forget one that has ended, or the one whose last report is oldest."""
        if len(self._known) < limits.WORKERS_MAX:
            return
        self._check_liveness()
        ended = next((token for token, worker in self._known.items() if worker.is_ended), None)
        if ended is None:
            self._known.popitem(last=False)
        else:
            del self._known[ended]
