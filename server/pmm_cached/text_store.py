"""The table of text vectors, and the thread that stores into it.

A thread of its own, for a rebuild may hold the writer's lock for a second, and commands are answered meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import lru_cache

from pmm_cached.logs import Logger
from pmm_cached.status import EmbeddingStatus
from pmm_shm.errors import InvalidVectorError, StoreError
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.text_table import TextVector, TextVectorWriter, model_tag, text_vector_key

_WAITING_BYTES_MAX = 64 << 20
_STOPS = "the daemon stops"
_tag = lru_cache(maxsize=64)(model_tag)

Done = Callable[[str | None], None]
"""Called with None when all is stored, otherwise with the reason why nothing was."""


class TextStore:
    """The table, for the command server.

    Parameters:
        on_death: called with the reason when the thread ends by itself.

    Raises:
        StoreError: what is there cannot be read, or not be brought within the bound.
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
        self._table = TextVectorWriter(writer, vectors_max)
        self._status = status
        self._log = log
        self._on_death = on_death
        self._jobs: deque[tuple[list[TextVector], Done]] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="texts", daemon=True)
        status.text_vectors_max = vectors_max
        status.text_vectors = self._table.count

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Store what waits, refuse what comes, and wait for the thread. Returns whether it has ended."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def has(self, model: str, key: bytes) -> bool:
        """Whether the vector of a text is there; one that cannot be read now counts as not there.

        To compute such a vector once more is harmless: what is stored stays as it is.
        """
        try:
            return self._writer.environment.get(text_vector_key(_tag(model), key)) is not None
        except StoreError:
            return False

    def put(self, vectors: list[TextVector], done: Done) -> None:
        """Store vectors in one commit; `done` is called by the thread, or at once where there is no room to wait."""
        size_bytes = _size_bytes(vectors)
        with self._changed:
            refusal = _STOPS if self._is_stopping else None
            if self._waiting_bytes + size_bytes > _WAITING_BYTES_MAX:
                refusal = f"{_WAITING_BYTES_MAX} bytes wait already to be stored"
            if refusal is None:
                self._jobs.append((vectors, done))
                self._waiting_bytes += size_bytes
                self._changed.notify_all()
        if refusal is not None:
            done(refusal)

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                vectors, done = job
                done(self._stored(vectors))
        except BaseException as error:
            # Without this thread a vector that was put would never be answered.
            self._log.exception("storing text vectors ended")
            self._on_death(f"storing text vectors ended: {type(error).__name__}: {error}")

    def _next(self) -> tuple[list[TextVector], Done] | None:
        with self._changed:
            while not self._jobs:
                if self._is_stopping:
                    return None
                self._changed.wait()
            job = self._jobs.popleft()
            self._waiting_bytes -= _size_bytes(job[0])
            return job

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
