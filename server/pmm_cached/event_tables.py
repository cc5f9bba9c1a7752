"""One model's table of event vectors, kept at the head of the log, a bounded step at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.embedding.contract import Embedder, embedded, text_key
from pmm_shm.embedding.events import EventTexts, Item, Source
from pmm_shm.embedding.local_bow import LocalBow
from pmm_shm.errors import InvalidTextError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.tail import START
from pmm_shm.replay import LogChanged
from pmm_shm.store.event_vector_writer import EventVectorWriter, VectorRows
from pmm_shm.store.event_vectors import Ids
from pmm_shm.store.text_vectors import TextVector, model_tag, text_vector_key
from pmm_shm.store.writer import StoreWriter

_STEP_S = 0.25
Vector = Sequence[float] | NDArray[np.float32]
Pause = Callable[[], None]
"""Called between small pieces of work; it lets the follower go first, and raises to give up."""


class EventTable:
    """The table that an embedder fills along the log.

    Parameters:
        connection: a read-only connection of the thread that calls.
        embedder: of the table's model.
        kinds: of which events it embeds the content; those of the last daemon that are not among them lose the vectors
            that they had from that.
        pause: called between small pieces of work.
        remember: takes vectors that were computed here, for workers that ask for the same texts.

    Raises:
        InvalidVectorError: the model has vectors of another dimension.
        LedgerError, StoreError: as their names say.
    """

    def __init__(
        self,
        writer: StoreWriter,
        connection: Connection,
        embedder: Embedder,
        kinds: tuple[str, ...],
        pause: Pause,
        remember: Callable[[list[TextVector]], None],
    ) -> None:
        self._store = writer
        self._connection = connection
        self._embedder = embedder
        self._kinds = kinds
        self._pause = pause
        self._remember = remember
        self._tag = model_tag(embedder.name)
        self._texts = EventTexts(connection, kinds, embedder.name)
        self._chunk = 1
        self._events_max = limits.INDEX_EVENTS_PER_COMMIT
        self.rows = EventVectorWriter(writer, embedder.name, embedder.dimension)
        if self.rows.record.kinds != kinds:
            self._change_kinds(set(self.rows.record.kinds) - set(kinds))

    @property
    def as_of(self) -> int:
        """The event id up to which the log is in the table."""
        return self.rows.record.position.as_of

    def step(self, until_id: int) -> bool:
        """Take in the next events, up to `until_id`, in about `_STEP_S`. Returns whether that is reached.

        Raises:
            LogChanged: the log does not continue the table.
            EmbedderError: the embedder failed; what came before it is kept.
            LedgerError, StoreError: as their names say.
        """
        position = self.rows.record.position
        if position.event_id is not None and position.event_id > until_id:
            return True
        with self._connection.lock:
            read = self._texts.read(position, self._events_max, until_id)
        if not read.is_anchored:
            raise LogChanged
        missing = self._missing(read.items)
        rows, done = self._embedded(missing)
        if done < len(missing):
            self.rows.apply(rows, kinds=self._kinds)
            self._events_max = done
            return False
        self._events_max = min(2 * self._events_max, limits.INDEX_EVENTS_PER_COMMIT)
        if len(rows.ids) or read.position != position:
            self.rows.apply(rows, position=read.position, kinds=self._kinds)
        return read.is_complete

    def look_again(self) -> None:
        """Go along the log once more: events that lost their vector may have another source. The others keep theirs."""
        self.rows.apply(VectorRows.none(self._embedder.dimension), position=START)

    def _missing(self, items: list[Item]) -> list[Item]:
        """Those that have no vector from as good a source."""
        if not self._embedder.takes_empty:
            items = [item for item in items if item.text]
        present = self.rows.sources_of(np.array([item.event_id for item in items], np.int64))
        return [
            item for item, source in zip(items, present.tolist(), strict=True) if source == 0 or source > item.source
        ]

    def _embedded(self, items: list[Item]) -> tuple[VectorRows, int]:
        """The rows of the first items, and how many these are: all, unless it takes longer than `_STEP_S` or fails at
        a later one. What an embedder has taken its time for must not be lost.
        """
        vectors: list[Vector | None] = []
        deadline = time.monotonic() + _STEP_S
        while len(vectors) < len(items) and (not vectors or time.monotonic() < deadline):
            try:
                self._pause()
                vectors += self._vectors(items[len(vectors) : len(vectors) + self._chunk])
            except Exception:
                # The next step begins with this item, and raises it.
                if not vectors:
                    raise
                break
        made = [(item, vector) for item, vector in zip(items, vectors, strict=False) if vector is not None]
        rows = VectorRows(
            np.array([item.event_id for item, _ in made], np.int64),
            np.array([item.source for item, _ in made], np.uint8),
            np.array([vector for _, vector in made], np.float32).reshape(len(made), self._embedder.dimension),
        )
        return rows, len(vectors)

    def _vectors(self, items: list[Item]) -> list[Vector | None]:
        """The vector of each item; None for a text that has none."""
        known: dict[str, Vector | None] = {item.text: item.vector or self._known(item.text) for item in items}
        missing = [text for text, vector in known.items() if vector is None]
        if missing:
            began = time.thread_time()
            known.update(zip(missing, self._computed(missing), strict=True))
            self._adapt(len(missing), time.thread_time() - began)
        return [known[item.text] for item in items]

    def _computed(self, texts: list[str]) -> list[Vector | None]:
        try:
            vectors = embedded(self._embedder, texts)
        except InvalidTextError:
            if len(texts) == 1:
                return [None]
        else:
            if not isinstance(self._embedder, LocalBow):
                self._remember(
                    [
                        TextVector(self._embedder.name, text_key(text), vector.astype("<f4").tobytes())
                        for text, vector in zip(texts, vectors, strict=True)
                    ]
                )
            return list(vectors)
        # One of them has no vector, now or later: that must not keep the others from theirs.
        half = len(texts) // 2
        return self._computed(texts[:half]) + self._computed(texts[half:])

    def _known(self, text: str) -> Vector | None:
        """The vector that a worker has put already; the default one is computed sooner than it is looked up."""
        if isinstance(self._embedder, LocalBow):
            return None
        data = self._store.environment.get(text_vector_key(self._tag, text_key(text)))
        return None if data is None else np.frombuffer(data, "<f4")

    def _adapt(self, texts: int, cpu_s: float) -> None:
        """As many texts at a time as cost about a millisecond of this process: the follower never waits for longer."""
        affordable = int(limits.INDEX_SLICE_S * texts / cpu_s) if cpu_s > 0 else self._embedder.batch_max
        self._chunk = max(1, min(affordable, 2 * self._chunk, self._embedder.batch_max))

    def _change_kinds(self, dropped: set[str]) -> None:
        for kind in sorted(dropped):
            for ids in self._ids_of_kind(kind):
                self._pause()
                is_own = self.rows.sources_of(ids) == Source.EMBEDDED
                self.rows.apply(VectorRows.none(self._embedder.dimension), ids[is_own])
        self.rows.apply(VectorRows.none(self._embedder.dimension), position=START, kinds=self._kinds)

    def _ids_of_kind(self, kind: str) -> list[Ids]:
        parts: list[Ids] = []
        last = -(1 << 63)
        sql = "SELECT id FROM events WHERE kind = ? AND id > ? ORDER BY id LIMIT ?"
        while True:
            with self._connection.lock:
                rows = fetch_batch(self._connection, sql, (kind, last), limits.TAIL_ROWS_MAX).rows
            if not rows:
                return parts
            parts.append(np.array([row[0] for row in rows], np.int64))
            last = rows[-1][0]
