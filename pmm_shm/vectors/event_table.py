"""The tables of event vectors, one per model: their keys and records, and reading them where they are mapped.

| key | value |
| --- | --- |
| `v` tag | the table's record: how far it has come, its blocks, its tail |
| `e` tag, block, part | one part of a sealed block |
| `d` | the embedder with which the daemon embeds events, by the name that finds it |
| `r` tag, event id | one row of the tail: the vector, and one byte for its source |

A block is a column store, sealed when written. Its parts are `i` (event ids, ascending, int64), `v` (vectors, float32:
the first dimension of all rows, then the second, and so on), `n` (the inverse of each vector's norm, float32), `s`
(sources, uint8) and, where rows were replaced or removed since, `d` (their numbers within the block, ascending,
uint32). All are little-endian. In this order of the vectors a product with a query is twice as fast as row by row.

The tag is that of text vectors; block numbers are 4 bytes, big-endian; event ids 8, big-endian, with 2^63 added so that
they sort.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmm_shm.codec import pack, unpack
from pmm_shm.errors import StoreError
from pmm_shm.ledger.tail import START, Position
from pmm_shm.store.environment import MappedTransaction, Transaction
from pmm_shm.vectors.nearest import Rows
from pmm_shm.vectors.text_table import model_tag

TABLE_PREFIX = b"v"
BLOCK_PREFIX = b"e"
TAIL_PREFIX = b"r"
SERVED_KEY = b"d"
IDS, VECTORS, NORMS, SOURCES, DEAD = b"i", b"v", b"n", b"s", b"d"
PARTS = (IDS, VECTORS, NORMS, SOURCES, DEAD)
DTYPES: dict[bytes, np.dtype[Any]] = {
    IDS: np.dtype("<i8"),
    VECTORS: np.dtype("<f4"),
    NORMS: np.dtype("<f4"),
    SOURCES: np.dtype("u1"),
    DEAD: np.dtype("<u4"),
}

Ids = NDArray[np.int64]
_ID_OFFSET = 1 << 63


class BlockEntry(NamedTuple):
    """A block as its table's record names it: its number, its rows, and how many of them count no more."""

    number: int
    rows: int
    dead: int


@dataclass(frozen=True)
class TableRecord:
    """What is published of one model's event vectors.

    Attributes:
        name: the model.
        dimension: of its vectors.
        kinds: of which events the table embeds the content by itself; empty for a table that is only filled otherwise.
        position: up to which event of the log the table has come.
        ahead: (from, to), where it works off a backlog: all events behind `from` up to `to` are in the table, too.
        version: grows with every commit to the table.
        blocks: the sealed blocks.
        tail: number of rows in the tail.
        next_block: the number that the next block gets.
    """

    name: str
    dimension: int
    kinds: tuple[str, ...] = ()
    position: Position = START
    version: int = 0
    blocks: tuple[BlockEntry, ...] = ()
    tail: int = 0
    next_block: int = 0
    ahead: tuple[Position, Position] | None = None

    @property
    def reached(self) -> Position:
        """Where what is new begins."""
        return self.position if self.ahead is None else self.ahead[1]

    @property
    def rows(self) -> int:
        """How many events have a vector here."""
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
                "ahead": None if self.ahead is None else [list(position) for position in self.ahead],
            }
        )

    @classmethod
    def unpack(cls, data: bytes) -> TableRecord:
        """The record in `data`.

        Raises:
            StoreError: it is none.
        """
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
                None if ahead is None else (Position(*ahead[0]), Position(*ahead[1])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"the record of a table of vectors cannot be read: {error!r}") from error

    def changed(self, **changes: Any) -> TableRecord:
        return replace(self, **changes)


def table_key(name: str) -> bytes:
    return TABLE_PREFIX + model_tag(name)


def block_key(tag: bytes, number: int, part: bytes) -> bytes:
    return BLOCK_PREFIX + tag + number.to_bytes(4, "big") + part


def tail_key(tag: bytes, event_id: int) -> bytes:
    return TAIL_PREFIX + tag + (event_id + _ID_OFFSET).to_bytes(8, "big")


def tail_event_id(key: bytes) -> int:
    """The event id in a key of the tail."""
    return int.from_bytes(key[-8:], "big") - _ID_OFFSET


def table_records(records: Transaction) -> list[TableRecord]:
    """The records of all tables."""
    found = []
    with records.cursor() as cursor:
        if cursor.set_range(TABLE_PREFIX):
            for key, value in cursor:
                if not key.startswith(TABLE_PREFIX):
                    break
                found.append(TableRecord.unpack(value))
    return found


class TableView:
    """One model's rows within a mapped transaction; the arrays count for nothing once it ends.

    Parameters:
        records: of `Environment.read_mapped`.
    """

    def __init__(self, records: MappedTransaction, record: TableRecord) -> None:
        self._records = records
        self.record = record
        self._tag = record.tag

    def blocks(self) -> Iterator[Rows]:
        """The sealed blocks, one after the other, without a copy.

        Raises:
            StoreError: a part is missing or too short.
        """
        for block in self.record.blocks:
            vectors = self._part(block, VECTORS, block.rows * self.record.dimension)
            yield Rows(
                self._part(block, IDS, block.rows),
                vectors.reshape(self.record.dimension, block.rows).T,
                self._part(block, NORMS, block.rows),
                self._part(block, DEAD, block.dead) if block.dead else None,
            )

    def tail(self) -> Rows:
        """A copy of the tail's rows, which may be kept for as long as the record has this version."""
        prefix = TAIL_PREFIX + self._tag
        ids, values = [], []
        width = self.record.dimension * 4
        with self._records.cursor() as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if bytes(key[: len(prefix)]) != prefix:
                        break
                    ids.append(tail_event_id(bytes(key)))
                    values.append(bytes(value[:width]))
        try:
            vectors = np.frombuffer(b"".join(values), dtype="<f4").reshape(len(ids), self.record.dimension)
        except ValueError as error:
            raise StoreError(f"the tail of the table of vectors {self.record.name!r} is damaged") from error
        return Rows.of(np.array(ids, dtype=np.int64), vectors)

    def _part(self, block: BlockEntry, part: bytes, count: int) -> NDArray[Any]:
        data = self._records.get(block_key(self._tag, block.number, part))
        dtype = DTYPES[part]
        if data is None or len(data) != count * dtype.itemsize:
            raise StoreError(f"a block of the table of vectors {self.record.name!r} is damaged")
        return np.frombuffer(data, dtype)
