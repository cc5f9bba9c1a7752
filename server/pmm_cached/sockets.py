"""The command sockets: made with limits, bound under their mode, read frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import zmq

from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.wire.endpoints import address_of

GROUP_MODE = 0o660
OWNER_MODE = 0o600
_ROOT = 0
_OPTIONS: dict[int, tuple[tuple[zmq.SocketOption, int], ...]] = {
    zmq.ROUTER: (
        (zmq.MAXMSGSIZE, limits.MESSAGE_BYTES_MAX),
        (zmq.RCVHWM, limits.REQUESTS_WAITING_MAX),
        (zmq.SNDHWM, limits.REPLIES_WAITING_MAX),
    ),
    zmq.PUB: (
        (zmq.MAXMSGSIZE, limits.SUBSCRIPTION_BYTES_MAX),
        (zmq.RCVHWM, limits.ANNOUNCEMENTS_WAITING_MAX),
        (zmq.SNDHWM, limits.ANNOUNCEMENTS_WAITING_MAX),
    ),
}
_COMMON_OPTIONS = (
    (zmq.LINGER, 0),
    (zmq.HANDSHAKE_IVL, limits.HANDSHAKE_MS),
    (zmq.BACKLOG, limits.BACKLOG_CONNECTIONS),
)


def make_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """A socket with limits on what it keeps and lets in."""
    socket = context.socket(kind)
    for option, value in (*_COMMON_OPTIONS, *_OPTIONS[kind]):
        socket.setsockopt(option, value)
    return socket


def bind_socket(socket: zmq.Socket[bytes], path: str, mode: int) -> None:
    """Bind a socket to a path whose file gets its mode at once: a chmod after the bind would leave a gap.

    With `OWNER_MODE`, libzmq also asks the system for the user of each connection, if it was built to.

    Raises:
        zmq.ZMQError: the path cannot be bound.
    """
    with suppress(OSError):
        os.unlink(path)
    if mode == OWNER_MODE:
        for uid in {os.geteuid(), _ROOT}:
            with suppress(zmq.ZMQError):
                socket.setsockopt(zmq.IPC_FILTER_UID, uid)
    with new_files_of(mode):
        crash_point("socket.before")
        socket.bind(address_of(path))
        crash_point("socket.bound")


@contextmanager
def new_files_of(mode: int) -> Iterator[None]:
    """Files that are made within have this mode."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


class Inbox:
    """Receives the messages of a ROUTER frame by frame, because libzmq does not limit the frames of a message.

    Keeps only the first frame of each message.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._client = self._data = b""
        self._frames = 0

    def receive(self) -> tuple[bytes, bytes, int] | None:
        """The next message as (client, first frame, number of frames).

        None if there is none, or after `limits.FRAMES_PER_TURN` frames without an end; the next call goes on.
        """
        for _ in range(limits.FRAMES_PER_TURN):
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if self._frames == 0:
                self._client, self._data = frame, b""
            elif self._frames == 1:
                self._data = frame
            self._frames += 1
            if not self._socket.getsockopt(zmq.RCVMORE):
                frames, self._frames = self._frames - 1, 0
                return self._client, self._data, frames
        return None
