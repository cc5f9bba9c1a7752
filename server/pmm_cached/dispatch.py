"""Carries out the commands of clients. It knows nothing of sockets; see `commands` for these."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

from pmm_cached.background import JobDone
from pmm_cached.client_call import ClientCall
from pmm_cached.leases import Leases
from pmm_cached.roles import Roles
from pmm_cached.status import Status
from pmm_cached.text_table import TextTable
from pmm_cached.waits import Waits
from pmm_shm import limits
from pmm_shm.vectors.text_table import TextVector
from pmm_shm.wire import protocol
from pmm_shm.wire.results import LeaseResult, PutResult

Post = Callable[[Callable[[], None]], None]
"""Runs a function in the command thread, soon; may be called from any thread."""


class Backend(Protocol):
    """The parts of the daemon that carry out what takes long."""

    def stats(self) -> dict[str, Any]: ...

    def verify(self, fold: str | None, done: JobDone) -> None: ...

    def invalidate(self, fold: str | None, done: JobDone) -> None: ...

    def index(self, done: JobDone) -> None: ...

    def knows(self, fold: str) -> bool: ...


class Dispatcher:
    """Answers commands, now or later. Not thread-safe: only the command thread uses it.

    Attributes:
        leases: the leases on missing text vectors.
    """

    def __init__(self, backend: Backend, texts: TextTable, status: Status, post: Post) -> None:
        self._backend = backend
        self._texts = texts
        self._status = status
        self._post = post
        self.leases = Leases(texts.has, status.embeddings)
        self._roles = Roles()
        self._waits = Waits(status)
        self._handlers: dict[str, Callable[[ClientCall], None]] = {
            protocol.PING: self._ping,
            protocol.STATS: self._stats,
            protocol.WAIT: self._wait,
            protocol.LEASE: self._lease,
            protocol.RENEW: self._renew,
            protocol.RELEASE: self._release,
            protocol.PUT: self._put,
            protocol.CLAIM: self._claim,
            protocol.RESIGN: self._resign,
            protocol.VERIFY: self._verify,
            protocol.INVALIDATE: self._invalidate,
            protocol.INDEX: self._index,
        }

    def carry_out(self, call: ClientCall) -> None:
        """Answer a command, or see that it is answered later. Raises what a backend raises."""
        self._handlers[call.request.command](call)

    def advance(self) -> None:
        """Answer the clients whose waiting is over."""
        self._waits.advance()
        self.leases.advance()

    def next_deadline(self) -> float | None:
        """When `advance` has to be called next, in monotonic seconds; None if nobody waits."""
        deadlines = (self._waits.next_deadline(), self.leases.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def close(self) -> None:
        """Answer the clients that wait for leases, because the daemon stops."""
        self.leases.close()

    def _ping(self, call: ClientCall) -> None:
        call.succeed({"pid": os.getpid(), "as_of": self._status.as_of})

    def _stats(self, call: ClientCall) -> None:
        call.succeed(self._backend.stats())

    def _wait(self, call: ClientCall) -> None:
        if self._may_wait() or self._waits.make_room_for(call.client):
            self._waits.add(call)
        else:
            call.fail("busy", f"{limits.WAITERS_MAX} clients wait already")

    def _lease(self, call: ClientCall) -> None:
        def answer(result: LeaseResult | None) -> None:
            if result is None:
                call.fail("busy", "too many leases are held, or too many clients wait")
            else:
                call.succeed(result._asdict())

        model, keys, wait_s = call.args["model"], call.args["keys"], call.args["wait_ms"] / 1_000
        self.leases.acquire(model, keys, wait_s, answer, may_wait=self._may_wait())

    def _renew(self, call: ClientCall) -> None:
        call.succeed({"renewed": self.leases.renew(call.args["tokens"])})

    def _release(self, call: ClientCall) -> None:
        self.leases.release(call.args["tokens"])
        call.succeed({})

    def _put(self, call: ClientCall) -> None:
        model, vectors = call.args["model"], call.args["vectors"]
        accepted = self.leases.accept(model, [(key, token) for key, token, _ in vectors])
        keys = [vectors[index][0] for index in accepted]

        def finish(error: str | None) -> None:
            self.leases.finish(model, keys)
            if error is not None:
                call.fail("failed", error)
            else:
                call.succeed(PutResult(len(keys), len(vectors) - len(keys))._asdict())

        if not keys:
            finish(None)
            return
        stored = [TextVector(model, vectors[index][0], vectors[index][2]) for index in accepted]
        self._texts.put(stored, lambda error: self._post(lambda: finish(error)))

    def _claim(self, call: ClientCall) -> None:
        result = self._roles.claim(call.args["role"], call.args["token"])
        if result is None:
            call.fail("busy", f"{limits.ROLES_MAX} roles are held already")
        else:
            call.succeed(result._asdict())

    def _resign(self, call: ClientCall) -> None:
        self._roles.resign(call.args["role"], call.args["token"])
        call.succeed({})

    def _verify(self, call: ClientCall) -> None:
        if self._knows_fold(call):
            self._backend.verify(call.args["fold"], self._answer_with(call))

    def _invalidate(self, call: ClientCall) -> None:
        if self._knows_fold(call):
            self._backend.invalidate(call.args["fold"], self._answer_with(call))

    def _index(self, call: ClientCall) -> None:
        self._backend.index(self._answer_with(call))

    def _may_wait(self) -> bool:
        return len(self._waits) + self.leases.waiting < limits.WAITERS_MAX

    def _knows_fold(self, call: ClientCall) -> bool:
        fold = call.args["fold"]
        if fold is None or self._backend.knows(fold):
            return True
        call.fail("unknown_fold", f"no fold {fold!r} is served by this daemon")
        return False

    def _answer_with(self, call: ClientCall) -> JobDone:
        """Answers a command with the outcome of a job of another thread."""

        def done(result: dict[str, Any] | None, error: str | None) -> None:
            self._post(lambda: call.fail("failed", error) if error is not None else call.succeed(result or {}))

        return done
