"""Writing the tables of event vectors: the daemon's alone.

New rows go to the tail. A full tail is sealed into a small block, and small blocks are merged into large ones, so that
a search is a few products over large blocks and each row is copied a few times in its life. A row that is replaced or
removed is marked dead in its block; a block with many dead rows is written anew.

Invariant: in one table each event id has at most one living row.
Invariant: rows and the position that they belong to change in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm.ledger.tail import Position
from pmm_shm.store.environment import Transaction
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
    Ids,
    TableRecord,
    block_key,
    table_key,
    tail_event_id,
    tail_key,
)
from pmm_shm.vectors.nearest import inverse_norms
from pmm_shm.vectors.text_table import put_model

_MERGE_BLOCKS = 4


class VectorRows(NamedTuple):
    """Rows to put: (n,) int64 event ids without duplicates, (n,) uint8 sources, (n, dimension) float32 vectors."""

    ids: Ids
    sources: NDArray[np.uint8]
    vectors: NDArray[np.float32]

    @classmethod
    def none(cls, dimension: int) -> VectorRows:
        return cls(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty((0, dimension), np.float32))

    def at(self, numbers: Any) -> VectorRows:
        """Some of the rows, or all in another order."""
        return VectorRows(self.ids[numbers], self.sources[numbers], self.vectors[numbers])


def joined(parts: Sequence[VectorRows]) -> VectorRows:
    """The rows of several, in order."""
    ids, sources, vectors = zip(*parts, strict=True)
    return VectorRows(np.concatenate(ids), np.concatenate(sources), np.concatenate(vectors))


class EventVectorWriter:
    """One model's table. Not thread-safe: the daemon has one thread for it.

    Parameters:
        writer: the store.
        name, dimension: of the model.
        block_bytes: how large the vectors of a block grow.

    Raises:
        InvalidVectorError: the model has vectors of another dimension.
        StoreError: what is there cannot be read.
    """

    def __init__(
        self, writer: StoreWriter, name: str, dimension: int, block_bytes: int = limits.VECTOR_BLOCK_BYTES
    ) -> None:
        self._writer = writer
        self._name = name
        self._dimension = dimension
        self._rows_max = max(limits.VECTOR_TAIL_ROWS, min(limits.VECTOR_BLOCK_ROWS, block_bytes // (4 * dimension)))
        self._block_ids: dict[int, Ids] = {}
        self.record = writer.transact("event_vectors.open", self._open)

    def sources_of(self, ids: Ids) -> NDArray[np.uint8]:
        """The source of each id's row, (n,) uint8; 0 where it has none."""
        with self._writer.environment.read() as records:
            return self._changes(records).sources_of(ids)

    def rows_of(self, ids: Ids) -> VectorRows:
        """The rows of those ids that have one, in ascending order of id."""
        with self._writer.environment.read() as records:
            return self._changes(records).rows_of(ids)

    def ids_of(self, source: int) -> Ids:
        """The ids of all rows with this source, ascending."""
        with self._writer.environment.read() as records:
            return self._changes(records).ids_of(source)

    def apply(
        self,
        rows: VectorRows,
        removed: Ids | None = None,
        position: Position | None = None,
        kinds: tuple[str, ...] | None = None,
        ahead: tuple[Position, Position] | None = None,
    ) -> None:
        """Put rows, remove others, and move the position, in one commit.

        Parameters:
            rows: they replace those with the same ids.
            removed: (m,) int64; ids without a row do not matter.
            position, kinds: None to leave them as they are.
            ahead: goes with `position`.

        Raises:
            StoreError: it cannot be stored; nothing was.
        """

        def write(records: Transaction) -> _Changes:
            changes = self._changes(records)
            changes.remove(rows.ids if removed is None else np.concatenate((rows.ids, removed)))
            changes.add(rows)
            changes.finish(position, kinds, ahead)
            return changes

        changes = self._writer.transact("event_vectors.apply", write)
        self.record, self._block_ids = changes.record, changes.block_ids

    def clear(self) -> None:
        """Forget all rows and the position: they were of another history. The kinds stay."""
        self.record = self._writer.transact("event_vectors.clear", self._emptied)
        self._block_ids = {}

    def _changes(self, records: Transaction) -> _Changes:
        return _Changes(records, self.record, dict(self._block_ids), self._rows_max)

    def _open(self, records: Transaction) -> TableRecord:
        put_model(records, self._name, self._dimension)
        data = records.get(table_key(self._name))
        if data is not None:
            return TableRecord.unpack(data)
        record = TableRecord(self._name, self._dimension)
        records.put(table_key(self._name), record.pack())
        return record

    def _emptied(self, records: Transaction) -> TableRecord:
        before = self.record
        _delete_tail(records, before.tag)
        for block in before.blocks:
            _delete_block(records, before.tag, block.number)
        # Versions and numbers of blocks go on: readers know by them what they have seen.
        record = TableRecord(
            before.name, before.dimension, before.kinds, version=before.version + 1, next_block=before.next_block
        )
        records.put(table_key(self._name), record.pack())
        return record


