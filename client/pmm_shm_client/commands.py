"""Commands to the daemon over ZeroMQ, each with a deadline. No read depends on one.

`wait_command` and its like say how a command is asked and how its result is read; `CommandConnection` exchanges
messages. The asyncio client (`aio`) uses both.

ZeroMQ is imported with the first command, because a worker that only reads does not need it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pmm_shm import limits
from pmm_shm.errors import CommandError, ConfigError, DaemonAbsentError, DaemonTimeoutError, ResourceLimitError
from pmm_shm.folds.registry import checked_fold_name
from pmm_shm.instance.paths import Instance, file_id
from pmm_shm.late import late_imports
from pmm_shm.projection.verification import VerifyReport
from pmm_shm.resources import require, shortage_of
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import absent, address_of, check_listening, find_endpoints
from pmm_shm.wire.protocol import OtherLedgerError, ProtocolError, Request, unpack_reply
from pmm_shm.wire.results import WaitResult, read_result

if TYPE_CHECKING:
    import zmq

_STATS_S = 1.0
_WAIT_MARGIN_MS = 50
# libzmq's: of a context with its first socket, and of another socket; one more to look whether a daemon listens.
_FIRST_DESCRIPTORS, _DESCRIPTORS = 10, 3
_CONTEXT_THREADS = 2
_T = TypeVar("_T")
_ids = itertools.count(1)
_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}
_started: set[int] = set()
"""The processes (this one, and those that it was forked from) whose context has its threads."""


# What can be asked.


@dataclass(frozen=True)
class DaemonCommand(Generic[_T]):
    """A command, its deadline, and the function that reads its result."""

    name: str
    args: Mapping[str, Any]
    timeout_s: float
    read: Callable[[Any], _T]


def wait_command(ledger: str, event_id: int, timeout: float) -> DaemonCommand[int]:
    """Wait until an event is published. Result: the event id up to which is published.

    Raises:
        ConfigError: `event_id` or `timeout` is not a usable number.
        DaemonTimeoutError: from `read`; the event was not published in time.
    """
    timeout_s = checked_timeout(timeout)
    # The daemon gives up a little before the client does.
    timeout_ms = max(0, int(timeout_s * 1_000) - _WAIT_MARGIN_MS)

    def read(result: Any) -> int:
        reached, as_of = read_result(WaitResult, result)
        if not reached:
            raise DaemonTimeoutError(f"{ledger}: event {event_id} was not published within {round(timeout_s, 2):g} s")
        return as_of

    args = {"event_id": checked_event_id(event_id), "timeout_ms": timeout_ms}
    return DaemonCommand(protocol.WAIT, args, timeout_s, read)


def verify_command(fold: str | None, timeout: float) -> DaemonCommand[VerifyReport]:
    """Compare what is published with a full replay. Raises `ConfigError`."""
    return DaemonCommand(
        protocol.VERIFY, {"fold": fold}, checked_timeout(timeout), lambda result: read_result(VerifyReport, result)
    )


def invalidate_command(fold: str | None, timeout: float) -> DaemonCommand[int]:
    """Rebuild what is published. Result: the event id up to which it was rebuilt.

    Raises:
        ConfigError: `timeout` is not a number.
        UnknownFoldError: `fold` cannot be the name of a fold.
    """
    if fold is not None:
        checked_fold_name(fold)
    return DaemonCommand(
        protocol.INVALIDATE, {"fold": fold}, checked_timeout(timeout), lambda result: int(result["as_of"])
    )


def ping_command() -> DaemonCommand[dict[str, Any]]:
    """Whether the daemon is there and serves this ledger."""
    return DaemonCommand(protocol.PING, {}, _STATS_S, dict)


def stats_command() -> DaemonCommand[dict[str, Any]]:
    """The daemon's numbers."""
    return DaemonCommand(protocol.STATS, {}, _STATS_S, dict)


def checked_timeout(timeout: object) -> float:
    """Seconds to wait for the daemon, at most what the protocol allows.

    Raises:
        ConfigError: not a number.
    """
    if not isinstance(timeout, (int, float)) or timeout != timeout:
        raise ConfigError(f"timeout: {timeout!r:.80} is not a number of seconds")
    return min(timeout, protocol.WAIT_MS_MAX / 1_000)


def checked_event_id(event_id: object) -> int:
    """The id of an event, whether the event exists or not.

    Raises:
        ConfigError: not an integer of 64 bits.
    """
    if not isinstance(event_id, int) or not -(1 << 63) <= event_id < 1 << 63:
        raise ConfigError(f"event_id: {event_id!r:.80} is not an integer of 64 bits")
    return event_id


# How it is asked.


def give(instance: Instance, command: DaemonCommand[_T]) -> _T:
    """Give the daemon a command and return its result. Raises as `call`, and what the command's `read` raises."""
    return command.read(call(instance, command.name, command.args, command.timeout_s))


