"""Event tables: the vectors of events, one table per model. Their keys and records, and reading them.

| key | value |
| --- | --- |
| `v` tag | the table's record: its position in the log, its blocks, its tail |
| `e` tag, block, part | one part of a sealed block |
| `d` | the name of the embedder with which the daemon embeds events |
| `r` tag, event id | one row of the tail: the vector, and one byte for its source |

A block stores columns and is sealed when written. Its parts are `i` (event ids, ascending, int64), `v` (vectors,
float32: the first dimension of all rows, then the second, and so on), `n` (the inverse of each vector's norm, float32),
`s` (sources, uint8) and, if rows were replaced or removed since, `d` (their numbers within the block, ascending,
uint32). All are little-endian. A product with a query is twice as fast with this layout as row by row.

The tag is the same as in the text table; block numbers are 4 bytes, big-endian; event ids 8, big-endian, with 2^63
added so that they sort.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmm_shm.codec import pack, unpack
from pmm_shm.errors import StoreError
from pmm_shm.ledger.tail import START, Position
from pmm_shm.store.environment import MappedTransaction, Transaction
from pmm_shm.store.layout import EVENT_TABLE_PREFIX
from pmm_shm.vectors.nearest import EventIds, SearchRows
from pmm_shm.vectors.text_table import model_tag, records_under

BLOCK_PREFIX = b"e"
TAIL_PREFIX = b"r"
SERVED_KEY = b"d"
IMPORTED_PREFIX = "imported-"
"""Before the dimension: the models of vectors that are imported only."""
IDS, VECTORS, NORMS, SOURCES, DEAD = b"i", b"v", b"n", b"s", b"d"
PARTS = (IDS, VECTORS, NORMS, SOURCES, DEAD)
DTYPES: dict[bytes, np.dtype[Any]] = {
    IDS: np.dtype("<i8"),
    VECTORS: np.dtype("<f4"),
    NORMS: np.dtype("<f4"),
    SOURCES: np.dtype("u1"),
    DEAD: np.dtype("<u4"),
}

_ID_OFFSET = 1 << 63


class BlockEntry(NamedTuple):
    """A block in its table's record: its number, its rows, and how many of them were replaced or removed."""

    number: int
    rows: int
    dead: int


class PositionRange(NamedTuple):
    """The events after `after`, up to and including `until`."""

    after: Position
    until: Position


@dataclass(frozen=True)
class EventTableRecord:
    """The record of one model's table.

    Attributes:
        name: the model.
        dimension: of its vectors.
        kinds: events of these kinds are embedded for the table; empty for a table filled from other sources only.
        position: the table has all events up to this one.
        newer: while there is a backlog: newer events that the table has, too. The backlog is between the two.
        refused: how many events have no vector because the embedder refused them.
        version: grows with every commit to the table.
        blocks: the sealed blocks.
        tail: number of rows in the tail.
        next_block: the number of the next block.
    """

    name: str
    dimension: int
    kinds: tuple[str, ...] = ()
    position: Position = START
    version: int = 0
    blocks: tuple[BlockEntry, ...] = ()
    tail: int = 0
    next_block: int = 0
    newer: PositionRange | None = None
    refused: int = 0

    @property
    def newest(self) -> Position:
        """The last event that was read for the table; all later ones are new to it."""
        return self.position if self.newer is None else self.newer.until

    @property
    def is_filled(self) -> bool:
        """Whether the daemon puts into the table what belongs to it: without kinds, that is only so for imports."""
        return bool(self.kinds) or self.name.startswith(IMPORTED_PREFIX)

    @property
    def rows(self) -> int:
        """How many events have a vector in the table."""
        return self.tail + sum(block.rows - block.dead for block in self.blocks)

    @property
    def tag(self) -> bytes:
        return model_tag(self.name)

    def pack(self) -> bytes:
        return pack(
            {
                "name": self.name,
                "dimension": self.dimension,
                "kinds": list(self.kinds),
                "event_id": self.position.event_id,
                "anchor": self.position.anchor,
                "version": self.version,
                "blocks": [list(block) for block in self.blocks],
                "tail": self.tail,
                "next_block": self.next_block,
                "ahead": None if self.newer is None else [list(position) for position in self.newer],
                "refused": self.refused,
            }
        )

    @classmethod
    def unpack(cls, data: bytes) -> EventTableRecord:
        """Decode a record. Raises `StoreError`."""
        try:
            record = unpack(data)
            ahead = record["ahead"]
            return cls(
                record["name"],
                record["dimension"],
                tuple(record["kinds"]),
                Position(record["event_id"], record["anchor"]),
                record["version"],
                tuple(BlockEntry(*block) for block in record["blocks"]),
                record["tail"],
                record["next_block"],
                None if ahead is None else PositionRange(*(Position(*position) for position in ahead)),
                # Earlier daemons did not write it.
                record.get("refused", 0),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"the record of an event table cannot be read: {error!r}") from error


