"""A role that one process at a time holds, under a lease from the daemon.

Without a daemon no process holds it. The holder's time on its lease ends before the daemon's, because it counts from
before the request.
"""

from __future__ import annotations

import time

from pmm_shm import limits
from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm.wire.results import ClaimResult, read_result
from pmm_shm_client.commands import call

_ANSWER_S = 1.0


class Role:
    """One process's lease on a role. Not thread-safe.

    Parameters:
        instance: the instance of the daemon that grants the role.
        name: 1 to 64 characters.
    """

    def __init__(self, instance: Instance, name: str) -> None:
        self._instance = instance
        self._name = name
        self._token: int | None = None
        self._expires_at = 0.0

    def is_held(self, for_s: float = 0.0) -> bool:
        """Whether this process surely holds the role now and for the next `for_s` seconds."""
        return self._token is not None and time.monotonic() + for_s < self._expires_at

    def claim(self) -> bool:
        """Acquire the role, or renew the lease. Returns whether this process holds it; without a daemon it cannot."""
        asked = time.monotonic()
        try:
            args = {"role": self._name, "token": self._token}
            result = read_result(ClaimResult, call(self._instance, protocol.CLAIM, args, _ANSWER_S))
        except (DaemonError, OSError):
            # The rest of the lease still counts.
            return self.is_held()
        self._token = result.token
        self._expires_at = asked + limits.ROLE_LEASE_S if self._token is not None else 0.0
        return self.is_held()

    def resign(self) -> None:
        """End the lease, so that another process need not wait until it expires."""
        token, self._token = self._token, None
        if token is not None:
            try:
                call(self._instance, protocol.RESIGN, {"role": self._name, "token": token}, _ANSWER_S)
            except (DaemonError, OSError):
                pass
