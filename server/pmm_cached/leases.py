"""Leases: one client computes a missing vector while the others wait for it.

A state machine without I/O: the clock is a parameter. A lease covers the text of one key and one model. Its holder
proves itself by a fencing token. No token is used twice, so a holder that comes after the expiry is refused; tokens
begin at a random number, so those of an earlier daemon are refused, too.

Not thread-safe: only the command thread uses it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pmm_cached.status import EmbeddingStatus
from pmm_shm import limits
from pmm_shm.wire.results import LeaseResult

LeaseKey = tuple[str, bytes]
"""Model and text key."""

OnLeaseResult = Callable[[LeaseResult | None], None]
"""Called with the result, or with None if there are too many leases or waiters."""


@dataclass
class _Lease:
    key: LeaseKey
    token: int
    granted_at: float
    renewed_at: float


@dataclass(eq=False)
class _LeaseWaiter:
    """A request whose keys are all held by others."""

    model: str
    keys: Sequence[bytes]
    deadline: float
    on_result: OnLeaseResult

    def __post_init__(self) -> None:
        self.lease_keys = frozenset((self.model, key) for key in self.keys)

    def expire(self) -> None:
        self.on_result(LeaseResult([], [], list(range(len(self.keys))), []))


class Leases:
    """All leases, and the requests that wait for one.

    Parameters:
        is_stored: whether the vector of (model, key) is in the table.
        status: where leases are counted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        is_stored: Callable[[str, bytes], bool],
        status: EmbeddingStatus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_stored = is_stored
        self._status = status
        self._clock = clock
        self._next_token = secrets.randbits(48)
        self._by_key: dict[LeaseKey, _Lease] = {}
        # By token, in the order of expiry; without the leases whose vectors are being stored, which do not expire.
        self._by_grant: dict[int, _Lease] = {}
        self._by_renewal: dict[int, _Lease] = {}
        # In the order of arrival.
        self._waiters: list[_LeaseWaiter] = []

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiters)

    def acquire(
        self, model: str, keys: Sequence[bytes], wait_s: float, on_result: OnLeaseResult, *, may_wait: bool = True
    ) -> None:
        """Grant leases for the keys that are neither stored nor held, and call `on_result`.

        If others hold all keys, it is called when one of them ends, or after `wait_s`; with None at once if `may_wait`
        is false.
        """
        result = self.try_acquire(model, keys)
        if result is None or result.granted or result.ready or wait_s <= 0:
            on_result(result)
        elif not may_wait:
            on_result(None)
        else:
            self._status.lease_waits += 1
            self._waiters.append(_LeaseWaiter(model, keys, self._clock() + wait_s, on_result))

    def try_acquire(self, model: str, keys: Sequence[bytes]) -> LeaseResult | None:
        """As `acquire`, without waiting. None: there are too many leases."""
        self.advance()
        return self._grant_free(model, keys)

    def acquire_accepted(self, model: str, keys: Sequence[bytes]) -> list[bytes]:
        """The keys of the free leases, which are granted to this process and accepted already."""
        result = self.try_acquire(model, keys)
        granted = [] if result is None else [(keys[index], token) for index, token in result.granted]
        self.accept(model, granted)
        return [key for key, _ in granted]

    def renew(self, tokens: Iterable[int]) -> int:
        """Extend leases by `limits.LEASE_S` from now, up to `limits.LEASE_LIFE_S`. Returns how many were extended."""
        self.advance()
        now, renewed = self._clock(), 0
        for token in tokens:
            lease = self._by_renewal.pop(token, None)
            if lease is not None:
                lease.renewed_at = now
                self._by_renewal[token] = lease
                renewed += 1
        return renewed

    def release(self, tokens: Iterable[int]) -> None:
        """End leases whose holder could not compute the vectors."""
        self.advance()
        self._fail([self._by_grant[token] for token in dict.fromkeys(tokens) if token in self._by_grant])

    def accept(self, model: str, entries: Iterable[tuple[bytes, int]]) -> list[int]:
        """The indices of the (key, token) pairs that are valid leases; these do not expire until `finish`."""
        self.advance()
        accepted = []
        for index, (key, token) in enumerate(entries):
            lease = self._by_grant.get(token)
            if lease is None or lease.key != (model, key):
                self._status.late_puts += 1
                continue
            del self._by_grant[token], self._by_renewal[token]
            accepted.append(index)
        return accepted

    def finish(self, model: str, keys: Iterable[bytes]) -> None:
        """End the leases of accepted keys, whether their vectors were stored or not."""
        self._end([self._by_key[model, key] for key in keys])

    def release_accepted(self, model: str, keys: Iterable[bytes]) -> None:
        """As `release`, for accepted keys."""
        self._fail([self._by_key[model, key] for key in keys])

    def advance(self) -> None:
        """End the leases that have expired, and answer the waiters whose time is over."""
        now = self._clock()
        expired: dict[int, _Lease] = {}
        for lease in self._by_renewal.values():
            if lease.renewed_at + limits.LEASE_S > now:
                break
            expired[lease.token] = lease
        for lease in self._by_grant.values():
            if lease.granted_at + limits.LEASE_LIFE_S > now:
                break
            expired[lease.token] = lease
        if expired:
            self._status.leases_expired += len(expired)
            self._end(expired.values())
        for waiter in [waiter for waiter in self._waiters if waiter.deadline <= now]:
            self._waiters.remove(waiter)
            waiter.expire()

    def next_deadline(self) -> float | None:
        """When `advance` has to be called next, by the clock; None if nothing expires."""
        deadlines = [waiter.deadline for waiter in self._waiters]
        if self._by_grant:
            deadlines.append(next(iter(self._by_renewal.values())).renewed_at + limits.LEASE_S)
            deadlines.append(next(iter(self._by_grant.values())).granted_at + limits.LEASE_LIFE_S)
        return min(deadlines, default=None)

    def close(self) -> None:
        """Answer all waiters, because the daemon stops."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.expire()

    def _grant_free(self, model: str, keys: Sequence[bytes]) -> LeaseResult | None:
        free: list[int] = []
        ready: list[int] = []
        held: list[int] = []
        for index, key in enumerate(keys):
            if (model, key) in self._by_key:
                held.append(index)
            elif self._is_stored(model, key):
                ready.append(index)
            else:
                free.append(index)
        if len(self._by_key) + len(free) > limits.LEASES_MAX:
            return None
        return LeaseResult([(index, self._grant((model, keys[index]))) for index in free], ready, held, [])

    def _grant(self, key: LeaseKey) -> int:
        token, now = self._next_token, self._clock()
        self._next_token += 1
        self._by_key[key] = self._by_grant[token] = self._by_renewal[token] = _Lease(key, token, now, now)
        self._status.leases_granted += 1
        self._status.leases_held = len(self._by_key)
        return token

    def _fail(self, leases: Sequence[_Lease]) -> None:
        """End leases, and answer all of their waiters at once.

        If the next waiter got the lease instead, and the embedder is down, each one would wait for all before it.
        """
        keys = {lease.key for lease in leases}
        for waiter in self._waiters_for(keys):
            self._waiters.remove(waiter)
            held: list[int] = []
            failed: list[int] = []
            for index, key in enumerate(waiter.keys):
                (failed if (waiter.model, key) in keys else held).append(index)
            waiter.on_result(LeaseResult([], [], held, failed))
        self._end(leases)

    def _end(self, leases: Iterable[_Lease]) -> None:
        """End leases, and answer those of their waiters that get a vector or a lease, in the order of arrival."""
        keys = set()
        for lease in leases:
            del self._by_key[lease.key]
            self._by_grant.pop(lease.token, None)
            self._by_renewal.pop(lease.token, None)
            keys.add(lease.key)
        self._status.leases_held = len(self._by_key)
        for waiter in self._waiters_for(keys):
            result = self._grant_free(waiter.model, waiter.keys)
            if result is None or result.granted or result.ready:
                self._waiters.remove(waiter)
                waiter.on_result(result)

    def _waiters_for(self, keys: set[LeaseKey]) -> list[_LeaseWaiter]:
        return [waiter for waiter in self._waiters if not waiter.lease_keys.isdisjoint(keys)]
