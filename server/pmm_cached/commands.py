"""The command server: two sockets for ordinary and administrative commands, one that announces new positions.

One thread owns all sockets, and carries out the commands (`dispatch`). Other threads hand it functions to run.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from contextlib import suppress

import zmq

from pmm_cached.background import BackgroundThread
from pmm_cached.client_call import ClientCall
from pmm_cached.dispatch import Backend, Dispatcher
from pmm_cached.logs import Logger
from pmm_cached.peers import MemoryWatch, Peers, allow_descriptors
from pmm_cached.reports import Reports
from pmm_cached.sockets import GROUP_MODE, OWNER_MODE, Inbox, bind_socket, make_socket
from pmm_cached.status import Status
from pmm_cached.text_table import TextTable
from pmm_shm import limits
from pmm_shm.instance.paths import FileId
from pmm_shm.vectors.text_table import TextVector
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints
from pmm_shm.wire.protocol import Announcement, ProtocolError, pack_error, unpack_request

_LOG_LINES_MAX = 10
_THREAD_CHECK_S = 0.1
_UNDELIVERABLE = (OSError, zmq.ZMQError)
"""Errors of sending that are ignored: a client that is gone or does not read misses a hint."""


class CommandServer(BackgroundThread):
    """Binds the sockets when made; `start` begins to answer.

    Parameters:
        is_ours: whether an identity is that of the daemon's ledger; requests that mean another one are refused.
        on_death: as for `BackgroundThread`.

    Raises:
        zmq.ZMQError: a socket cannot be bound.
    """

    _task = "commands"

    def __init__(
        self,
        endpoints: Endpoints,
        backend: Backend,
        texts: TextTable,
        status: Status,
        log: Logger,
        is_ours: Callable[[FileId | None], bool],
        on_death: Callable[[str], None],
    ) -> None:
        super().__init__("commands", log, on_death)
        self._is_ours = is_ours
        self._endpoints = endpoints
        self._texts = texts
        self._status = status
        self._dispatcher = Dispatcher(backend, texts, status, self._post)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peers: dict[zmq.Socket[bytes], Peers] = {}
        connections_max = allow_descriptors()
        self._memory = MemoryWatch()
        self._commands = self._open(zmq.ROUTER, endpoints.commands, GROUP_MODE, connections_max)
        self._admin = self._open(zmq.ROUTER, endpoints.admin, OWNER_MODE, connections_max)
        self._publisher = self._open(zmq.PUB, endpoints.announcements, GROUP_MODE, connections_max)
        self._inboxes = {
            self._commands: (Inbox(self._commands), protocol.ORDINARY),
            self._admin: (Inbox(self._admin), protocol.ADMINISTRATIVE),
        }
        self._reports = Reports(endpoints.reports, GROUP_MODE, status.workers, is_ours)
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._disconnections_logged = 0
        self._unanswered = 0

    def stop(self, timeout_s: float | None = None, *, removes_files: bool = True) -> bool:
        """Answer the clients that can be answered, close the sockets, and remove their files."""
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)
        has_ended = super().stop(timeout_s)
        for peers in self._peers.values():
            peers.close()
        for socket in (self._commands, self._admin):
            # The last answers are on their way.
            socket.close(linger=limits.FAREWELL_MS)
        self._publisher.close(linger=0)
        self._reports.close()
        self._context.term()
        os.close(self._wake)
        for path in self._endpoints.paths if removes_files else ():
            with suppress(OSError):
                os.unlink(path)
        return has_ended

    def announce(self, as_of: int, sequence: int) -> None:
        """Announce a position, and answer the clients that wait for it. From any thread."""
        data = Announcement(as_of, sequence).pack()
        self._post(lambda: self._publisher.send(data, zmq.NOBLOCK))

    def acquire_leases(self, model: str, keys: list[bytes]) -> list[bytes]:
        """Take, for this process, the leases on those texts that have no vector and no lease. From any other thread.

        Returns their keys. These leases do not expire; `finish_leases` ends them.
        """
        acquired: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
        self._post(lambda: acquired.put(self._dispatcher.leases.acquire_accepted(model, keys)))
        while True:
            try:
                return acquired.get(timeout=_THREAD_CHECK_S)
            except queue.Empty:
                if not self._thread.is_alive():
                    return []

    def finish_leases(self, model: str, keys: list[bytes], vectors: list[TextVector]) -> None:
        """End acquired leases, and store the vectors of those texts that have one now. From any thread."""
        if vectors:
            self._texts.put(vectors, lambda error: self._post(lambda: self._dispatcher.leases.finish(model, keys)))
        elif keys:
            self._post(lambda: self._dispatcher.leases.release_accepted(model, keys))

    @property
    def is_asked(self) -> bool:
        """Whether a client waits for an answer."""
        return self._unanswered > 0

    def _open(self, kind: int, path: str, mode: int, connections_max: int) -> zmq.Socket[bytes]:
        socket = make_socket(self._context, kind)
        self._peers[socket] = Peers(socket, connections_max)
        bind_socket(socket, path, mode)
        return socket

    def _post(self, action: Callable[[], None]) -> None:
        self._posted.put(action)
        os.eventfd_write(self._wake, 1)

    def _work(self) -> None:
        poller = zmq.Poller()
        for peers in self._peers.values():
            poller.register(peers.monitor, zmq.POLLIN)
        # Nothing is received from the publisher, but libzmq forgets old subscribers only when this thread polls it.
        for source in (*self._inboxes, self._publisher, self._wake, self._reports):
            poller.register(source, zmq.POLLIN)
        while not self._is_stopping:
            ready = dict(poller.poll(self._timeout_ms()))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            self._check_peers()
            self._run_posted()
            if self._reports.fileno() in ready:
                for error in self._reports.receive():
                    self._count_malformed(error)
            for socket in self._inboxes:
                if socket in ready:
                    self._receive(socket)
            self._dispatcher.advance()
        self._run_posted()
        self._dispatcher.close()

    def _timeout_ms(self) -> int | None:
        deadlines = (self._dispatcher.next_deadline(), self._memory.next_deadline())
        first = min((deadline for deadline in deadlines if deadline is not None), default=None)
        return None if first is None else max(0, int((first - time.monotonic()) * 1_000) + 1)

    def _run_posted(self) -> None:
        while True:
            try:
                action = self._posted.get_nowait()
            except queue.Empty:
                return
            with suppress(*_UNDELIVERABLE):
                action()

    def _check_peers(self) -> None:
        self._count_disconnections(sum(peers.update() for peers in self._peers.values()), "too many connections")
        self._status.connections = sum(map(len, self._peers.values()))
        # Only the daemon's own user can connect to the administrative socket.
        others = (self._peers[self._commands], self._peers[self._publisher])
        suspects = self._memory.watch(is_anyone_connected=any(others))
        self._count_disconnections(sum(peers.end(suspects) for peers in others), "peers hold too much memory")

    def _count_disconnections(self, count: int, reason: str) -> None:
        if count == 0:
            return
        self._status.hang_ups += count
        if self._disconnections_logged < _LOG_LINES_MAX:
            self._disconnections_logged += 1
            self._log.warning("hung up", connections=count, reason=reason)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        # A limited number, so that a flood on one socket does not block the other.
        inbox, allowed = self._inboxes[socket]
        for _ in range(limits.REQUESTS_PER_TURN):
            message = inbox.receive()
            if message is None:
                return
            self._handle(socket, *message, allowed)

    def _handle(
        self, socket: zmq.Socket[bytes], client: bytes, data: bytes, frames: int, allowed: frozenset[str]
    ) -> None:
        def send(reply: bytes) -> None:
            with suppress(*_UNDELIVERABLE):
                socket.send_multipart([client, reply], zmq.NOBLOCK)

        try:
            if frames != 1:
                raise ProtocolError(f"a message of {frames} frames; exactly one is allowed")
            request = unpack_request(data, allowed)
        except ProtocolError as error:
            self._count_malformed(error)
            send(pack_error(error.request_id, "malformed", str(error)))
            return
        if not self._is_ours(request.ledger):
            send(pack_error(request.id, protocol.OTHER_LEDGER, "this daemon serves another ledger"))
            return
        self._status.commands += 1
        self._unanswered += 1

        def answer(reply: bytes) -> None:
            self._unanswered -= 1
            send(reply)

        call = ClientCall(request, client, answer)
        try:
            self._dispatcher.carry_out(call)
        except Exception as error:
            self._log.exception("command failed", command=request.command)
            call.fail("failed", f"{type(error).__name__}: {error}")

    def _count_malformed(self, error: ProtocolError) -> None:
        self._status.malformed_messages += 1
        if self._status.malformed_messages <= _LOG_LINES_MAX:
            self._log.warning("malformed message", error=str(error))
