"""redis-server over a unix socket, without persistence."""

from __future__ import annotations

from pathlib import Path

from bench.peers import MissingPeerError
from bench.peers.servers import Server


class Redis:
    name = "redis"

    def __init__(self, directory: Path) -> None:
        try:
            from redis import Redis as Client
        except ImportError:
            raise MissingPeerError("redis is not installed: left out (make bench installs it)") from None
        options = ("--port", "0", "--unixsocket", "{socket}", "--save", "", "--dir", "{directory}")
        self._server = Server("redis-server", "redis-server", *options)
        self._client = Client(unix_socket_path=self._server.socket)

    def put(self, key: str, value: bytes) -> None:
        self._client.set(key, value)

    def get(self, key: str) -> bytes | None:
        value = self._client.get(key)
        assert value is None or isinstance(value, bytes)
        return value

    def close(self) -> None:
        self._client.close()
        self._server.close()
