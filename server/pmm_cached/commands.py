"""The command server: ordinary and administrative commands on two sockets, and the publisher of new positions.

One thread owns all sockets; other threads hand it what is to be sent. Sockets are bound under a umask that gives them
their mode at once: a chmod after the bind would leave a gap. The administrative one also asks the system who connects.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import zmq

from pmm_cached.leases import Answer, Leases
from pmm_cached.logs import Logger
from pmm_cached.peers import Excess, MemoryWatch, Peers, allow_descriptors
from pmm_cached.reports import Reports
from pmm_cached.roles import Roles
from pmm_cached.status import Status
from pmm_cached.text_table import TextTable
from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.vectors.text_table import TextVector
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints, address_of
from pmm_shm.wire.protocol import Announcement, ProtocolError, Request, pack_error, pack_result, unpack_request

_GROUP_MODE = 0o660
_OWNER_MODE = 0o600
_ROOT = 0
_COMPLAINTS_MAX = 10
_BOUNDS: dict[int, tuple[tuple[zmq.SocketOption, int], ...]] = {
    zmq.ROUTER: (
        (zmq.MAXMSGSIZE, limits.MESSAGE_BYTES_MAX),
        (zmq.RCVHWM, limits.REQUESTS_WAITING_MAX),
        (zmq.SNDHWM, limits.REPLIES_WAITING_MAX),
        (zmq.HANDSHAKE_IVL, limits.HANDSHAKE_MS),
        (zmq.BACKLOG, limits.BACKLOG_CONNECTIONS),
    ),
    zmq.PUB: (
        (zmq.MAXMSGSIZE, limits.SUBSCRIPTION_BYTES_MAX),
        (zmq.RCVHWM, limits.ANNOUNCEMENTS_WAITING_MAX),
        (zmq.SNDHWM, limits.ANNOUNCEMENTS_WAITING_MAX),
        (zmq.HANDSHAKE_IVL, limits.HANDSHAKE_MS),
        (zmq.BACKLOG, limits.BACKLOG_CONNECTIONS),
    ),
}
_LOOK_S = 0.1
_QUIET_S = 1.0
Done = Callable[[dict[str, Any] | None, str | None], None]
Reply = Callable[[bytes], None]


class Backend(Protocol):
    """What the commands are carried out by."""

    def stats(self) -> dict[str, Any]: ...

    def verify(self, fold: str | None, done: Done) -> None: ...

    def invalidate(self, fold: str | None, done: Done) -> None: ...

    def index(self, done: Done) -> None: ...

    def knows(self, fold: str) -> bool: ...


@dataclass
class _Waiter:
    """A `wait` that is not answered yet."""

    event_id: int
    deadline: float
    request_id: int
    reply: Reply
    peer: bytes


class _Inbox:
    """Receives the messages of a ROUTER frame by frame, for libzmq bounds frames and not messages; of each, only the
    first frame is kept.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._identity = self._data = b""
        self._frames = 0

    def receive(self) -> tuple[bytes, bytes, int] | None:
        """The next (peer, first frame, number of frames); None where there is none yet, or its end is far."""
        for _ in range(limits.FRAMES_PER_TURN):
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if self._frames == 0:
                self._identity, self._data = frame, b""
            elif self._frames == 1:
                self._data = frame
            self._frames += 1
            if not self._socket.getsockopt(zmq.RCVMORE):
                frames, self._frames = self._frames - 1, 0
                return self._identity, self._data, frames
        return None