def call(instance: Instance, command: str, args: Mapping[str, Any], timeout_s: float) -> Any:
    """Send a command and return the daemon's result.

    Raises:
        DaemonAbsentError: no daemon serves this ledger, or it ended before it answered.
        DaemonTimeoutError: no answer within `timeout_s`.
        CommandError: the daemon refused or failed.
        ResourceLimitError: this process cannot ask it.
    """
    with CommandConnection(instance, command) as connection:
        return connection.ask(command, args, timeout_s)


class CommandConnection:
    """A connection to the daemon's socket that takes `command`, and others of its kind; for one thread.

    Parameters:
        socket: a new DEALER, which the caller closes; None to make one.

    Raises:
        DaemonAbsentError: no daemon serves this ledger.
        CommandError: this user may not give the command.
        ResourceLimitError: this process has no file descriptor, thread or memory left for it.
    """

    def __init__(self, instance: Instance, command: str, socket: zmq.Socket[bytes] | None = None) -> None:
        with late_imports:
            import zmq

        self._instance = instance
        address, self._pid = _endpoint_for(instance, command)
        self._socket = open_socket(instance.ledger, context, zmq.DEALER) if socket is None else socket
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.REPLY_BYTES_MAX)
        self._socket.setsockopt(zmq.SNDHWM, limits.REQUESTS_WAITING_MAX)
        self._socket.setsockopt(zmq.RCVHWM, limits.REPLIES_WAITING_MAX)
        self._socket.connect(address)

    def __enter__(self) -> CommandConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, command: str, args: Mapping[str, Any], timeout_s: float) -> Any:
        """As `call`, over this connection."""
        exchange = self.exchange(command, args, timeout_s)
        try:
            timeout_ms, events = next(exchange)
            while True:
                timeout_ms, events = exchange.send(self._socket.poll(timeout_ms, events) != 0)
        except StopIteration as end:
            return end.value

    def exchange(
        self, command: str, args: Mapping[str, Any], timeout_s: float
    ) -> Generator[tuple[int, int], bool, Any]:
        """Ask without polling: yields (timeout_ms, events), takes whether the socket is ready, returns the result.

        It never waits for the socket. When the socket was not ready, it may look for the daemon for up to a second.
        Raises as `call`.
        """
        import zmq

        deadline = time.monotonic() + timeout_s
        request = Request(next(_ids), command, args, file_id(self._instance.ledger))
        data, is_sent = request.pack(), False
        while True:
            remaining_s = deadline - time.monotonic()
            if remaining_s < 0:
                # libzmq connects in the background, and tries again and again where it has no descriptor for that.
                require(self._instance.ledger)
                raise DaemonTimeoutError(
                    f"{self._instance.ledger}: the daemon did not answer {command} within {round(timeout_s, 2):g} s"
                )
            poll_ms = max(1, int(min(remaining_s, limits.DAEMON_CHECK_S) * 1_000))
            if not (yield poll_ms, zmq.POLLIN if is_sent else zmq.POLLOUT):
                if remaining_s > limits.DAEMON_CHECK_S:
                    self._check_alive(command)
                continue
            try:
                if is_sent:
                    return unpack_reply(self._socket.recv(zmq.NOBLOCK), request.id)
                self._socket.send(data, zmq.NOBLOCK)
                is_sent = True
            except (ProtocolError, zmq.Again):
                continue
            except OtherLedgerError:
                ledger = file_id(self._instance.ledger)
                if ledger == request.ledger:
                    raise absent(self._instance) from None
                # The ledger was replaced on the way.
                request = request._replace(ledger=ledger)
                data, is_sent = request.pack(), False

    def _check_alive(self, command: str) -> None:
        if find_endpoints(self._instance).pid != self._pid:
            raise DaemonAbsentError(
                f"{self._instance.ledger}: the daemon (pid {self._pid}) ended before it answered {command}"
            )


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's ZeroMQ context; a forked child makes its own."""
    with late_imports:
        import zmq

        pid = os.getpid()
        found = _contexts.get(pid)
        if found is None:
            found = _contexts[pid] = zmq.Context()
        return found


def open_socket(what: str, context_of: Callable[[], zmq.Context[Any]], kind: int) -> Any:
    """A new socket of this process's context, or of a shadow of it.

    The first one starts libzmq's threads; where it cannot, libzmq ends the process.

    Parameters:
        what: the beginning of an error's message.
        context_of: `context`, or a function that makes a shadow of it.

    Raises:
        ResourceLimitError: this process has not what it takes.
    """
    import zmq

    pid = os.getpid()
    try:
        if pid in _started:
            require(what, _DESCRIPTORS)
            return context_of().socket(kind)
        with late_imports:
            require(what, _FIRST_DESCRIPTORS, _CONTEXT_THREADS)
            made = context_of().socket(kind)
            _started.add(pid)
            return made
    except zmq.ZMQError as error:
        raise ResourceLimitError(f"{what}: {shortage_of(OSError(error.errno, '')) or error}") from error


def _endpoint_for(instance: Instance, command: str) -> tuple[str, int]:
    """The address of the socket that takes a command, and the pid of its daemon."""
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
