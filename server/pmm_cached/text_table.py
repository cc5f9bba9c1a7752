"""The text table of the command server, and the thread that writes it.

A separate thread, because a rebuild may hold the writer's lock for a second while commands must be answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache

from pmm_cached.background import STOPS, BackgroundThread
from pmm_cached.logs import Logger
from pmm_cached.status import EmbeddingStatus
from pmm_shm.errors import InvalidVectorError, StoreError
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.text_table import TextTableWriter, TextVector, model_tag, text_vector_key

_WAITING_BYTES_MAX = 64 << 20
_tag = lru_cache(maxsize=64)(model_tag)

OnStored = Callable[[str | None], None]
"""Called with None once all vectors are stored, otherwise with the reason why none are."""


class TextTable(BackgroundThread):
    """The text table.

    Parameters:
        vectors_max: the bound of the table.
        on_death: as for `BackgroundThread`.

    Raises:
        StoreError: the stored table cannot be read, or not be reduced to the bound.
    """

    _task = "storing text vectors"

    def __init__(
        self,
        writer: StoreWriter,
        vectors_max: int,
        status: EmbeddingStatus,
        log: Logger,
        on_death: Callable[[str], None],
    ) -> None:
        super().__init__("texts", log, on_death)
        self._writer = writer
        self._table = TextTableWriter(writer, vectors_max)
        self._status = status
        self._jobs: deque[tuple[list[TextVector], OnStored]] = deque()
        self._waiting_bytes = 0
        status.text_vectors_max = vectors_max
        status.text_vectors = self._table.count

    def has(self, model: str, key: bytes) -> bool:
        """Whether the table has the vector of a text. If it cannot be read now, the answer is no: computing the vector
        again is harmless, because a stored vector is never replaced.
        """
        try:
            return self._writer.environment.get(text_vector_key(_tag(model), key)) is not None
        except StoreError:
            return False

    def put(self, vectors: list[TextVector], done: OnStored) -> None:
        """Store vectors in one commit. The thread calls `done`; if the queue is full, it is called at once."""
        size_bytes = _size_bytes(vectors)
        with self._changed:
            refusal = STOPS if self._is_stopping else None
            if self._waiting_bytes + size_bytes > _WAITING_BYTES_MAX:
                refusal = f"{_WAITING_BYTES_MAX} bytes are already waiting to be stored"
            if refusal is None:
                self._jobs.append((vectors, done))
                self._waiting_bytes += size_bytes
                self._changed.notify_all()
        if refusal is not None:
            done(refusal)

    def _work(self) -> None:
        # A stopping daemon stores first what is queued.
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_stopping)
                if not self._jobs:
                    return
                vectors, done = self._jobs.popleft()
                self._waiting_bytes -= _size_bytes(vectors)
            done(self._stored(vectors))

    def _stored(self, vectors: list[TextVector]) -> str | None:
        try:
            self._table.put(vectors)
        except DamagedStoreError:
            self._writer.mark_damaged()
            raise
        except (InvalidVectorError, StoreError) as error:
            return str(error)
        self._status.text_vectors = self._table.count
        return None


def _size_bytes(vectors: list[TextVector]) -> int:
    return sum(len(vector.vector) for vector in vectors)
