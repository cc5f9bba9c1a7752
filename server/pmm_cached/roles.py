"""Roles: what one worker at a time does for all, such as the ticks of an agent.

A pure state machine, with the clock as a parameter. A role is held under a lease that its holder renews. No role is
given in the first lease time of a daemon: a holder that an earlier daemon knew may still act.

Not thread-safe: the thread of the commands has it for itself.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from pmm_shm import limits


class Claim(NamedTuple):
    """What became of a claim: the token of the holder, or None; and how long the lease of whoever holds it lasts."""

    token: int | None
    remaining_ms: int


class _Held(NamedTuple):
    token: int
    until: float


class Roles:
    """Who holds which role.

    Parameters:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._not_before = clock() + limits.ROLE_LEASE_S
        self._next_token = secrets.randbits(48)
        self._held: dict[str, _Held] = {}

    def claim(self, role: str, token: int | None) -> Claim | None:
        """Take a role that nobody holds, or renew it with the token that one has. None: there are too many roles."""
        now = self._clock()
        held = self._held.get(role)
        if held is not None and now < held.until:
            if held.token != token:
                return Claim(None, _ms(held.until - now))
            token = held.token
        elif now < self._not_before:
            return Claim(None, _ms(self._not_before - now))
        else:
            self._held = {name: one for name, one in self._held.items() if now < one.until}
            if len(self._held) >= limits.ROLES_MAX:
                return None
            token, self._next_token = self._next_token, self._next_token + 1
        self._held[role] = _Held(token, now + limits.ROLE_LEASE_S)
        return Claim(token, _ms(limits.ROLE_LEASE_S))

    def resign(self, role: str, token: int) -> None:
        """Give a role back; nothing happens where it is another's by now."""
        held = self._held.get(role)
        if held is not None and held.token == token:
            del self._held[role]


def _ms(seconds: float) -> int:
    return max(0, int(seconds * 1_000))
