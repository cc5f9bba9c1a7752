"""A proxy between a worker and PostgreSQL that loses the connection around a commit."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

Cut = Literal["before", "behind"]
"""Around which side of a commit the connection is cut: the server has not got it, or has done it."""


class CuttingProxy:
    """Listens on a port of its own, for one server on this machine. It closes with the block.

    Parameters:
        port: the server's.
        cuts: one for each of the next commits.

    Attributes:
        is_open: whether new connections reach the server.
    """

    def __init__(self, port: int, *cuts: Cut) -> None:
        self._server_port = port
        self._cuts = list(cuts)
        self.is_open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

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
                if not self.is_open:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._server_port))
                cut = threading.Event()
                for pump in (self._to_server, self._to_client):
                    threading.Thread(target=pump, args=(client, server, cut), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if b"COMMIT\0" in data and self._cuts:
                    if self._cuts.pop(0) == "before":
                        break
                    cut.set()
                server.sendall(data)
        _end(client, server)

    def _to_client(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            # Behind a cut, the answer says that the server is done, and goes nowhere.
            while (data := server.recv(1 << 16)) and not cut.is_set():
                client.sendall(data)
        if cut.is_set():
            self.on_cut()
        _end(client, server)

    def on_cut(self) -> None:
        """Called behind a commit whose answer is lost, before the client notices."""


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
