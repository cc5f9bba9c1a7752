"""The text table: (model, text) to vector, shared by all workers and kept over restarts.

| key | value |
| --- | --- |
| `m` tag | [name, dimension] of a model |
| `x` tag, text key | one vector, little-endian float32 |
| `q` number | tag and text key of the vector stored under this number |
| `w` | [number of the oldest vector, number of the next one] |

The tag of a model is 8 bytes of BLAKE2b over its name; a text key is `pmm_shm.vectors.embedder.text_key`.

The table is bounded; the oldest vector is evicted first. Reads write nothing, so the time of the last read is unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.codec import pack, unpack
from pmm_shm.errors import InvalidVectorError
from pmm_shm.store.environment import MappedTransaction, Transaction
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors import local_bow

MODEL_PREFIX = b"m"
TEXT_PREFIX = b"x"
QUEUE_PREFIX = b"q"
QUEUE_ENDS_KEY = b"w"


def model_tag(name: str) -> bytes:
    """8 bytes that represent a model in keys."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def text_vector_key(tag: bytes, key: bytes) -> bytes:
    """The key of a text's vector."""
    return TEXT_PREFIX + tag + key


def records_under(records: Transaction | MappedTransaction, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Copies of the keys that begin with a prefix, in order, and of their values."""
    with records.cursor() as cursor:
        if cursor.set_range(prefix):
            for key, value in cursor:
                if bytes(key[: len(prefix)]) != prefix:
                    return
                yield bytes(key), bytes(value)


def queue_ends(records: Transaction) -> tuple[int, int]:
    """(number of the oldest vector, number of the next one); the difference is the count."""
    data = records.get(QUEUE_ENDS_KEY)
    if data is None:
        return 0, 0
    first, next_ = unpack(data)
    return first, next_


def dimension_of(records: Transaction, tag: bytes) -> int | None:
    """The dimension of a model with vectors in the store; None if it has none yet."""
    data = records.get(MODEL_PREFIX + tag)
    return None if data is None else unpack(data)[1]


def put_model(records: Transaction, name: str, dimension: int) -> None:
    """Record the dimension of a model.

    Raises:
        InvalidVectorError: the store has vectors of another dimension under this name, or too many models.
    """
    is_new = records.get(MODEL_PREFIX + model_tag(name)) is None
    known = local_bow.DIMENSION if name == local_bow.NAME else dimension_of(records, model_tag(name))
    if known not in (None, dimension):
        raise InvalidVectorError(
            f"model {name!r} has vectors of dimension {known} here, not {dimension}: give the other one another name"
        )
    if is_new:
        if sum(1 for _ in records_under(records, MODEL_PREFIX)) >= limits.MODELS_MAX:
            raise InvalidVectorError(f"model {name!r}: there are vectors of {limits.MODELS_MAX} models already")
        records.put(MODEL_PREFIX + model_tag(name), pack([name, dimension]))


class TextVector(NamedTuple):
    """A vector to store: the model's name, the text's key, the vector as little-endian float32."""

    model: str
    key: bytes
    vector: bytes


class TextTableWriter:
    """Writes the text table, with at most `vectors_max` vectors; only the daemon does.

    Raises:
        StoreError: the stored table cannot be read, or not be reduced to the bound.
    """

    def __init__(self, writer: StoreWriter, vectors_max: int = limits.TEXT_VECTORS_MAX) -> None:
        self._writer = writer
        self.vectors_max = vectors_max
        while not writer.transact("text_vectors.evict", self._is_within_bound):
            pass
        self.count = writer.transact("text_vectors.count", _count)

    def put(self, vectors: Sequence[TextVector]) -> None:
        """Store vectors in one commit; those already stored are not replaced.

        Raises:
            InvalidVectorError: a model has vectors of another dimension; nothing was stored.
            StoreError: the commit failed; nothing was stored.
        """
        self.count = self._writer.transact("text_vectors.put", lambda records: self._put(records, vectors))

    def _put(self, records: Transaction, vectors: Sequence[TextVector]) -> int:
        first, next_ = queue_ends(records)
        for model, key, vector in vectors:
            table_key = text_vector_key(model_tag(model), key)
            if records.get(table_key) is not None:
                continue
            put_model(records, model, len(vector) // 4)
            records.put(table_key, vector)
            records.put(_queue_key(next_), table_key[1:])
            next_ += 1
        first = _evict(records, first, next_ - self.vectors_max)
        records.put(QUEUE_ENDS_KEY, pack([first, next_]))
        return next_ - first

    def _is_within_bound(self, records: Transaction) -> bool:
        """Evict some of what an earlier daemon stored under a larger bound; True if nothing is left to evict."""
        first, next_ = queue_ends(records)
        wanted = next_ - self.vectors_max
        if first >= wanted:
            return True
        first = _evict(records, first, min(wanted, first + limits.DELETE_KEYS_PER_TXN))
        records.put(QUEUE_ENDS_KEY, pack([first, next_]))
        return False


def _count(records: Transaction) -> int:
    first, next_ = queue_ends(records)
    return next_ - first


def _evict(records: Transaction, first: int, until: int) -> int:
    """Delete the vectors with numbers from `first` to before `until`; returns the number of the oldest one left."""
    for number in range(first, until):
        key = records.get(_queue_key(number))
        if key is not None:
            records.delete(TEXT_PREFIX + key)
            records.delete(_queue_key(number))
    return max(first, until)


def _queue_key(number: int) -> bytes:
    return QUEUE_PREFIX + number.to_bytes(8, "big")
