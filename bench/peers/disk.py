"""diskcache: a cache in SQLite, shared by processes."""

from __future__ import annotations

from pathlib import Path

from bench.peers import MissingPeerError


class Disk:
    name = "diskcache"

    def __init__(self, directory: Path) -> None:
        try:
            from diskcache import Cache
        except ImportError:
            raise MissingPeerError("diskcache is not installed: left out (make bench installs it)") from None
        self._cache = Cache(str(directory / "diskcache"))

    def put(self, key: str, value: bytes) -> None:
        self._cache.set(key, value)

    def get(self, key: str) -> bytes | None:
        value: bytes | None = self._cache.get(key)
        return value

    def close(self) -> None:
        self._cache.close()
