"""Leases: who computes a missing vector while the others wait for it.

A pure state machine: the clock is a parameter, nothing is stored or sent here. A lease is for one text of one model.
No token comes twice, so that a holder that comes late is known by it; tokens begin at a random number, so that those of
an earlier daemon do not fit.

Not thread-safe: the thread of the commands has it for itself.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pmm_cached.status import EmbeddingStatus
from pmm_shm import limits

Place = tuple[str, bytes]
"""Model and text key."""


class Answer(NamedTuple):
    """What became of the keys of a request, by their indices: granted ones with their tokens; `failed` are those that
    were waited for, and whose holder gave up.
    """

    granted: list[tuple[int, int]]
    ready: list[int]
    held: list[int]
    failed: list[int]


Reply = Callable[[Answer | None], None]
"""Called with the answer, or with None where there is no room for more leases or more who wait."""


@dataclass
class _Lease:
    place: Place
    token: int
    granted_at: float
    renewed_at: float


@dataclass(eq=False)
class _Waiter:
    """A request all of whose keys are held by others; its number tells when it came."""

    number: int
    model: str
    keys: Sequence[bytes]
    deadline: float
    reply: Reply


class Leases:
    """All leases, and the requests that wait for one.

    Parameters:
        is_stored: whether the vector of (model, key) is in the table.
        status: where the numbers are kept.
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
        self._by_place: dict[Place, _Lease] = {}
        # Both without the leases whose vectors are being stored, which do not expire. A dict keeps its order.
        self._by_grant: dict[int, _Lease] = {}
        self._by_renewal: dict[int, _Lease] = {}
        self._waiters: dict[_Waiter, None] = {}
        self._waiters_of: dict[Place, dict[_Waiter, None]] = {}

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiters)

    def lease(self, model: str, keys: Sequence[bytes], wait_s: float, reply: Reply, *, may_wait: bool = True) -> None:
        """Grant leases for the keys that are neither stored nor held; `reply` is called now or later.

        Later, at most after `wait_s`, if others hold all keys; not if `may_wait` is false.
        """
        self.advance()
        answer = self._answer(model, keys)
        if answer is None or answer.granted or answer.ready or wait_s <= 0:
            reply(answer)
        elif not may_wait:
            reply(None)
        else:
            self._status.lease_waits += 1
            self._add_waiter(_Waiter(self._status.lease_waits, model, keys, self._clock() + wait_s, reply))

    def renew(self, tokens: Iterable[int]) -> int:
        """Let leases live `limits.LEASE_S` from now, within their whole life. Returns how many there are of these."""
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
        self._give_up([self._by_grant[token] for token in dict.fromkeys(tokens) if token in self._by_grant])

    def accept(self, model: str, entries: Iterable[tuple[bytes, int]]) -> list[int]:
        """The indices of those (key, token) whose lease this is; it does not expire until `finish`."""
        self.advance()
        accepted = []
        for index, (key, token) in enumerate(entries):
            lease = self._by_grant.get(token)
            if lease is None or lease.place != (model, key):
                self._status.late_puts += 1
                continue
            del self._by_grant[token], self._by_renewal[token]
            accepted.append(index)
        return accepted

    def finish(self, model: str, keys: Iterable[bytes]) -> None:
        """End the leases of keys that were accepted, stored or not."""
        self._end([self._by_place[model, key] for key in keys])

    def give_up(self, model: str, keys: Iterable[bytes]) -> None:
        """As `release`, of keys that were accepted."""
        self._give_up([self._by_place[model, key] for key in keys])

    def advance(self) -> None:
        """End what has expired by now, and answer who has waited long enough."""
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
            self._remove_waiter(waiter)
            waiter.reply(_all_held(waiter))

    def next_instant(self) -> float | None:
        """When `advance` has something to do next, on the clock; None for never."""
        instants = [waiter.deadline for waiter in self._waiters]
        if self._by_grant:
            instants.append(next(iter(self._by_renewal.values())).renewed_at + limits.LEASE_S)
            instants.append(next(iter(self._by_grant.values())).granted_at + limits.LEASE_LIFE_S)
        return min(instants, default=None)

    def close(self) -> None:
        """Answer all who wait: the daemon stops."""
        for waiter in list(self._waiters):
            self._remove_waiter(waiter)
            waiter.reply(_all_held(waiter))

    def _answer(self, model: str, keys: Sequence[bytes]) -> Answer | None:
        free: list[int] = []
        answer = Answer([], [], [], [])
        for index, key in enumerate(keys):
            if (model, key) in self._by_place:
                answer.held.append(index)
            elif self._is_stored(model, key):
                answer.ready.append(index)
            else:
                free.append(index)
        if len(self._by_place) + len(free) > limits.LEASES_MAX:
            return None
        for index in free:
            answer.granted.append((index, self._grant((model, keys[index]))))
        return answer

    def _grant(self, place: Place) -> int:
        token, now = self._next_token, self._clock()
        self._next_token += 1
        self._by_place[place] = self._by_grant[token] = self._by_renewal[token] = _Lease(place, token, now, now)
        self._status.leases_granted += 1
        self._status.leases_held = len(self._by_place)
        return token

    def _give_up(self, leases: Sequence[_Lease]) -> None:
        """End leases, and tell all who wait for them at once: were the next one to try, and the next, with an embedder
        that is down each would wait for all before it.
        """
        places = {lease.place for lease in leases}
        waiting = {waiter for place in places for waiter in self._waiters_of.get(place, ())}
        for waiter in sorted(waiting, key=lambda waiter: waiter.number):
            self._remove_waiter(waiter)
            answer = Answer([], [], [], [])
            for index, key in enumerate(waiter.keys):
                (answer.failed if (waiter.model, key) in places else answer.held).append(index)
            waiter.reply(answer)
        self._end(leases)

    def _end(self, leases: Iterable[_Lease]) -> None:
        """End leases, and answer those who wait for them, in the order in which they came."""
        touched: set[_Waiter] = set()
        for lease in leases:
            del self._by_place[lease.place]
            self._by_grant.pop(lease.token, None)
            self._by_renewal.pop(lease.token, None)
            touched.update(self._waiters_of.get(lease.place, ()))
        self._status.leases_held = len(self._by_place)
        for waiter in sorted(touched, key=lambda waiter: waiter.number):
            answer = self._answer(waiter.model, waiter.keys)
            if answer is None or answer.granted or answer.ready:
                self._remove_waiter(waiter)
                waiter.reply(answer)

    def _add_waiter(self, waiter: _Waiter) -> None:
        self._waiters[waiter] = None
        for key in waiter.keys:
            self._waiters_of.setdefault((waiter.model, key), {})[waiter] = None

    def _remove_waiter(self, waiter: _Waiter) -> None:
        del self._waiters[waiter]
        for key in waiter.keys:
            others = self._waiters_of[waiter.model, key]
            del others[waiter]
            if not others:
                del self._waiters_of[waiter.model, key]


def _all_held(waiter: _Waiter) -> Answer:
    return Answer([], [], list(range(len(waiter.keys))), [])
