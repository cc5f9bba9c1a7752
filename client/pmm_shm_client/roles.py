"""A role that one process at a time holds, by the daemon's word.

Without a daemon nobody holds it. What the holder knows of its lease ends before the daemon's does: it counts from
before the question.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pmm_shm import limits
from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm_client import commands

_ANSWER_S = 1.0


class Role:
    """One process's claim to a role. Not thread-safe.

    Parameters:
        instance: of the ledger whose daemon gives the role.
        name: 1 to 64 characters.
        clock: monotonic seconds.
    """

    def __init__(self, instance: Instance, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._instance = instance
        self._name = name
        self._clock = clock
        self._token: int | None = None
        self._until = 0.0

    def is_held(self, for_s: float = 0.0) -> bool:
        """Whether this process surely holds the role now and for the next `for_s` seconds."""
        return self._token is not None and self._clock() + for_s < self._until

    def claim(self) -> bool:
        """Take the role, or renew it. Returns whether it is held; False where no daemon answers."""
        asked = self._clock()
        try:
            answer = commands.call(
                self._instance, protocol.CLAIM, {"role": self._name, "token": self._token}, _ANSWER_S
            )
        except (DaemonError, OSError):
            # What is left of the lease still counts.
            return self.is_held()
        self._token = answer["token"]
        self._until = asked + limits.ROLE_LEASE_S if self._token is not None else 0.0
        return self.is_held()

    def resign(self) -> None:
        """Give the role back, so that another need not wait for the end of the lease."""
        token, self._token = self._token, None
        if token is not None:
            try:
                commands.call(self._instance, protocol.RESIGN, {"role": self._name, "token": token}, _ANSWER_S)
            except (DaemonError, OSError):
                pass
