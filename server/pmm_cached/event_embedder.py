"""Computing the vectors of events in small pieces, so that neither the follower nor new events wait long.

Workers compute vectors, too, and a provider may charge for each. So a vector in the text table is used as it is, and
the texts of new events are computed under the same leases as those of workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pmm_cached.commands import CommandServer
from pmm_shm import limits
from pmm_shm.errors import InvalidTextError
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.embedder import Embedder, embedded, text_key
from pmm_shm.vectors.event_table import VectorRows
from pmm_shm.vectors.events import EventText
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.text_table import TextVector, model_tag, text_vector_key

STEP_S = 0.25
"""About how long one step of indexing takes."""

_BATCH_S = 1.0
_WAIT_FOR_WORKERS_S = 5.0
_POLL_S = 0.02
_Vector = Sequence[float] | NDArray[np.float32]
Pause = Callable[[], None]
"""Called between small pieces of work: lets the follower go first; raises to give up."""


class EventEmbedder:
    """Vectors of events from one embedder.

    Parameters:
        store: with the text table.
        pause: called between small pieces of work.
        server: has the leases on texts, which are shared with the workers.
    """

    def __init__(self, store: StoreWriter, embedder: Embedder, pause: Pause, server: CommandServer) -> None:
        self._store = store
        self._embedder = embedder
        self._pause = pause
        self._server = server
        self._tag = model_tag(embedder.name)
        # The default embedder is faster than looking up its vectors.
        self._is_shared = not isinstance(embedder, LocalBow)
        self._batch = 1

    def rows(self, texts: list[EventText], *, are_new: bool) -> tuple[VectorRows, int]:
        """The rows of the first events, and the number of these events: all, unless computing takes longer than
        `STEP_S` or fails at a later one. Vectors that were computed are never discarded.

        Parameters:
            are_new: whether workers may be computing the same texts.

        Raises:
            EmbedderError, StoreError: at the first text.
        """
        vectors: list[_Vector | None] = []
        deadline = time.monotonic() + STEP_S
        while len(vectors) < len(texts) and (not vectors or time.monotonic() < deadline):
            try:
                self._pause()
                vectors += self._vectors(texts[len(vectors) : len(vectors) + self._batch], are_new=are_new)
            except Exception:
                # The next step begins with this text, and raises the error.
                if not vectors:
                    raise
                break
        found = [(text, vector) for text, vector in zip(texts, vectors, strict=False) if vector is not None]
        rows = VectorRows(
            np.array([text.event_id for text, _ in found], np.int64),
            np.array([text.source for text, _ in found], np.uint8),
            np.array([vector for _, vector in found], np.float32).reshape(len(found), self._embedder.dimension),
        )
        return rows, len(vectors)

    def _vectors(self, texts: list[EventText], *, are_new: bool) -> list[_Vector | None]:
        """The vector of each event; None for a text that has none."""
        known: dict[str, _Vector | None] = {one.text: one.vector or self._stored(one.text) for one in texts}
        missing = [text for text, vector in known.items() if vector is None]
        if missing:
            cpu_began, began = time.thread_time(), time.monotonic()
            if are_new and self._is_shared:
                known.update(self._computed_with_workers(missing))
            else:
                known.update(zip(missing, self._computed(missing), strict=True))
            self._adapt(len(missing), time.thread_time() - cpu_began, time.monotonic() - began)
        return [known[one.text] for one in texts]

    def _computed_with_workers(self, texts: list[str]) -> dict[str, _Vector | None]:
        """The vectors of new texts, each computed once by this process or a worker."""
        found: dict[str, _Vector | None] = {}
        left, deadline = texts, time.monotonic() + _WAIT_FOR_WORKERS_S
        while left and time.monotonic() < deadline:
            # Repeated: a worker may give up, and a vector may be evicted before it is read here.
            found |= self._computed_under_leases(left)
            found |= {text: vector for text in left if text not in found and (vector := self._stored(text)) is not None}
            left = [text for text in left if text not in found]
            if left:
                self._pause()
                time.sleep(_POLL_S)
        found.update(zip(left, self._computed(left), strict=True))
        return found

    def _computed_under_leases(self, texts: list[str]) -> dict[str, _Vector | None]:
        """The vectors of those texts that have no vector and no other holder."""
        keys = {text_key(text): text for text in texts}
        taken = self._server.acquire_leases(self._embedder.name, list(keys))
        mine = [keys[key] for key in taken]
        stored: list[TextVector] = []
        try:
            found: dict[str, _Vector | None] = dict(zip(mine, self._computed(mine), strict=True))
            stored = [
                TextVector(self._embedder.name, text_key(text), np.asarray(vector, "<f4").tobytes())
                for text, vector in found.items()
                if vector is not None
            ]
        finally:
            self._server.finish_leases(self._embedder.name, taken, stored)
        return found

    def _computed(self, texts: list[str]) -> list[_Vector | None]:
        if not texts:
            return []
        try:
            return list(embedded(self._embedder, texts))
        except InvalidTextError:
            if len(texts) == 1:
                return [None]
        # One of them can never have a vector; the others still can.
        half = len(texts) // 2
        return self._computed(texts[:half]) + self._computed(texts[half:])

    def _stored(self, text: str) -> _Vector | None:
        """The vector in the text table."""
        if not self._is_shared:
            return None
        data = self._store.environment.get(text_vector_key(self._tag, text_key(text)))
        return None if data is None else np.frombuffer(data, "<f4")

    def _adapt(self, texts: int, cpu_s: float, elapsed_s: float) -> None:
        """Choose the batch size: about a millisecond of CPU time, so that the follower waits no longer, and about a
        second in all, so that new events do not wait longer for a backlog.
        """
        most = self._embedder.batch_max
        by_cpu = int(limits.INDEX_SLICE_S * texts / cpu_s) if cpu_s > 0 else most
        by_time = int(_BATCH_S * texts / elapsed_s) if elapsed_s > 0 else most
        self._batch = max(1, min(by_cpu, by_time, 2 * self._batch, most))
