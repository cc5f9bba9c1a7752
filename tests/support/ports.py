"""Ports of this machine that are kept for servers that start later."""

from __future__ import annotations

import socket


class HeldPort:
    """A port of 127.0.0.1 that nobody else is given until `close`, neither to listen nor to connect from.

    It is bound, and nobody listens there. A server that sets SO_REUSEADDR, as PostgreSQL, pgbouncer, uvicorn and
    gunicorn do, may listen there meanwhile.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()