class CommandServer:
    """Binds the sockets when made; `start` begins to answer.

    Parameters:
        on_death: called with the reason when the thread ends by itself.

    Raises:
        zmq.ZMQError: a socket cannot be bound.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        backend: Backend,
        texts: TextTable,
        status: Status,
        log: Logger,
        on_death: Callable[[str], None],
    ) -> None:
        self._endpoints = endpoints
        self._on_death = on_death
        self._backend = backend
        self._texts = texts
        self._leases = Leases(texts.has, status.embeddings)
        self._roles = Roles()
        self._status = status
        self._log = log
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connections_max = allow_descriptors()
        self._peers: dict[zmq.Socket[bytes], Peers] = {}
        self._memory = MemoryWatch()
        self._commands = self._bind(zmq.ROUTER, endpoints.commands, _GROUP_MODE)
        self._admin = self._bind(zmq.ROUTER, endpoints.admin, _OWNER_MODE)
        self._publisher = self._bind(zmq.PUB, endpoints.announcements, _GROUP_MODE)
        self._inboxes = {
            self._commands: (_Inbox(self._commands), protocol.ORDINARY),
            self._admin: (_Inbox(self._admin), protocol.ADMINISTRATIVE),
        }
        self._reports = Reports(endpoints.reports, _GROUP_MODE, status.workers)
        self._outbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiters: list[_Waiter] = []
        self._is_watching = False
        self._memory_looked = 0.0
        self._peers_seen = -_QUIET_S
        self._hang_ups_logged = 0
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, removes_files: bool = True) -> None:
        """Answer what can be answered, close the sockets, remove their files."""
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for peers in self._peers.values():
            peers.close()
        for socket in (self._commands, self._admin):
            # The last answers are on their way.
            socket.close(linger=limits.FAREWELL_MS)
        self._publisher.close(linger=0)
        self._reports.close()
        self._context.term()
        os.close(self._wake)
        if not removes_files:
            return
        endpoints = self._endpoints
        for path in (endpoints.commands, endpoints.admin, endpoints.announcements, endpoints.reports):
            with _no_matter():
                os.unlink(path)

    def announce(self, as_of: int, sequence: int) -> None:
        """Publish a position, and answer who waits for it. From any thread."""
        data = Announcement(as_of, sequence).pack()
        self._post(lambda: self._publisher.send(data, zmq.NOBLOCK))

    def take_leases(self, model: str, keys: list[bytes]) -> list[bytes]:
        """Take the leases of those texts that have no vector and no other holder, for this process: they do not
        expire, but last until `end_leases`. From any other thread.
        """
        taken: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()

        def take() -> None:
            def answered(answer: Answer | None) -> None:
                granted = [] if answer is None else [(keys[index], token) for index, token in answer.granted]
                self._leases.accept(model, granted)
                taken.put([key for key, _ in granted])

            self._leases.lease(model, keys, 0.0, answered, may_wait=False)

        self._post(take)
        while True:
            try:
                return taken.get(timeout=_LOOK_S)
            except queue.Empty:
                if not self._thread.is_alive():
                    return []

    def end_leases(self, model: str, keys: list[bytes], vectors: list[TextVector]) -> None:
        """End leases from `take_leases`, and store the vectors that were computed."""
        if vectors:
            self._texts.put(vectors, lambda error: self._post(lambda: self._leases.finish(model, keys)))
        elif keys:
            self._post(lambda: self._leases.give_up(model, keys))

    def _bind(self, kind: int, path: str, mode: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        for option, value in _BOUNDS[kind]:
            socket.setsockopt(option, value)
        self._peers[socket] = Peers(socket, self._connections_max)
        with _no_matter():
            os.unlink(path)
        if mode == _OWNER_MODE:
            _filter_peers(socket, {os.geteuid(), _ROOT})
        before = os.umask(0o777 & ~mode)
        try:
            crash_point("socket.before")
            socket.bind(address_of(path))
            crash_point("socket.bound")
        finally:
            os.umask(before)
        return socket

    def _post(self, action: Callable[[], None]) -> None:
        self._outbox.put(action)
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            # Without this thread nobody is answered, nor hears how the daemon is.
            self._log.exception("commands ended")
            self._on_death(f"commands ended: {type(error).__name__}: {error}")

    def _serve(self) -> None:
        poller = zmq.Poller()
        for peers in self._peers.values():
            poller.register(peers.monitor, zmq.POLLIN)
        for socket in self._inboxes:
            poller.register(socket, zmq.POLLIN)
        # Nothing is received from it, but who unsubscribes is forgotten only when its thread looks at it.
        poller.register(self._publisher, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        poller.register(self._reports, zmq.POLLIN)
        while not self._is_stopping:
            ready = dict(poller.poll(self._timeout_ms()))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            self._look_at_peers()
            self._send_posted()
            if self._reports.fileno() in ready:
                for error in self._reports.take_in():
                    self._complain(error)
            for socket in self._inboxes:
                if socket in ready:
                    self._receive(socket)
            self._answer_waiters()
            self._leases.advance()
        self._send_posted()
        self._leases.close()

    def _timeout_ms(self) -> int | None:
        instants = [waiter.deadline for waiter in self._waiters]
        leases = self._leases.next_instant()
        if leases is not None:
            instants.append(leases)
        if self._is_watching:
            instants.append(self._memory_looked + limits.PEERS_MEMORY_CHECK_S)
        if not instants:
            return None
        return max(0, int((min(instants) - time.monotonic()) * 1_000) + 1)

    def _send_posted(self) -> None:
        while True:
            try:
                action = self._outbox.get_nowait()
            except queue.Empty:
                return
            with _no_matter():
                action()

    def _look_at_peers(self) -> None:
        for peers in self._peers.values():
            ended = peers.look()
            if ended:
                self._hung_up(ended, "too many connections")
        self._status.connections = sum(map(len, self._peers.values()))
        # The administrative socket is the daemon's own user's, who need not ask to be let in.
        others = [self._peers[socket] for socket in (self._commands, self._publisher)]
        now = time.monotonic()
        if any(others):
            self._peers_seen = now
        # A while longer than they are there, so that nobody who comes back at once is taken for the daemon's own.
        was_watching, self._is_watching = self._is_watching, now < self._peers_seen + _QUIET_S
        if was_watching != self._is_watching:
            self._memory.rest()
        elif not self._is_watching or now < self._memory_looked + limits.PEERS_MEMORY_CHECK_S:
            return
        self._memory_looked = now
        excess = self._memory.look()
        if excess is not Excess.NONE:
            is_new = excess is Excess.NEW
            self._hung_up(sum(peers.hang_up(spares_quiet=is_new) for peers in others), "peers hold too much memory")

    def _hung_up(self, count: int, reason: str) -> None:
        self._status.hang_ups += count
        if self._hang_ups_logged < _COMPLAINTS_MAX:
            self._hang_ups_logged += 1
            self._log.warning("hung up", connections=count, reason=reason)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        # A bounded number, so that one flood does not keep the other socket waiting.
        inbox, allowed = self._inboxes[socket]
        for _ in range(limits.REQUESTS_PER_TURN):
            message = inbox.receive()
            if message is None:
                return
            self._handle(socket, *message, allowed)

    def _handle(
        self, socket: zmq.Socket[bytes], identity: bytes, data: bytes, frames: int, allowed: frozenset[str]
    ) -> None:
        def reply(data: bytes) -> None:
            with _no_matter():
                socket.send_multipart([identity, data], zmq.NOBLOCK)

        try:
            if frames != 1:
                raise ProtocolError(f"a message of {frames} frames; one is read")
            request = unpack_request(data, allowed)
        except ProtocolError as error:
            self._complain(error)
            reply(pack_error(error.request_id, "malformed", str(error)))
            return
        self._status.commands += 1
        try:
            self._carry_out(request, reply, identity)
        except Exception as error:
            self._log.exception("command failed", command=request.command)
            reply(pack_error(request.id, "failed", f"{type(error).__name__}: {error}"))

    def _carry_out(self, request: Request, reply: Reply, peer: bytes) -> None:
        if request.command == protocol.PING:
            reply(pack_result(request.id, {"pid": os.getpid(), "as_of": self._status.as_of}))
        elif request.command == protocol.STATS:
            reply(pack_result(request.id, self._backend.stats()))
        elif request.command == protocol.WAIT:
            self._wait(request, reply, peer)
        elif request.command == protocol.LEASE:
            self._lease(request, reply)
        elif request.command == protocol.RENEW:
            reply(pack_result(request.id, {"renewed": self._leases.renew(request.args["tokens"])}))
        elif request.command == protocol.RELEASE:
            self._leases.release(request.args["tokens"])
            reply(pack_result(request.id, {}))
        elif request.command == protocol.PUT:
            self._put(request, reply)
        elif request.command == protocol.CLAIM:
            self._claim(request, reply)
        elif request.command == protocol.RESIGN:
            self._roles.resign(request.args["role"], request.args["token"])
            reply(pack_result(request.id, {}))
        else:
            self._start_job(request, reply)

    def _may_wait(self) -> bool:
        return len(self._waiters) + self._leases.waiting < limits.WAITERS_MAX

    def _lease(self, request: Request, reply: Reply) -> None:
        model, keys, wait_ms = request.args["model"], request.args["keys"], request.args["wait_ms"]

        def answered(answer: Answer | None) -> None:
            if answer is None:
                reply(pack_error(request.id, "busy", "too many leases are held, or too many clients wait"))
            else:
                reply(pack_result(request.id, answer._asdict()))

        self._leases.lease(model, keys, wait_ms / 1_000, answered, may_wait=self._may_wait())

    def _put(self, request: Request, reply: Reply) -> None:
        model, vectors = request.args["model"], request.args["vectors"]
        accepted = self._leases.accept(model, [(key, token) for key, token, _ in vectors])
        keys = [vectors[index][0] for index in accepted]

        def finished(error: str | None) -> None:
            self._leases.finish(model, keys)
            if error is not None:
                reply(pack_error(request.id, "failed", error))
            else:
                reply(pack_result(request.id, {"stored": len(keys), "refused": len(vectors) - len(keys)}))

        if not keys:
            finished(None)
            return
        stored = [TextVector(model, vectors[index][0], vectors[index][2]) for index in accepted]
        self._texts.put(stored, lambda error: self._post(lambda: finished(error)))

    def _claim(self, request: Request, reply: Reply) -> None:
        claim = self._roles.claim(request.args["role"], request.args["token"])
        if claim is None:
            reply(pack_error(request.id, "busy", f"{limits.ROLES_MAX} roles are held already"))
        else:
            reply(pack_result(request.id, claim._asdict()))

    def _wait(self, request: Request, reply: Reply, peer: bytes) -> None:
        if not self._may_wait() and not self._make_room(peer):
            reply(pack_error(request.id, "busy", f"{limits.WAITERS_MAX} clients wait already"))
            return
        deadline = time.monotonic() + request.args["timeout_ms"] / 1_000
        self._waiters.append(_Waiter(request.args["event_id"], deadline, request.id, reply, peer))

    def _make_room(self, peer: bytes) -> bool:
        """Send away the oldest wait of whoever has most, for one who has less. Returns whether there is room now."""
        counts = Counter(waiter.peer for waiter in self._waiters)
        if not counts:
            return False
        greediest, most = counts.most_common(1)[0]
        if counts[peer] + 1 >= most:
            return False
        waiter = next(waiter for waiter in self._waiters if waiter.peer == greediest)
        self._waiters.remove(waiter)
        waiter.reply(pack_error(waiter.request_id, "busy", f"{limits.WAITERS_MAX} clients wait, and this one has most"))
        return True

    def _start_job(self, request: Request, reply: Reply) -> None:
        fold = request.args.get("fold")
        if fold is not None and not self._backend.knows(fold):
            reply(pack_error(request.id, "unknown_fold", f"no fold {fold!r} is served by this daemon"))
            return

        def done(result: dict[str, Any] | None, error: str | None) -> None:
            data = pack_error(request.id, "failed", error) if error is not None else pack_result(request.id, result)
            self._post(lambda: reply(data))

        if request.command == protocol.INDEX:
            self._backend.index(done)
        elif request.command == protocol.VERIFY:
            self._backend.verify(fold, done)
        else:
            self._backend.invalidate(fold, done)

    def _answer_waiters(self) -> None:
        if not self._waiters:
            return
        now, left = time.monotonic(), []
        for waiter in self._waiters:
            as_of, is_published = self._status.as_of, self._status.is_published
            reached = is_published and as_of >= waiter.event_id
            if reached or now >= waiter.deadline:
                waiter.reply(pack_result(waiter.request_id, {"reached": reached, "as_of": as_of}))
            else:
                left.append(waiter)
        self._waiters = left

    def _complain(self, error: ProtocolError) -> None:
        self._status.malformed_messages += 1
        if self._status.malformed_messages <= _COMPLAINTS_MAX:
            self._log.warning("malformed message", error=str(error))


def _filter_peers(socket: zmq.Socket[bytes], uids: set[int]) -> None:
    """Let only processes of these users connect, whatever became of the socket's mode; where libzmq knows how to."""
    for uid in uids:
        with _no_matter():
            socket.setsockopt(zmq.IPC_FILTER_UID, uid)


@contextmanager
def _no_matter() -> Iterator[None]:
    """What is sent are hints: a peer that is gone or does not read misses them."""
    try:
        yield
    except (OSError, zmq.ZMQError):
        return
