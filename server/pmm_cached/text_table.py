"""The text table of the command server, and the thread that writes it.

A separate thread, because a rebuild may hold the writer's lock for a second while commands must be answered.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import lru_cache

from pmm_cached.logs import Logger
from pmm_cached.status import EmbeddingStatus
from pmm_shm.errors import InvalidVectorError, StoreError
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.text_table import TextTableWriter, TextVector, model_tag, text_vector_key

_WAITING_BYTES_MAX = 64 << 20
_STOPS = "the daemon stops"
_tag = lru_cache(maxsize=64)(model_tag)

OnStored = Callable[[str | None], None]
"""Called with None once all vectors are stored, otherwise with the reason why none are."""


class TextTable:
    """The text table.

    Parameters:
        vectors_max: the bound of the table.
        on_death: called with the reason if the thread fails.

    Raises:
        StoreError: the stored table cannot be read, or not be reduced to the bound.
    """

    def __init__(
        self,
        writer: StoreWriter,
        vectors_max: int,
        status: EmbeddingStatus,
        log: Logger,
        on_death: Callable[[str], None],
    ) -> None:
        self._writer = writer
        self._table = TextTableWriter(writer, vectors_max)
        self._status = status
        self._log = log
        self._on_death = on_death
        # None ends the thread.
        self._jobs: queue.SimpleQueue[tuple[list[TextVector], OnStored] | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="texts", daemon=True)
        status.text_vectors_max = vectors_max
        status.text_vectors = self._table.count

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Store what is queued, refuse more, and wait for the thread. Returns whether it has ended."""
        with self._lock:
            self._is_stopping = True
            self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

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
        with self._lock:
            refusal = _STOPS if self._is_stopping else None
            if self._waiting_bytes + size_bytes > _WAITING_BYTES_MAX:
                refusal = f"{_WAITING_BYTES_MAX} bytes are already waiting to be stored"
            if refusal is None:
                self._jobs.put((vectors, done))
                self._waiting_bytes += size_bytes
        if refusal is not None:
            done(refusal)

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                vectors, done = job
                with self._lock:
                    self._waiting_bytes -= _size_bytes(vectors)
                done(self._stored(vectors))
        except BaseException as error:
            # Without this thread, no worker that puts a vector would get an answer.
            self._log.exception("storing text vectors ended")
            self._on_death(f"storing text vectors ended: {type(error).__name__}: {error}")

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
