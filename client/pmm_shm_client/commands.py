"""Commands to the daemon over ZeroMQ: each within its deadline, and none that a read depends on.

ZeroMQ is imported with the first command: a worker that only reads does not need it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pmm_shm import limits
from pmm_shm.errors import CommandError, DaemonAbsentError, DaemonTimeoutError
from pmm_shm.instance.paths import Instance
from pmm_shm.late import late_imports
from pmm_shm.projection.verification import VerifyReport
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import address_of, check_listening, find_endpoints
from pmm_shm.wire.protocol import ProtocolError, Request, unpack_reply

if TYPE_CHECKING:
    import zmq

_ids = itertools.count(1)
_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's ZeroMQ context; that of a parent is left to it."""
    with late_imports:
        import zmq

    pid = os.getpid()
    found = _contexts.get(pid)
    if found is None:
        found = _contexts[pid] = zmq.Context()
    return found


def endpoint_for(instance: Instance, command: str) -> tuple[str, int]:
    """The socket that takes a command, and the pid of its daemon.

    Raises:
        DaemonAbsentError: no daemon serves this ledger.
        CommandError: this user may not give the command.
    """
    endpoints = find_endpoints(instance)
    if command in protocol.ORDINARY:
        return address_of(endpoints.commands), endpoints.pid
    try:
        check_listening(endpoints.admin)
    except PermissionError:
        raise CommandError(f"{command} is for the daemon's own user; no permission for {endpoints.admin}") from None
    except OSError as error:
        raise DaemonAbsentError(f"{instance.ledger}: {endpoints.admin}: {error.strerror}") from None
    return address_of(endpoints.admin), endpoints.pid


def check_alive(instance: Instance, pid: int, command: str) -> None:
    """See that the daemon which was given a command still serves the ledger.

    Raises:
        DaemonAbsentError: it does not, and will never answer.
    """
    if find_endpoints(instance).pid != pid:
        raise DaemonAbsentError(f"{instance.ledger}: the daemon (pid {pid}) ended before it answered {command}")


def call(instance: Instance, command: str, args: Mapping[str, Any], timeout_s: float) -> Any:
    """Send a command and return the daemon's result.

    Raises:
        DaemonAbsentError: no daemon serves this ledger, or it ended before it answered.
        DaemonTimeoutError: no answer within `timeout_s`.
        CommandError: the daemon refused or failed.
    """
    with Line(instance, command) as line:
        return line.ask(command, args, timeout_s)


class Line:
    """A socket to the daemon that takes a command, for one or several of its kind; for one thread.

    Raises:
        DaemonAbsentError: no daemon serves this ledger.
        CommandError: this user may not give the command.
    """

    def __init__(self, instance: Instance, command: str) -> None:
        with late_imports:
            import zmq

        self._instance = instance
        address, self._pid = endpoint_for(instance, command)
        socket = self._socket = context().socket(zmq.DEALER)
        bound(socket)
        socket.connect(address)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, command: str, args: Mapping[str, Any], timeout_s: float) -> Any:
        """As `call`."""
        import zmq

        deadline = time.monotonic() + timeout_s
        request = Request(next(_ids), command, args)
        data, is_sent = request.pack(), False
        while True:
            remaining_s = deadline - time.monotonic()
            if remaining_s < 0:
                raise DaemonTimeoutError(
                    f"{self._instance.ledger}: the daemon did not answer {command} within {timeout_s:g} s"
                )
            if not self._socket.poll(poll_ms(remaining_s), zmq.POLLIN if is_sent else zmq.POLLOUT):
                if remaining_s > limits.DAEMON_CHECK_S:
                    check_alive(self._instance, self._pid, command)
            elif is_sent:
                try:
                    return unpack_reply(self._socket.recv(zmq.NOBLOCK), request.id)
                except (ProtocolError, zmq.Again):
                    continue
            else:
                is_sent = self._send(data)

    def _send(self, data: bytes) -> bool:
        """Send without waiting: a daemon that stands still lets nothing through. Returns whether it is sent."""
        import zmq

        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


def bound(socket: zmq.Socket[Any]) -> None:
    """Limit what a new socket to the daemon keeps and lets in."""
    import zmq

    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.REPLY_BYTES_MAX)
    socket.setsockopt(zmq.SNDHWM, limits.REQUESTS_WAITING_MAX)
    socket.setsockopt(zmq.RCVHWM, limits.REPLIES_WAITING_MAX)


def poll_ms(remaining_s: float) -> int:
    """How long to wait for an answer before one looks whether the daemon lives."""
    return max(1, int(min(remaining_s, limits.DAEMON_CHECK_S) * 1_000))


def wait_args(event_id: int, timeout_s: float) -> dict[str, int]:
    """Arguments of the wait command: the daemon gives up a little before the client does."""
    return {"event_id": event_id, "timeout_ms": max(0, int(timeout_s * 1_000) - 50)}


def checked_wait(result: Mapping[str, Any], path: str, event_id: int, timeout_s: float) -> int:
    """The event id up to which is published, from the daemon's answer.

    Raises:
        DaemonTimeoutError: it did not get there.
    """
    if not result["reached"]:
        raise DaemonTimeoutError(f"{path}: event {event_id} was not published within {timeout_s:g} s")
    return int(result["as_of"])


def report_of(result: Mapping[str, Any]) -> VerifyReport:
    """The report in the daemon's answer to verify."""
    return VerifyReport(
        bool(result["ok"]),
        int(result["as_of"]),
        tuple(result["folds"]),
        int(result["events"]),
        int(result["sealed_blocks"]),
        result["difference"],
    )