class _Changes:
    """One transaction's work on a table; `record` and `block_ids` count if it commits."""

    def __init__(self, records: Transaction, record: TableRecord, block_ids: dict[int, Ids], rows_max: int) -> None:
        self._records = records
        self._rows_max = rows_max
        self.record = record
        self.block_ids = block_ids
        self._tag = record.tag
        self._blocks = {block.number: block for block in record.blocks}
        self._next_block = record.next_block
        self._tail_count = record.tail

    # Finding.

    def sources_of(self, ids: Ids) -> NDArray[np.uint8]:
        result = np.zeros(len(ids), np.uint8)
        for number, event_id in enumerate(ids.tolist()):
            if self._tail_count and (value := self._records.get(tail_key(self._tag, event_id))) is not None:
                result[number] = value[-1]
        for block in self._blocks.values():
            wanted, places = self._living(block, ids)
            result[wanted] = self._part(block.number, SOURCES)[places]
        return result

    def rows_of(self, ids: Ids) -> VectorRows:
        ids = np.sort(ids)
        parts = [VectorRows.none(self.record.dimension)]
        for block in self._blocks.values():
            _, places = self._living(block, ids)
            if len(places):
                parts.append(self._block_rows(block.number).at(places))
        tail = self._tail_rows()
        parts.append(tail.at(np.isin(tail.ids, ids)))
        rows = joined(parts)
        return rows.at(np.argsort(rows.ids))

    def ids_of(self, source: int) -> Ids:
        tail = self._tail_rows()
        parts = [tail.ids[tail.sources == source]]
        for block in self._blocks.values():
            is_wanted = self._part(block.number, SOURCES) == source
            is_wanted[self._dead(block)] = False
            parts.append(self._ids(block.number)[is_wanted])
        return np.sort(np.concatenate(parts))

    def _living(self, block: BlockEntry, ids: Ids) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which of `ids` have a living row in the block, and where."""
        own = self._ids(block.number)
        if not len(ids) or int(ids.max()) < int(own[0]) or int(ids.min()) > int(own[-1]):
            return np.empty(0, np.intp), np.empty(0, np.intp)
        places = np.searchsorted(own, ids)
        is_there = own[np.minimum(places, len(own) - 1)] == ids
        if block.dead:
            is_there &= ~np.isin(places, self._dead(block))
        wanted = np.flatnonzero(is_there)
        return wanted, places[wanted]

    # Changing.

    def remove(self, ids: Ids) -> None:
        for event_id in ids.tolist() if self._tail_count else ():
            self._tail_count -= self._records.delete(tail_key(self._tag, event_id))
        for block in list(self._blocks.values()):
            _, places = self._living(block, ids)
            if len(places):
                dead = np.union1d(self._dead(block), places)
                self._put(block.number, DEAD, dead)
                self._blocks[block.number] = block._replace(dead=len(dead))

    def add(self, rows: VectorRows) -> None:
        rows = rows.at(np.argsort(rows.ids))
        if self._tail_count + len(rows.ids) > limits.VECTOR_TAIL_ROWS:
            rows = joined([self._tail_rows(), rows])
            _delete_tail(self._records, self._tag)
            self._tail_count = 0
            self._seal(rows)
            return
        for event_id, source, vector in zip(rows.ids.tolist(), rows.sources.tolist(), rows.vectors, strict=True):
            self._records.put(tail_key(self._tag, event_id), vector.astype("<f4").tobytes() + bytes((source,)))
        self._tail_count += len(rows.ids)

    def finish(
        self, position: Position | None, kinds: tuple[str, ...] | None, ahead: tuple[Position, Position] | None
    ) -> None:
        """Rewrite what has many dead rows, merge what is small, and put the record."""
        for block in list(self._blocks.values()):
            if block.dead * 4 > block.rows:
                self._merge([block])
        for size in self._mergeable():
            self._merge(size)
        record = self.record
        self.record = record.changed(
            kinds=record.kinds if kinds is None else kinds,
            position=record.position if position is None else position,
            ahead=record.ahead if position is None else ahead,
            version=record.version + 1,
            blocks=tuple(self._blocks.values()),
            tail=self._tail_count,
            next_block=self._next_block,
        )
        self._records.put(table_key(record.name), self.record.pack())

    def _mergeable(self) -> Iterator[list[BlockEntry]]:
        """Groups of `_MERGE_BLOCKS` blocks of about the same size, smallest first; full ones stay as they are."""
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
        parts = []
        for block in blocks:
            is_alive = np.ones(block.rows, bool)
            is_alive[self._dead(block)] = False
            parts.append(self._block_rows(block.number).at(is_alive))
        for block in blocks:
            _delete_block(self._records, self._tag, block.number)
            del self._blocks[block.number]
            self.block_ids.pop(block.number, None)
        self._seal(joined(parts))

    def _seal(self, rows: VectorRows) -> None:
        """Write rows as new blocks."""
        rows = rows.at(np.argsort(rows.ids))
        for start in range(0, len(rows.ids), self._rows_max):
            part = rows.at(slice(start, start + self._rows_max))
            number, self._next_block = self._next_block, self._next_block + 1
            self._put(number, IDS, part.ids)
            self._put(number, VECTORS, part.vectors.T)
            self._put(number, NORMS, inverse_norms(part.vectors))
            self._put(number, SOURCES, part.sources)
            self._blocks[number] = BlockEntry(number, len(part.ids), 0)
            self.block_ids[number] = part.ids

    # Parts.

    def _put(self, number: int, part: bytes, array: NDArray[Any]) -> None:
        self._records.put(block_key(self._tag, number, part), array.astype(DTYPES[part]).tobytes())

    def _part(self, number: int, part: bytes) -> NDArray[Any]:
        data = self._records.get(block_key(self._tag, number, part))
        if data is None:
            raise StoreError(f"a block of the table of vectors {self.record.name!r} is missing")
        return np.frombuffer(data, DTYPES[part])

    def _ids(self, number: int) -> Ids:
        if number not in self.block_ids:
            self.block_ids[number] = self._part(number, IDS)
        return self.block_ids[number]

    def _dead(self, block: BlockEntry) -> NDArray[np.uint32]:
        return self._part(block.number, DEAD) if block.dead else np.empty(0, np.uint32)

    def _block_rows(self, number: int) -> VectorRows:
        vectors = self._part(number, VECTORS).reshape(self.record.dimension, -1).T
        return VectorRows(self._ids(number), self._part(number, SOURCES), vectors)

    def _tail_rows(self) -> VectorRows:
        prefix = TAIL_PREFIX + self._tag
        ids, sources, values = [], [], []
        with self._records.cursor() as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    ids.append(tail_event_id(key))
                    sources.append(value[-1])
                    values.append(value[:-1])
        vectors = np.frombuffer(b"".join(values), "<f4").reshape(len(ids), self.record.dimension)
        return VectorRows(np.array(ids, np.int64), np.array(sources, np.uint8), vectors)


def _delete_tail(records: Transaction, tag: bytes) -> None:
    prefix = TAIL_PREFIX + tag
    with records.cursor() as cursor:
        while cursor.set_range(prefix) and cursor.key().startswith(prefix):
            cursor.delete()


def _delete_block(records: Transaction, tag: bytes, number: int) -> None:
    for part in PARTS:
        records.delete(block_key(tag, number, part))
