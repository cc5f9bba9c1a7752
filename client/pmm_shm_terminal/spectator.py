"""A cache for programs that watch a ledger: the daemon does not count it as a worker."""

from __future__ import annotations

import os

from pmm_shm import limits
from pmm_shm_client.cache import Cache


class SpectatorCache(Cache):
    """A `Cache` that reports nothing to the daemon."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = limits.LEDGER_TIMEOUT_S) -> None:
        super().__init__(path, timeout=timeout)
        self._reporter.silence()

    def is_published_to_head(self) -> bool:
        """Whether the published state has every event of the ledger."""
        return self.published_as_of() == self._head()
