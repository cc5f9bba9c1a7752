"""The peers of a socket: how many may be connected, and what all of them may cost.

libzmq has no bound on connections, nor on the frames of one message, and keeps all frames until the last one has come;
so too many connections, or a daemon that grows while peers are connected, end in hanging up on them. An honest client
connects again and has missed a hint.

Owns no connection: those are libzmq's. Never closes a descriptor, for its number may be another file's by now.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket as sockets
import struct
import termios
import time
from collections.abc import Callable
from enum import Enum
from itertools import islice

import zmq

from pmm_shm import limits

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_EVENT = struct.Struct("=Hi")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SETTLING_S = 0.5
_WORTH_TRIMMING_BYTES = 8 << 20


class Peers:
    """Who is connected to a socket that will be bound.

    Parameters:
        connections_max: beyond it, the oldest connections are ended: commands are short, and an idle peer stays.
    """

    def __init__(self, socket: zmq.Socket[bytes], connections_max: int) -> None:
        self._socket = socket
        self._connections_max = connections_max
        self.monitor = socket.get_monitor_socket(_EVENTS)
        # A dict keeps its order. Numbers are used again, but libzmq tells of an end before it closes the descriptor.
        self._descriptors: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._descriptors)

    def look(self) -> int:
        """Take notice of connections that came and went; end those that are too many. Returns how many these are.

        Events wait in a queue of bounded length, and libzmq accepts nobody while it is full.
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
        return self._hang_up(list(islice(self._descriptors, max(0, len(self) - self._connections_max))))

    def hang_up(self, *, spares_quiet: bool) -> int:
        """End all connections, or those from which more has come than is read. Returns how many these are."""
        return self._hang_up([one for one in self._descriptors if not spares_quiet or _has_unread(one)])

    def close(self) -> None:
        """Hear no more of connections; before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)

    def _hang_up(self, descriptors: list[int]) -> int:
        for descriptor in descriptors:
            # Its end is told by an event, but to count it until then would end more than is needed.
            del self._descriptors[descriptor]
            _shut_down(descriptor)
        return len(descriptors)


class Excess(Enum):
    """What `MemoryWatch` finds: nothing, too much memory, or as much as before although something was done about it."""

    NONE = 0
    NEW = 1
    STILL = 2


class MemoryWatch:
    """Whether this process has grown by more than its peers may cost it, since it was as small as it gets.

    Parameters:
        anonymous_bytes: memory of this process that no file stands for.
        trim: gives back to the system what is free.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        anonymous_bytes: Callable[[], int] | None = None,
        trim: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._anonymous_bytes = anonymous_bytes or _anonymous_bytes
        self._trim = trim or _trim
        self._clock = clock
        self._base_bytes = self._anonymous_bytes()
        self._gives_up_at: float | None = None

    def look(self) -> Excess:
        """Whether to hang up now. What is still there after half a second of that is not the peers': the new base."""
        if self._gives_up_at is not None:
            self._trim()
        size_bytes = self._anonymous_bytes()
        self._base_bytes = min(self._base_bytes, size_bytes)
        if size_bytes - self._base_bytes <= limits.PEERS_MEMORY_BYTES_MAX:
            self._gives_up_at = None
            return Excess.NONE
        if self._gives_up_at is None:
            self._gives_up_at = self._clock() + _SETTLING_S
            return Excess.NEW
        if self._clock() < self._gives_up_at:
            return Excess.STILL
        self._gives_up_at, self._base_bytes = None, size_bytes
        return Excess.NONE

    def rest(self) -> None:
        """Nobody has been connected for a while: what the process is now, less what is free in it, is its own."""
        if self._anonymous_bytes() - self._base_bytes > _WORTH_TRIMMING_BYTES:
            self._trim()
        self._gives_up_at, self._base_bytes = None, self._anonymous_bytes()


def allow_descriptors() -> int:
    """Let this process have as many descriptors as its peers could take. Returns how many connections one socket may
    have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(limits.DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    # Three sockets, and as much again for files.
    return limits.CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else min(limits.CONNECTIONS_MAX, soft // 4)


def _has_unread(descriptor: int) -> bool:
    try:
        return fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)) != bytes(4)
    except OSError:
        return False


def _shut_down(descriptor: int) -> None:
    """End the connection of a descriptor, without closing it; nothing happens to one that is no socket any more."""
    try:
        found = sockets.socket(fileno=descriptor)
    except OSError:
        return
    try:
        if found.family == sockets.AF_UNIX:
            found.shutdown(sockets.SHUT_RDWR)
    except OSError:
        return
    finally:
        found.detach()


def _anonymous_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def _trim() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        # Another C library than glibc; it gives back by itself, or not.
        return
