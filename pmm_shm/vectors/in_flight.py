"""How many requests an endpoint gets at a time: one at first, more while it answers, half as many after an overload.

Until the first overload, each answered request allows one more. After it, as many answers as requests in flight do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class InFlight:
    """The requests to one endpoint. Thread-safe.

    Parameters:
        most: requests in flight, at most.
        clock: monotonic seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._limit = 1.0
        self._count = 0
        self._halved_at: float | None = None
        self._not_before = 0.0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limit)

    def was_overloaded(self, since: float) -> bool:
        """Whether the limit was halved after an instant, on the monotonic clock."""
        return self._halved_at is not None and self._halved_at >= since

    def enter(self, deadline: float) -> float | None:
        """Wait for room for one more attempt, and until the endpoint may be asked again.

        Returns when the attempt begins, for `overloaded`; None if that would be after the deadline. `leave` ends the
        attempt.
        """
        with self._changed:
            while True:
                now = self._clock()
                if self._not_before >= deadline or now >= deadline:
                    return None
                if self._count < self.limit and now >= self._not_before:
                    self._count += 1
                    return now
                self._changed.wait((deadline if now >= self._not_before else self._not_before) - now)

    def leave(self) -> None:
        """End an attempt, whatever its result."""
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def answered(self) -> None:
        """A request was answered: allow more."""
        with self._changed:
            self._limit = min(self._most, self._limit + (1 if self._halved_at is None else 1 / self._limit))
            self._changed.notify_all()

    def overloaded(self, began: float, wait_s: float = 0.0) -> None:
        """An attempt failed that began at this time: allow half as many, and none for `wait_s` seconds.

        Attempts that began before the last halving count no more.
        """
        with self._changed:
            now = self._clock()
            if self._halved_at is None or began > self._halved_at:
                self._limit, self._halved_at = max(1.0, self._limit / 2), now
            self._not_before = max(self._not_before, now + wait_s)
