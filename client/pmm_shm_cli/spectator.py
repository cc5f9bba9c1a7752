"""A cache for programs that watch a ledger: the daemon does not count it as a worker."""

from __future__ import annotations

import os

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm_client.cache import Cache


class SpectatorCache(Cache):
    """A `Cache` that reports nothing to the daemon."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = limits.LEDGER_TIMEOUT_S) -> None:
        super().__init__(path, timeout=timeout)
        self._reporter.silence()

    def published_as_of(self) -> int | None:
        """The event that the published state is as of, also without a daemon; None if nothing is published."""
        try:
            return self._published_as_of()
        except StoreError:
            return None

    def is_published_to_head(self) -> bool:
        """Whether the published state has every event of the ledger."""
        return self.published_as_of() == self._head()
