"""One model's table of event vectors, kept at the head of the log, a bounded step at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.errors import InvalidTextError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.tail import START, Position
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.embedder import Embedder, embedded, text_key
from pmm_shm.vectors.event_table import Ids, TableRecord
from pmm_shm.vectors.event_table_writer import EventVectorWriter, VectorRows
from pmm_shm.vectors.events import EventTexts, Item, Source
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.text_table import TextVector, model_tag, text_vector_key

_STEP_S = 0.25
_CHUNK_S = 1.0
_OTHERS_S = 5.0
_OTHERS_LOOK_S = 0.02
Vector = Sequence[float] | NDArray[np.float32]
Ahead = tuple[Position, Position]
Pause = Callable[[], None]
"""Called between small pieces of work; it lets the follower go first, and raises to give up."""


class Sharing(Protocol):
    """The leases on texts, and their table, as this process uses them."""

    def borrow(self, model: str, keys: list[bytes]) -> list[bytes]:
        """Take the leases of those texts that nobody computes and that have no vector yet; they end with `settle`."""

    def settle(self, model: str, keys: list[bytes], vectors: list[TextVector]) -> None:
        """End leases, with the vectors of those texts that have one now."""


class EventTable:
    """The table that an embedder fills along the log.

    Parameters:
        connection: a read-only connection of the thread that calls.
        embedder: of the table's model.
        kinds: of which events it embeds the content; those of the last daemon that are not among them lose the vectors
            that they had from that.
        pause: called between small pieces of work.
        sharing: keeps workers from computing the texts of new events at the same time.

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
        sharing: Sharing,
    ) -> None:
        self._store = writer
        self._connection = connection
        self._embedder = embedder
        self._kinds = kinds
        self._pause = pause
        self._sharing = sharing
        self._tag = model_tag(embedder.name)
        self._texts = EventTexts(connection, kinds, embedder.name)
        self._chunk = 1
        self._events_max = {True: limits.INDEX_EVENTS_PER_COMMIT, False: limits.INDEX_EVENTS_PER_COMMIT}
        self.rows = EventVectorWriter(writer, embedder.name, embedder.dimension)
        if self.rows.record.kinds != kinds:
            self._change_kinds(set(self.rows.record.kinds) - set(kinds))

    @property
    def as_of(self) -> int:
        """The event id up to which the log is in the table."""
        return self.rows.record.position.as_of

    def step(self, published: Position) -> bool:
        """Take in events up to the published head: the new ones first, and in about `_STEP_S` some of the backlog.
        Returns whether nothing is left.

        Raises:
            LogChanged: the log does not continue the table.
            EmbedderError: the embedder failed; what came before it is kept.
            LedgerError, StoreError: as their names say.
        """
        record = self.rows.record
        if record.ahead is None:
            if published.as_of - record.position.as_of <= limits.INDEX_EVENTS_PER_COMMIT:
                return self._take_in(
                    record.position, published.as_of, lambda position, _: (position, None), is_new=True
                )
            record = self._moved(record.position, (published, published))
        assert record.ahead is not None
        start, end = record.ahead
        if not self._take_in(
            end, published.as_of, lambda position, _: (record.position, (start, position)), is_new=True
        ):
            return False
        end = self.rows.record.reached
        return self._take_in(
            record.position,
            start.as_of,
            lambda position, is_complete: (end, None) if is_complete else (position, (start, end)),
            is_new=False,
        )

    def look_again(self) -> None:
        """Go along the log once more: events that lost their vector may have another source. The others keep theirs."""
        reached = self.rows.record.reached
        self._moved(START, None if reached.event_id is None else (reached, reached))

    def _moved(self, position: Position, ahead: Ahead | None) -> TableRecord:
        self.rows.apply(VectorRows.none(self._embedder.dimension), position=position, kinds=self._kinds, ahead=ahead)
        return self.rows.record

    def _take_in(
        self,
        after: Position,
        until_id: int,
        moved: Callable[[Position, bool], tuple[Position, Ahead | None]],
        *,
        is_new: bool,
    ) -> bool:
        """Take in the events behind `after` up to `until_id`, in about `_STEP_S`. Returns whether that is reached.

        Parameters:
            moved: what position and `ahead` become, from where the log was read to, and whether that was all.
            is_new: whether these are new events, whose texts workers may be asking for, too.
        """
        if after.event_id is not None and after.event_id > until_id:
            return True
        with self._connection.lock:
            read = self._texts.read(after, self._events_max[is_new], until_id)
        if not read.is_anchored:
            raise LogChanged
        missing = self._missing(read.items)
        rows, done = self._embedded(missing, is_new=is_new)
        if done < len(missing):
            self.rows.apply(rows, kinds=self._kinds)
            self._events_max[is_new] = done
            return False
        self._events_max[is_new] = min(2 * self._events_max[is_new], limits.INDEX_EVENTS_PER_COMMIT)
        if len(rows.ids) or read.position != after or (read.is_complete and not is_new):
            position, ahead = moved(read.position, read.is_complete)
            self.rows.apply(rows, position=position, kinds=self._kinds, ahead=ahead)
        return read.is_complete

    def _missing(self, items: list[Item]) -> list[Item]:
        """Those that have no vector from as good a source."""
        if not self._embedder.takes_empty:
            items = [item for item in items if item.text]
        present = self.rows.sources_of(np.array([item.event_id for item in items], np.int64))
        return [
            item for item, source in zip(items, present.tolist(), strict=True) if source == 0 or source > item.source
        ]

    def _embedded(self, items: list[Item], *, is_new: bool) -> tuple[VectorRows, int]:
        """The rows of the first items, and how many these are: all, unless it takes longer than `_STEP_S` or fails at
        a later one. What an embedder has taken its time for must not be lost.
        """
        vectors: list[Vector | None] = []
        deadline = time.monotonic() + _STEP_S
        while len(vectors) < len(items) and (not vectors or time.monotonic() < deadline):
            try:
                self._pause()
                vectors += self._vectors(items[len(vectors) : len(vectors) + self._chunk], is_new=is_new)
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

    def _vectors(self, items: list[Item], *, is_new: bool) -> list[Vector | None]:
        """The vector of each item; None for a text that has none."""
        known: dict[str, Vector | None] = {item.text: item.vector or self._known(item.text) for item in items}
        missing = [text for text, vector in known.items() if vector is None]
        if missing:
            cpu_began, began = time.thread_time(), time.monotonic()
            if is_new and not isinstance(self._embedder, LocalBow):
                known.update(self._computed_together(missing))
            else:
                known.update(zip(missing, self._computed(missing), strict=True))
            self._adapt(len(missing), time.thread_time() - cpu_began, time.monotonic() - began)
        return [known[item.text] for item in items]

    def _computed_together(self, texts: list[str]) -> dict[str, Vector | None]:
        """The vectors of new texts: a worker may be computing them, or about to, and they are paid for once."""
        found: dict[str, Vector | None] = {}
        left, deadline = texts, time.monotonic() + _OTHERS_S
        while left and time.monotonic() < deadline:
            # Again and again: who computes a text may give up, and a vector may be evicted before it is seen here.
            found |= self._computed_under_leases(left)
            found |= {text: vector for text in left if text not in found and (vector := self._known(text)) is not None}
            left = [text for text in left if text not in found]
            if left:
                self._pause()
                time.sleep(_OTHERS_LOOK_S)
        found.update(zip(left, self._computed(left), strict=True))
        return found

    def _computed_under_leases(self, texts: list[str]) -> dict[str, Vector | None]:
        """The vectors of those texts that nobody else computes, or has."""
        keys = {text_key(text): text for text in texts}
        taken = self._sharing.borrow(self._embedder.name, list(keys))
        mine = [keys[key] for key in taken]
        stored: list[TextVector] = []
        try:
            found: dict[str, Vector | None] = dict(zip(mine, self._computed(mine), strict=True))
            stored = [
                TextVector(self._embedder.name, text_key(text), np.asarray(vector, "<f4").tobytes())
                for text, vector in found.items()
                if vector is not None
            ]
        finally:
            self._sharing.settle(self._embedder.name, taken, stored)
        return found

    def _computed(self, texts: list[str]) -> list[Vector | None]:
        if not texts:
            return []
        try:
            return list(embedded(self._embedder, texts))
        except InvalidTextError:
            if len(texts) == 1:
                return [None]
        # One of them has no vector, now or later: that must not keep the others from theirs.
        half = len(texts) // 2
        return self._computed(texts[:half]) + self._computed(texts[half:])

    def _known(self, text: str) -> Vector | None:
        """The vector that a worker has put already; the default one is computed sooner than it is looked up."""
        if isinstance(self._embedder, LocalBow):
            return None
        data = self._store.environment.get(text_vector_key(self._tag, text_key(text)))
        return None if data is None else np.frombuffer(data, "<f4")

    def _adapt(self, texts: int, cpu_s: float, elapsed_s: float) -> None:
        """As many texts at a time as cost about a millisecond of this process, for the follower never waits longer; and
        about a second in all, for new events do not wait longer for a backlog.
        """
        most = self._embedder.batch_max
        by_cpu = int(limits.INDEX_SLICE_S * texts / cpu_s) if cpu_s > 0 else most
        by_time = int(_CHUNK_S * texts / elapsed_s) if elapsed_s > 0 else most
        self._chunk = max(1, min(by_cpu, by_time, 2 * self._chunk, most))

    def _change_kinds(self, dropped: set[str]) -> None:
        for kind in sorted(dropped):
            for ids in self._ids_of_kind(kind):
                self._pause()
                is_own = self.rows.sources_of(ids) == Source.EMBEDDED
                self.rows.apply(VectorRows.none(self._embedder.dimension), ids[is_own])
        self.look_again()

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
