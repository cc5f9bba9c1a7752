"""The socket for the workers' reports: datagrams that are not answered.

It is not a ZeroMQ socket: a worker that only reads does not import ZeroMQ, and its report is one system call that never
blocks. The sender's pid comes from the system, not from the message.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from pmm_cached.sockets import new_files_of
from pmm_cached.workers import Workers
from pmm_shm import limits
from pmm_shm.instance.paths import FileId
from pmm_shm.wire.protocol import REPORTS, ProtocolError, unpack_request

_CREDENTIALS = struct.Struct("3i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)
_REPORTS_PER_TURN = 100


class Reports:
    """Binds the socket when made.

    Parameters:
        mode: the mode that its file has from the start.
        is_ours: whether an identity is that of the daemon's ledger; reports for another one are dropped.

    Raises:
        OSError: the socket cannot be bound.
    """

    def __init__(self, path: str, mode: int, workers: Workers, is_ours: Callable[[FileId | None], bool]) -> None:
        self._workers = workers
        self._is_ours = is_ours
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with suppress(FileNotFoundError):
            os.unlink(path)
        with new_files_of(mode):
            self._socket.bind(path)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[ProtocolError]:
        """Record the reports that have arrived, a limited number at once. Returns the errors of malformed ones."""
        errors = []
        for _ in range(_REPORTS_PER_TURN):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(limits.REPORT_BYTES_MAX, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            try:
                request = unpack_request(data, REPORTS)
            except ProtocolError as error:
                errors.append(error)
                continue
            if not self._is_ours(request.ledger):
                continue
            args = request.args
            self._workers.report(args["worker"], _sender(ancillary), args["counters"], is_last=args["is_last"])
        return errors

    def close(self) -> None:
        self._socket.close()


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The pid of the sending process; 0 if it is not visible to this one."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            return int(_CREDENTIALS.unpack_from(data)[0])
    return 0
