"""A proxy between a worker and PostgreSQL that loses the connection around a commit, or freezes it."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import Literal

Cut = Literal["before", "behind", "silent"]
"""Around which side of a commit the connection is cut: the server has not got it, or has done it; `silent` as `behind`,
and the connection stays open without an answer, as that of a frozen machine.
"""


@dataclass
class _Link:
    """A client's connection and the server's."""

    client: socket.socket
    server: socket.socket
    cut: Cut | None = None


class CuttingProxy:
    """Listens on a port of its own, for one server on this machine. It closes with the block.

    Parameters:
        port: the server's.
        cuts: one for each of the next commits.

    Attributes:
        is_open: whether new connections reach the server.
        is_frozen: whether nothing passes, while all connections stay open.
    """

    def __init__(self, port: int, *cuts: Cut) -> None:
        self._server_port = port
        self._cuts = list(cuts)
        self.is_open = True
        self.is_frozen = False
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        _end(*self._kept)

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=owner dbname=postgres"

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.is_frozen:
                    self._kept.append(client)
                    continue
                if not self.is_open:
                    client.close()
                    continue
                try:
                    link = _Link(client, socket.create_connection(("127.0.0.1", self._server_port)))
                except ConnectionError:
                    client.close()
                    continue
                for pump in (self._to_server, self._to_client):
                    threading.Thread(target=pump, args=(link,), daemon=True).start()

    def _to_server(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.client.recv(1 << 16):
                # As its text, or as the name of a prepared statement.
                if b"commit\0" in data.lower() and self._cuts:
                    cut = self._cuts.pop(0)
                    if cut == "before":
                        break
                    link.cut = cut
                if not self.is_frozen:
                    link.server.sendall(data)
        _end(link.client, link.server)

    def _to_client(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            # Behind a cut, the answer says that the server is done, and goes nowhere.
            while (data := link.server.recv(1 << 16)) and link.cut is None:
                if not self.is_frozen:
                    link.client.sendall(data)
        if link.cut is not None:
            self.on_cut()
        if link.cut == "silent":
            self._kept.append(link.client)
        else:
            _end(link.client, link.server)

    def on_cut(self) -> None:
        """Called behind a commit whose answer is lost, before the client notices."""


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
