"""memcached over a unix socket."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from bench.peers import MissingPeerError
from bench.peers.servers import Server


class Memcached:
    name = "memcached"

    def __init__(self, directory: Path) -> None:
        try:
            from pymemcache.client.base import Client
        except ImportError:
            raise MissingPeerError("pymemcache is not installed: left out (make bench installs it)") from None
        # It refuses to run as root unless told so; any other user's is not looked at.
        user = pwd.getpwuid(os.geteuid()).pw_name
        self._server = Server("memcached", "memcached", "-s", "{socket}", "-u", user)
        self._client = Client(f"unix:{self._server.socket}")

    def put(self, key: str, value: bytes) -> None:
        self._client.set(key, value, noreply=False)

    def get(self, key: str) -> bytes | None:
        value: bytes | None = self._client.get(key)
        return value

    def close(self) -> None:
        self._client.close()
        self._server.close()
