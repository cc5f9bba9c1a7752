"""The connections of the command sockets: limited in number, and ended when they make the daemon's memory grow.

libzmq has no limit on connections, and aborts the process when it is out of file descriptors. It keeps every frame of a
message until the last one has arrived, without a limit on their number. So a daemon that grows by more than
`limits.PEERS_MEMORY_BYTES_MAX` while clients are connected disconnects them. Honest clients connect again and miss a
hint.

The connections belong to libzmq. Never close a descriptor here: its number may belong to another file by now.
"""

from __future__ import annotations

import ctypes
import fcntl
import resource
import socket as sockets
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from itertools import islice

import zmq

from pmm_cached.sizes import process_memory
from pmm_shm import limits

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_EVENT = struct.Struct("=Hi")
_WATCHED_AFTER_S = 1.0
_SETTLING_S = 0.5
_TRIM_BYTES_MIN = 8 << 20
_CONNECTIONS_MIN = 4


class Suspects(Enum):
    """The connections that may be the cause of too much memory: none, those with unread data, or all."""

    NONE = 0
    WITH_UNREAD_DATA = 1
    ALL = 2


def free_unused_memory() -> None:
    """Return freed memory to the system; does nothing where the C library is not glibc."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class MemoryWatch:
    """Compares the memory of this process with the least that it had, while clients are connected.

    Parameters:
        anonymous_bytes: memory of this process that is not backed by files.
        trim: returns freed memory to the system.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        anonymous_bytes: Callable[[], int] = lambda: process_memory()[1],
        trim: Callable[[], None] = free_unused_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._anonymous_bytes = anonymous_bytes
        self._trim = trim
        self._clock = clock
        self._base_bytes = anonymous_bytes()
        self._settles_at: float | None = None
        self._watched_until = -float("inf")
        self._next_check: float | None = None

    def watch(self, *, is_anyone_connected: bool) -> Suspects:
        """Call this whenever something happened, and at `next_deadline`. Returns the connections to end now."""
        now = self._clock()
        if is_anyone_connected:
            self._watched_until = now + _WATCHED_AFTER_S
        # A while longer, so that the memory of a client that connects again at once does not become the base.
        is_watching = now < self._watched_until
        if is_watching != (self._next_check is not None):
            self.rebase()
        elif not is_watching or now < (self._next_check or now):
            return Suspects.NONE
        self._next_check = now + limits.PEERS_MEMORY_CHECK_S if is_watching else None
        return self.check()

    def next_deadline(self) -> float | None:
        """When `watch` has to be called next, by the clock; None while nobody is connected."""
        return self._next_check

    def check(self) -> Suspects:
        """The connections to end now: first those with unread data; if that does not help, all.

        Memory that remains half a second after that is not the clients'; it becomes the base.
        """
        if self._settles_at is not None:
            self._trim()
        size_bytes = self._anonymous_bytes()
        self._base_bytes = min(self._base_bytes, size_bytes)
        if size_bytes - self._base_bytes <= limits.PEERS_MEMORY_BYTES_MAX:
            self._settles_at = None
            return Suspects.NONE
        if self._settles_at is None:
            self._settles_at = self._clock() + _SETTLING_S
            return Suspects.WITH_UNREAD_DATA
        if self._clock() < self._settles_at:
            return Suspects.ALL
        self._settles_at, self._base_bytes = None, size_bytes
        return Suspects.NONE

    def rebase(self) -> None:
        """Take the memory in use now as the base: nobody has been connected for a while."""
        if self._anonymous_bytes() - self._base_bytes > _TRIM_BYTES_MIN:
            self._trim()
        self._settles_at, self._base_bytes = None, self._anonymous_bytes()


class Peers:
    """The connections of a socket that is not bound yet.

    Parameters:
        connections_max: beyond it the oldest connections are ended, because commands are short and idle clients remain.
    """

    def __init__(self, socket: zmq.Socket[bytes], connections_max: int) -> None:
        self._socket = socket
        self._connections_max = connections_max
        self.monitor = socket.get_monitor_socket(_EVENTS)
        # In the order of arrival. Numbers are reused, but libzmq reports the end before it closes the descriptor.
        self._descriptors: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._descriptors)

    def update(self) -> int:
        """Read which connections came and went, and end the oldest if there are too many. Returns how many it ended.

        libzmq accepts nobody while its queue of events is full.
        """
        while True:
            try:
                event, descriptor = _EVENT.unpack(self.monitor.recv(zmq.NOBLOCK)[: _EVENT.size])
            except zmq.Again:
                break
            while self.monitor.getsockopt(zmq.RCVMORE):
                self.monitor.recv()
            self._descriptors.pop(descriptor, None)
            if event == zmq.EVENT_ACCEPTED:
                self._descriptors[descriptor] = None
        return self._end(list(islice(self._descriptors, max(0, len(self) - self._connections_max))))

    def end(self, suspects: Suspects) -> int:
        """End these connections. Returns how many there were."""
        if suspects is Suspects.NONE:
            return 0
        return self._end([one for one in self._descriptors if suspects is Suspects.ALL or _has_unread_data(one)])

    def close(self) -> None:
        """Stop reading events; call it before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)

    def _end(self, descriptors: list[int]) -> int:
        for descriptor in descriptors:
            # An event will report it. To count it until then would end more connections than needed.
            del self._descriptors[descriptor]
            _shut_down(descriptor)
        return len(descriptors)


def allow_descriptors() -> int:
    """Raise this process's limit on file descriptors. Returns how many connections one socket may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(limits.DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return limits.CONNECTIONS_MAX
    # Three sockets. libzmq ends the process where it cannot accept a connection, and accepts a few before we know.
    spare = soft - limits.DESCRIPTORS_MIN
    return max(_CONNECTIONS_MIN, min(limits.CONNECTIONS_MAX, soft // 4, spare // 4))


def _has_unread_data(descriptor: int) -> bool:
    try:
        return fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)) != bytes(4)
    except OSError:
        return False


def _shut_down(descriptor: int) -> None:
    """End the connection of a descriptor without closing it, unless it is another kind of file by now."""
    with suppress(OSError):
        connection = sockets.socket(fileno=descriptor)
        try:
            if connection.family == sockets.AF_UNIX:
                connection.shutdown(sockets.SHUT_RDWR)
        finally:
            connection.detach()