def table_key(name: str) -> bytes:
    return EVENT_TABLE_PREFIX + model_tag(name)


def block_key(tag: bytes, number: int, part: bytes) -> bytes:
    return BLOCK_PREFIX + tag + number.to_bytes(4, "big") + part


def tail_key(tag: bytes, event_id: int) -> bytes:
    return TAIL_PREFIX + tag + (event_id + _ID_OFFSET).to_bytes(8, "big")


def table_records(records: Transaction) -> list[EventTableRecord]:
    """The records of all tables."""
    return [EventTableRecord.unpack(value) for _, value in records_under(records, EVENT_TABLE_PREFIX)]


def served_model(records: Transaction | MappedTransaction) -> str | None:
    """The embedder with which the daemon embeds events; None if it is unknown."""
    data = records.get(SERVED_KEY)
    return None if data is None else str(unpack(bytes(data)))


class VectorRows(NamedTuple):
    """Rows of a table: (n,) int64 event ids without duplicates, (n,) uint8 sources, (n, dimension) float32 vectors."""

    ids: EventIds
    sources: NDArray[np.uint8]
    vectors: NDArray[np.float32]

    @classmethod
    def none(cls, dimension: int) -> VectorRows:
        return cls(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty((0, dimension), np.float32))

    def at(self, numbers: Any) -> VectorRows:
        """Some of the rows, or all in another order."""
        return VectorRows(self.ids[numbers], self.sources[numbers], self.vectors[numbers])


def tail_rows(records: Transaction | MappedTransaction, record: EventTableRecord) -> VectorRows:
    """A copy of the rows in a table's tail, ordered by event id. Raises `StoreError`."""
    found = dict(records_under(records, TAIL_PREFIX + record.tag))
    ids, values = [int.from_bytes(key[-8:], "big") - _ID_OFFSET for key in found], found.values()
    try:
        vectors = np.frombuffer(b"".join(value[:-1] for value in values), "<f4").reshape(len(ids), record.dimension)
    except ValueError as error:
        raise StoreError(f"the tail of the event table of model {record.name!r} is damaged") from error
    return VectorRows(np.array(ids, np.int64), np.array([value[-1] for value in values], np.uint8), vectors)


class EventTableView:
    """One model's rows within a mapped transaction; the arrays are invalid once it ends.

    Parameters:
        records: of `Environment.read_mapped`.
    """

    def __init__(self, records: MappedTransaction, record: EventTableRecord) -> None:
        self._records = records
        self.record = record
        self._tag = record.tag

    def blocks(self) -> Iterator[SearchRows]:
        """The sealed blocks in order, without copying.

        Raises:
            StoreError: a part is missing or too short.
        """
        for block in self.record.blocks:
            vectors = self._part(block, VECTORS, block.rows * self.record.dimension)
            yield SearchRows(
                self._part(block, IDS, block.rows),
                vectors.reshape(self.record.dimension, block.rows).T,
                self._part(block, NORMS, block.rows),
                self._part(block, DEAD, block.dead) if block.dead else None,
            )

    def tail(self) -> SearchRows:
        """A copy of the tail's rows, which may be kept for as long as the record has this version."""
        rows = tail_rows(self._records, self.record)
        return SearchRows.of(rows.ids, rows.vectors)

    def _part(self, block: BlockEntry, part: bytes, count: int) -> NDArray[Any]:
        data = self._records.get(block_key(self._tag, block.number, part))
        dtype = DTYPES[part]
        if data is None or len(data) != count * dtype.itemsize:
            raise StoreError(f"a block of the event table of model {self.record.name!r} is damaged")
        return np.frombuffer(data, dtype)
