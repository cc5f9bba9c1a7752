"""When the ledger's `event_embeddings` is compared: on request, and after changes, at limited cost."""

from __future__ import annotations

import time
from collections.abc import Callable

from pmm_cached.embedding_import import EmbeddingImport, ImportCounts
from pmm_cached.logs import Logger
from pmm_shm import limits
from pmm_shm.errors import PmmShmError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.freshness import Freshness, Mark
from pmm_shm.ledger.tail import Position
from pmm_shm.store.environment import DamagedStoreError


class ImportSchedule:
    """Runs an import when it is due.

    Parameters:
        models: returns name and dimension of every model that may have imported vectors.

    Attributes:
        problem: why the last comparison failed; None if it did not.
    """

    def __init__(
        self,
        imports: EmbeddingImport,
        connection: Connection,
        freshness: Freshness,
        models: Callable[[], dict[str, int]],
        log: Logger,
    ) -> None:
        self._imports = imports
        self._connection = connection
        self._freshness = freshness
        self._models = models
        self._log = log
        # The ledger's mark and the published head at the last comparison.
        self._compared_at: tuple[Mark, int] | None = None
        self._not_before = 0.0
        self._is_late = False
        self.problem: str | None = None
        connection.on_close(self._forget_mark)

    @property
    def due_at(self) -> float | None:
        """When a postponed comparison is due, on the monotonic clock; None if there is none."""
        return self._not_before if self._is_late else None

    def run(self, published: Position, *, is_requested: bool) -> ImportCounts | None:
        """Compare if it is requested or due. Returns None after a failure, which is logged and tried again later.

        Raises:
            DamagedStoreError: the store cannot be used any more.
        """
        try:
            counts = self._run(published, is_requested=is_requested)
        except DamagedStoreError:
            raise
        except PmmShmError as error:
            if self.problem is None:
                self._log.error("import of event_embeddings failed", error=str(error))
            self.problem = str(error)
            self._is_late, self._not_before = True, time.monotonic() + limits.IMPORT_RETRY_S
            return None
        if self._compared_at is not None:
            self.problem = None
        return counts

    def restart(self) -> None:
        """Forget all comparisons, because the event tables were cleared."""
        self._imports.forget()
        self._not_before, self._compared_at = 0.0, None

    def _run(self, published: Position, *, is_requested: bool) -> ImportCounts:
        began = time.monotonic()
        with self._connection.lock:
            now_at = self._freshness.take(), published.as_of
        if not is_requested:
            has_changed = now_at != self._compared_at
            self._is_late = has_changed and began < self._not_before
            if self._is_late or not has_changed:
                return ImportCounts(0, 0, 0)
            differs = self._imports.differs(published.as_of)
            took_s = time.monotonic() - began
            # Checking a large table takes time: at most a small share of one core.
            self._not_before = began + max(limits.IMPORT_CHECK_S, took_s / limits.IMPORT_CHECK_SHARE)
            if not differs:
                self._compared_at = now_at
                return ImportCounts(0, 0, 0)
        counts = self._imports.compare(self._models(), published)
        self._compared_at = now_at
        if any(counts):
            self._log.info("imported event_embeddings", **counts._asdict())
        return counts

    def _forget_mark(self) -> None:
        self._compared_at = None
