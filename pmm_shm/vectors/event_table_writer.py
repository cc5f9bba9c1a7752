"""Writing event tables; only the daemon does.

New rows go to the tail. A full tail is sealed into a small block, and small blocks are merged into large ones: a search
is then a few products over large blocks, and each row is copied only a few times. A row that is replaced or removed is
marked dead in its block; a block with many dead rows is rewritten.

Invariant: in one table each event id has at most one living row.
Invariant: rows and the position that they belong to change in one transaction.
Invariant: within a write transaction nothing is computed, and none writes more than one block: until it ends, the
follower can publish nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm.ledger.tail import Position
from pmm_shm.store.environment import MappedTransaction, Transaction
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.event_table import (
    DEAD,
    DTYPES,
    IDS,
    NORMS,
    PARTS,
    SOURCES,
    TAIL_PREFIX,
    VECTORS,
    BlockEntry,
    EventTableRecord,
    PositionRange,
    VectorRows,
    block_key,
    table_key,
    tail_key,
    tail_rows,
)
from pmm_shm.vectors.nearest import EventIds, inverse_norms
from pmm_shm.vectors.text_table import put_model

_MERGE_BLOCKS = 4
_PIECE_NUMBERS = 1 << 16
"""Numbers between two pauses, which takes some 0.2 ms."""


def joined(parts: Sequence[VectorRows]) -> VectorRows:
    """The rows of several, in order."""
    ids, sources, vectors = zip(*parts, strict=True)
    return VectorRows(np.concatenate(ids), np.concatenate(sources), np.concatenate(vectors))


def _packed(part: bytes, array: NDArray[Any]) -> memoryview:
    # No bytes: to copy a large block into them would hold up all threads.
    return np.ascontiguousarray(array, DTYPES[part]).reshape(-1).view(np.uint8).data


class EventTableWriter:
    """One model's table. Not thread-safe: the daemon uses it from one thread.

    Parameters:
        writer: of the store.
        name, dimension: of the model.
        block_bytes: up to which size the vectors of a block are merged.
        pause: called between pieces of a merge; it may raise to give up.

    Raises:
        InvalidVectorError: the model has vectors of another dimension.
        StoreError: the stored table cannot be read.
    """

    def __init__(
        self,
        writer: StoreWriter,
        name: str,
        dimension: int,
        block_bytes: int = limits.VECTOR_BLOCK_BYTES,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._pause = pause
        self._writer = writer
        self._name = name
        self._dimension = dimension
        self._rows_max = max(limits.VECTOR_TAIL_ROWS, min(limits.VECTOR_BLOCK_ROWS, block_bytes // (4 * dimension)))
        self._block_ids: dict[int, EventIds] = {}
        self.record = writer.transact("event_vectors.open", self._open)

    def sources_of(self, ids: EventIds) -> NDArray[np.uint8]:
        """The source of each id's row, (n,) uint8; 0 if it has none."""
        with self._writer.environment.read_mapped() as records:
            return self._changes(records).sources_of(ids)

    def rows_of(self, ids: EventIds) -> VectorRows:
        """The rows of those ids that have one, in ascending order of id."""
        with self._writer.environment.read_mapped() as records:
            return self._changes(records).rows_of(ids)

    def ids_of(self, source: int) -> EventIds:
        """The ids of all rows with this source, ascending."""
        with self._writer.environment.read_mapped() as records:
            return self._changes(records).ids_of(source)

    def apply(
        self,
        rows: VectorRows,
        removed: EventIds | None = None,
        position: Position | None = None,
        kinds: tuple[str, ...] | None = None,
        newer: PositionRange | None = None,
        refused: int | None = None,
    ) -> None:
        """Put rows, remove others, and move the position, in one commit; new blocks are written before it.

        Parameters:
            rows: they replace those with the same ids.
            removed: (m,) int64; ids without a row are ignored.
            position, kinds, refused: None to leave them unchanged.
            newer: goes with `position`.

        Raises:
            StoreError: the commit failed; nothing was stored.
        """

        # Nobody else writes these records, so what is read before the transaction is still true within it.
        with self._writer.environment.read_mapped() as records:
            changes = self._changes(records)
            changes.remove(rows.ids if removed is None else np.concatenate((rows.ids, removed)))
            changes.add(rows)
            changes.finish(position, kinds, newer, refused)
        for number in changes.new_blocks:
            # Nobody reads it yet: no record names it. If this process dies before one does, the next block has its
            # number, and takes its place.
            self._pause()
            self._writer.transact("event_vectors.block", partial(changes.write_block, number))
        self._writer.transact("event_vectors.apply", changes.write)
        self.record, self._block_ids = changes.record, changes.block_ids

    def clear(self) -> None:
        """Remove all rows and reset the position, because the log has another history. The kinds stay."""
        self.record = self._writer.transact("event_vectors.clear", self._emptied)
        self._block_ids = {}

    def _changes(self, records: MappedTransaction) -> _Changes:
        return _Changes(records, self.record, dict(self._block_ids), self._rows_max, self._pause)

    def _open(self, records: Transaction) -> EventTableRecord:
        put_model(records, self._name, self._dimension)
        data = records.get(table_key(self._name))
        if data is not None:
            return EventTableRecord.unpack(data)
        record = EventTableRecord(self._name, self._dimension)
        records.put(table_key(self._name), record.pack())
        return record

    def _emptied(self, records: Transaction) -> EventTableRecord:
        before = self.record
        prefix = TAIL_PREFIX + before.tag
        with records.cursor() as cursor:
            while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                cursor.delete()
        for block in before.blocks:
            for part in PARTS:
                records.delete(block_key(before.tag, block.number, part))
        # Versions and block numbers continue: readers recognise by them what they have read.
        record = EventTableRecord(
            before.name, before.dimension, before.kinds, version=before.version + 1, next_block=before.next_block
        )
        records.put(table_key(self._name), record.pack())
        return record


