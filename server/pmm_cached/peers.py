"""The connections of a socket: counted, limited in number, and ended when they cost too much.

libzmq has no limit on connections, and aborts the process when it is out of file descriptors.

The connections belong to libzmq. Never close a descriptor here: its number may belong to another file by now.
"""

from __future__ import annotations

import fcntl
import resource
import socket as sockets
import struct
import termios
from contextlib import suppress
from itertools import islice

import zmq

from pmm_cached.memory import Suspects
from pmm_shm import limits

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_EVENT = struct.Struct("=Hi")


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
    # Three sockets, and as much again for files.
    return limits.CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else min(limits.CONNECTIONS_MAX, soft // 4)


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
