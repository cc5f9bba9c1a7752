"""Roles: tasks that one worker at a time does for all, such as the ticks of an agent.

A state machine without I/O: the clock is a parameter. The holder of a role has a lease on it, which it renews with its
fencing token. For the first `limits.ROLE_LEASE_S` of a daemon no role is granted, because a holder that an earlier
daemon knew may still be active.

Not thread-safe: only the command thread uses it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.wire.results import ClaimResult


class _RoleLease(NamedTuple):
    token: int
    expires_at: float


class Roles:
    """The leases on roles.

    Parameters:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._not_before = clock() + limits.ROLE_LEASE_S
        self._next_token = secrets.randbits(48)
        self._leases: dict[str, _RoleLease] = {}

    def claim(self, role: str, token: int | None) -> ClaimResult | None:
        """Grant a free role, or renew the lease of its holder, who gives its token. None: there are too many roles."""
        now = self._clock()
        lease = self._leases.get(role)
        if lease is not None and now < lease.expires_at:
            if lease.token != token:
                return ClaimResult(None, _ms(lease.expires_at - now))
            token = lease.token
        elif now < self._not_before:
            return ClaimResult(None, _ms(self._not_before - now))
        else:
            self._leases = {name: one for name, one in self._leases.items() if now < one.expires_at}
            if len(self._leases) >= limits.ROLES_MAX:
                return None
            token, self._next_token = self._next_token, self._next_token + 1
        self._leases[role] = _RoleLease(token, now + limits.ROLE_LEASE_S)
        return ClaimResult(token, _ms(limits.ROLE_LEASE_S))

    def resign(self, role: str, token: int) -> None:
        """End the lease on a role; does nothing if another worker holds it."""
        lease = self._leases.get(role)
        if lease is not None and lease.token == token:
            del self._leases[role]


def _ms(seconds: float) -> int:
    return max(0, int(seconds * 1_000))
