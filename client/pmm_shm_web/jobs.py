"""Long work for a page: in a thread, with progress, and cancelled when nobody asks for it any more."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from pmm_shm.ledger.tail import Position
from pmm_shm.projection.replay import Progress

RUNNING_MAX = 2
"""More wait for one of these to end: two cores are all that many hosts have."""
FORGOTTEN_S = 3.0
"""A job that nobody has asked for this long is cancelled."""
KEPT_S = 1.0
"""How long a result is kept for those who ask for the same: no longer than a replaced ledger may go unnoticed."""


class CancelledError(Exception):
    """The job was cancelled."""


class Job:
    """One piece of work.

    Attributes:
        id: names it in a page.
        total: the event at which it will be done; None if unknown.
        done: the event that it has reached.
        result: of the work, once it has ended.
        error: that ended it.
    """

    def __init__(self, total: int | None) -> None:
        self.id = secrets.token_urlsafe(9)
        self.total = total
        self.done = 0
        self.result: Any = None
        self.error: Exception | None = None
        self.ended_s: float | None = None
        self.is_cancelled = False
        self._asked_s = time.monotonic()
        self._ended = threading.Event()

    def wait(self, timeout_s: float) -> bool:
        """Whether it ends within this time."""
        self._asked_s = time.monotonic()
        return self._ended.wait(timeout_s)

    def report(self, position: Position) -> None:
        """Called by the work; raises `CancelledError` where it should end."""
        self.done = position.as_of
        if self.is_cancelled or time.monotonic() - self._asked_s > FORGOTTEN_S:
            raise CancelledError

    def run(self, work: Callable[[Progress], Any], slots: threading.Semaphore) -> None:
        """Do the work, in the thread of this call."""
        try:
            with slots:
                self.result = None if self.is_cancelled else work(self.report)
                self.error = CancelledError() if self.is_cancelled else None
        except Exception as error:
            self.error = error
        self.ended_s = time.monotonic()
        self._ended.set()


class Jobs:
    """The jobs of one server. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(RUNNING_MAX)
        self._jobs: dict[Hashable, Job] = {}

    def start(self, key: Hashable, total: int | None, work: Callable[[Progress], Any]) -> Job:
        """The job with this key: one that runs, one that has just ended, or a new one."""
        with self._lock:
            self._forget_old()
            job = self._jobs.get(key)
            if job is None or job.is_cancelled:
                job = self._jobs[key] = Job(total)
                threading.Thread(target=job.run, args=(work, self._slots), name="pmm-shm-web-job", daemon=True).start()
            return job

    def cancel(self, job_id: str) -> bool:
        """End a job at its next report; false if no such job runs."""
        with self._lock:
            found = [job for job in self._jobs.values() if job.id == job_id and job.ended_s is None]
            for job in found:
                job.is_cancelled = True
            return bool(found)

    def cancel_all(self) -> None:
        """End all of them."""
        with self._lock:
            for job in self._jobs.values():
                job.is_cancelled = True

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        for key in [key for key, job in self._jobs.items() if job.ended_s is not None and now_s - job.ended_s > KEPT_S]:
            del self._jobs[key]