class _Changes:
    """Changes to a table: computed over a read transaction, and written later; `record` and `block_ids` are valid once
    they are committed.
    """

    def __init__(
        self,
        records: MappedTransaction,
        record: EventTableRecord,
        block_ids: dict[int, EventIds],
        rows_max: int,
        pause: Callable[[], None],
    ) -> None:
        self._pause = pause
        self._records = records
        # Key to value; None if it is deleted. New blocks are apart.
        self._writes: dict[bytes, bytes | memoryview | None] = {}
        self._new_blocks: dict[int, dict[bytes, memoryview]] = {}
        self._rows_max = rows_max
        self.record = record
        self.block_ids = block_ids
        self._tag = record.tag
        self._blocks = {block.number: block for block in record.blocks}
        self._next_block = record.next_block
        self._tail_count = record.tail

    @property
    def new_blocks(self) -> list[int]:
        """The numbers of the blocks to write before the rest."""
        return list(self._new_blocks)

    def write_block(self, number: int, records: Transaction) -> None:
        """Write one new block."""
        for key, value in self._new_blocks[number].items():
            records.put(key, value)

    def write(self, records: Transaction) -> None:
        """Write the rest, which makes the new blocks part of the table."""
        for key, value in self._writes.items():
            if value is None:
                records.delete(key)
            else:
                records.put(key, value)

    # Finding.

    def sources_of(self, ids: EventIds) -> NDArray[np.uint8]:
        result = np.zeros(len(ids), np.uint8)
        for number, event_id in enumerate(ids.tolist()):
            if self._tail_count and (value := self._records.get(tail_key(self._tag, event_id))) is not None:
                result[number] = value[-1]
        for block in self._blocks.values():
            wanted, rows = self._living(block, ids)
            result[wanted] = self._part(block.number, SOURCES)[rows]
        return result

    def rows_of(self, ids: EventIds) -> VectorRows:
        ids = np.sort(ids)
        parts = [VectorRows.none(self.record.dimension)]
        for block in self._blocks.values():
            _, rows = self._living(block, ids)
            if len(rows):
                parts.append(self._block_rows(block.number).at(rows))
        tail = self._tail()
        parts.append(tail.at(np.isin(tail.ids, ids)))
        found = joined(parts)
        return found.at(np.argsort(found.ids))

    def ids_of(self, source: int) -> EventIds:
        tail = self._tail()
        parts = [tail.ids[tail.sources == source]]
        for block in self._blocks.values():
            is_wanted = self._part(block.number, SOURCES) == source
            is_wanted[self._dead(block)] = False
            parts.append(self._ids(block.number)[is_wanted])
        return np.sort(np.concatenate(parts))

    def _living(self, block: BlockEntry, ids: EventIds) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which of `ids` have a living row in the block, and the numbers of those rows."""
        own = self._ids(block.number)
        if not len(ids) or int(ids.max()) < int(own[0]) or int(ids.min()) > int(own[-1]):
            return np.empty(0, np.intp), np.empty(0, np.intp)
        rows = np.searchsorted(own, ids)
        is_living = own[np.minimum(rows, len(own) - 1)] == ids
        if block.dead:
            is_living &= ~np.isin(rows, self._dead(block))
        wanted = np.flatnonzero(is_living)
        return wanted, rows[wanted]

    # Changing.

    def remove(self, ids: EventIds) -> None:
        for key in [tail_key(self._tag, event_id) for event_id in ids.tolist()] if self._tail_count else ():
            if self._get(key) is not None:
                self._writes[key] = None
                self._tail_count -= 1
        for block in list(self._blocks.values()):
            _, rows = self._living(block, ids)
            if len(rows):
                dead = np.union1d(self._dead(block), rows)
                self._writes[block_key(self._tag, block.number, DEAD)] = _packed(DEAD, dead)
                self._blocks[block.number] = block._replace(dead=len(dead))

    def add(self, rows: VectorRows) -> None:
        rows = rows.at(np.argsort(rows.ids))
        if self._tail_count + len(rows.ids) > limits.VECTOR_TAIL_ROWS:
            tail = self._tail()
            self._writes.update(dict.fromkeys(tail_key(self._tag, event_id) for event_id in tail.ids.tolist()))
            self._tail_count = 0
            self._seal([tail, rows])
            return
        for event_id, source, vector in zip(rows.ids.tolist(), rows.sources.tolist(), rows.vectors, strict=True):
            self._writes[tail_key(self._tag, event_id)] = vector.astype("<f4").tobytes() + bytes((source,))
        self._tail_count += len(rows.ids)

    def finish(
        self,
        position: Position | None,
        kinds: tuple[str, ...] | None,
        newer: PositionRange | None,
        refused: int | None,
    ) -> None:
        """Rewrite blocks with many dead rows, merge small ones, and put the record."""
        for block in list(self._blocks.values()):
            if block.dead * 4 > block.rows:
                self._merge([block])
        for group in self._mergeable():
            self._merge(group)
        record = self.record
        self.record = replace(
            record,
            kinds=record.kinds if kinds is None else kinds,
            position=record.position if position is None else position,
            newer=record.newer if position is None else newer,
            refused=record.refused if refused is None else refused,
            version=record.version + 1,
            blocks=tuple(self._blocks.values()),
            tail=self._tail_count,
            next_block=self._next_block,
        )
        self._writes[table_key(record.name)] = self.record.pack()

    def _mergeable(self) -> Iterator[list[BlockEntry]]:
        """Groups of `_MERGE_BLOCKS` or more blocks of similar size, smallest first; full blocks are not merged."""
        least = 0
        most = limits.VECTOR_TAIL_ROWS * _MERGE_BLOCKS
        while least <= self._rows_max // 2:
            group = [
                block
                for block in self._blocks.values()
                if least <= block.rows < most and block.rows <= self._rows_max // 2
            ]
            if len(group) >= _MERGE_BLOCKS:
                yield group
            least, most = most, most * _MERGE_BLOCKS

    def _merge(self, blocks: Sequence[BlockEntry]) -> None:
        parts, is_alive = [], []
        for block in blocks:
            parts.append(self._block_rows(block.number))
            is_alive.append(np.ones(block.rows, bool))
            is_alive[-1][self._dead(block)] = False
        for block in blocks:
            # A block that was sealed just now is never written.
            if self._new_blocks.pop(block.number, None) is None:
                self._writes.update((block_key(self._tag, block.number, part), None) for part in PARTS)
            del self._blocks[block.number]
            self.block_ids.pop(block.number, None)
        self._seal(parts, np.concatenate(is_alive))

    def _seal(self, parts: Sequence[VectorRows], is_alive: NDArray[np.bool_] | None = None) -> None:
        """Write rows as new blocks, all of them or those that are alive."""
        self._pause()
        all_ids = np.concatenate([part.ids for part in parts])
        sources = np.concatenate([part.sources for part in parts])
        # Stable, because that merges sorted parts instead of sorting them again.
        order = all_ids.argsort(kind="stable")
        if is_alive is not None:
            order = order[is_alive[order]]
        for start in range(0, len(order), self._rows_max):
            rows = order[start : start + self._rows_max]
            number, self._next_block = self._next_block, self._next_block + 1
            vectors = self._by_dimension([part.vectors for part in parts], rows)
            ids = all_ids[rows]
            columns = {IDS: ids, VECTORS: vectors, NORMS: self._inverse_norms(vectors.T), SOURCES: sources[rows]}
            self._new_blocks[number] = {
                block_key(self._tag, number, name): _packed(name, array) for name, array in columns.items()
            }
            self._blocks[number] = BlockEntry(number, len(ids), 0)
            self.block_ids[number] = ids

    def _by_dimension(self, parts: Sequence[NDArray[np.float32]], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Some rows of several arrays, (dimension, n): one dimension after the other, as blocks store them."""
        result = np.empty((self.record.dimension, len(rows)), np.float32)
        for number, values in enumerate(result):
            self._pause()
            np.concatenate([part[:, number] for part in parts]).take(rows, out=values)
        return result

    def _inverse_norms(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `inverse_norms`, a few rows at a time."""
        result, step = np.empty(len(vectors), np.float32), max(1, _PIECE_NUMBERS // self.record.dimension)
        for start in range(0, len(vectors), step):
            self._pause()
            result[start : start + step] = inverse_norms(vectors[start : start + step])
        return result

    # Parts.

    def _get(self, key: bytes) -> bytes | memoryview | None:
        return self._writes[key] if key in self._writes else self._records.get(key)

    def _block_part(self, number: int, part: bytes) -> bytes | memoryview | None:
        key = block_key(self._tag, number, part)
        return self._new_blocks.get(number, {}).get(key) or self._get(key)

    def _tail(self) -> VectorRows:
        """The rows of the tail that are left."""
        rows = tail_rows(self._records, self.record)
        return rows.at(np.array([tail_key(self._tag, one) not in self._writes for one in rows.ids.tolist()], bool))

    def _part(self, number: int, part: bytes) -> NDArray[Any]:
        data = self._block_part(number, part)
        if data is None:
            raise StoreError(f"a block of the event table of model {self.record.name!r} is missing")
        return np.frombuffer(data, DTYPES[part])

    def _ids(self, number: int) -> EventIds:
        if number not in self.block_ids:
            # A copy: the map is not valid for longer than the transaction.
            self.block_ids[number] = self._part(number, IDS).copy()
        return self.block_ids[number]

    def _dead(self, block: BlockEntry) -> NDArray[np.uint32]:
        return self._part(block.number, DEAD) if block.dead else np.empty(0, np.uint32)

    def _block_rows(self, number: int) -> VectorRows:
        vectors = self._part(number, VECTORS).reshape(self.record.dimension, -1).T
        return VectorRows(self._ids(number), self._part(number, SOURCES), vectors)
