"""Clients that wait until the daemon has published an event.

A state machine without I/O: the clock is a parameter. Not thread-safe: only the command thread uses it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pmm_cached.client_call import ClientCall
from pmm_cached.status import Status
from pmm_shm import limits
from pmm_shm.wire.results import WaitResult


@dataclass(frozen=True)
class _Wait:
    call: ClientCall
    event_id: int
    deadline: float


class Waits:
    """The waits that are not answered yet, in the order of arrival.

    Parameters:
        status: tells what is published.
        clock: monotonic seconds.
    """

    def __init__(self, status: Status, clock: Callable[[], float] = time.monotonic) -> None:
        self._status = status
        self._clock = clock
        self._waits: list[_Wait] = []

    def __len__(self) -> int:
        return len(self._waits)

    def add(self, call: ClientCall) -> None:
        self._waits.append(_Wait(call, call.args["event_id"], self._clock() + call.args["timeout_ms"] / 1_000))

    def make_room_for(self, client: bytes) -> bool:
        """Refuse the oldest wait of the client that has most, if `client` has fewer. Returns whether one was."""
        counts = Counter(wait.call.client for wait in self._waits)
        if not counts:
            return False
        greediest, most = counts.most_common(1)[0]
        if counts[client] + 1 >= most:
            return False
        oldest = next(wait for wait in self._waits if wait.call.client == greediest)
        self._waits.remove(oldest)
        oldest.call.fail("busy", f"{limits.WAITERS_MAX} clients wait already, and this one has most of the waits")
        return True

    def advance(self) -> None:
        """Answer the waits whose event is published, or whose time is over."""
        if not self._waits:
            return
        now, as_of, waiting = self._clock(), self._status.as_of, []
        for wait in self._waits:
            is_reached = self._status.is_published and as_of >= wait.event_id
            if is_reached or now >= wait.deadline:
                wait.call.succeed(WaitResult(is_reached, as_of)._asdict())
            else:
                waiting.append(wait)
        self._waits = waiting

    def next_deadline(self) -> float | None:
        """When the next wait's time is over, by the clock; None if nobody waits."""
        return min((wait.deadline for wait in self._waits), default=None)
