"""Reading the store: short transactions over the state that the daemon has published last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, cast

import lmdb

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import Base, State, Touched
from pmm_shm.instance.paths import FileId, Instance
from pmm_shm.store.environment import (
    DamagedStoreError,
    Environment,
    MappedTransaction,
    Transaction,
    store_error,
)
from pmm_shm.store.layout import (
    HEADER_KEY,
    SEAL_PREFIX,
    Header,
    HeaderDecoder,
    Seal,
    TouchedRecord,
    state_prefix,
    touched_key,
)
from pmm_shm.store.locator import EnvironmentLocator

Lineage = tuple[FileId, bytes, tuple[int, ...]]
"""Identity of the data file, UUID of the environment, generations of the folds: states and memos belong to one lineage.
"""


class _Detached:
    """Stands where no transaction is held: nothing can be read."""

    def get(self, key: bytes, /) -> Any:
        raise AssertionError("a state was read outside its transaction")

    def cursor(self) -> Any:
        raise AssertionError("a state was read outside its transaction")


DETACHED: Final = cast(Transaction, _Detached())


class LmdbBase:
    """One generation within a read transaction, as the base of an overlay.

    Attributes:
        transaction: the current read transaction; `DETACHED` between the reads of an owner that keeps the base.
    """

    __slots__ = ("_prefix", "transaction")

    def __init__(self, transaction: Transaction, generation: int) -> None:
        self.transaction = transaction
        self._prefix = state_prefix(generation)

    def get(self, key: bytes, /) -> bytes | None:
        try:
            return self.transaction.get(self._prefix + key)
        except lmdb.Error as error:
            raise store_error("the published state", error) from error

    def scan(self, prefix: bytes, /) -> Iterator[tuple[bytes, bytes]]:
        full = self._prefix + prefix
        skip = len(self._prefix)
        try:
            with self.transaction.cursor() as cursor:
                if cursor.set_range(full):
                    for key, value in cursor:
                        if not key.startswith(full):
                            return
                        yield key[skip:], value
        except lmdb.Error as error:
            raise store_error("the published state", error) from error


class Snapshot:
    """The published state, as of one transaction; valid only within `SnapshotReader.begin`."""

    __slots__ = ("header", "identity", "transaction")

    def __init__(self, transaction: Transaction, header: Header, identity: FileId) -> None:
        self.transaction = transaction
        self.header = header
        self.identity = identity

    def lineage(self, folds: list[Fold]) -> Lineage | None:
        """The lineage of these folds' states; None where one of them is not published."""
        generations = []
        for fold in folds:
            generation = self.header.generation_of(fold)
            if generation is None:
                return None
            generations.append(generation)
        return self.identity, self.header.uuid, tuple(generations)

    def whole_lineage(self) -> Lineage:
        """The lineage of everything that is published."""
        return self.identity, self.header.uuid, tuple(generation for _, _, generation in self.header.folds.values())

    def base(self, fold: Fold) -> Base:
        """The published state of a fold.

        Raises:
            StoreError: it is not published.
        """
        generation = self.header.generation_of(fold)
        if generation is None:
            raise StoreError(f"fold {fold.name!r} is not published in this version and with these parameters")
        return LmdbBase(self.transaction, generation)

    def state_sizes(self, entries_max: int) -> dict[str, tuple[int, int]]:
        """Fold name to (entries, bytes of keys and values) of its state; counting ends at `entries_max` of each."""
        found = {}
        for name, (_, _, generation) in self.header.folds.items():
            entries = size_bytes = 0
            for key, value in LmdbBase(self.transaction, generation).scan(b""):
                entries += 1
                size_bytes += len(key) + len(value)
                if entries >= entries_max:
                    break
            found[name] = (entries, size_bytes)
        return found

    def state(self, fold: Fold) -> State:
        """The published state of a fold, to be read within this transaction."""
        return State(self.base(fold))

    def touched_since(self, event_id: int | None) -> dict[str, Touched | None] | None:
        """The keys that commits behind `event_id` wrote, per fold; None if the list does not go back that far."""
        merged: dict[str, Touched | None] = {}
        sequence = self.header.sequence
        for number in range(sequence, max(0, sequence - limits.TOUCHED_COMMITS_MAX), -1):
            data = self.transaction.get(touched_key(number))
            if data is None:
                return None
            after_id, folds = TouchedRecord.unpack(data)
            if merged:
                _merge(merged, folds)
            else:
                merged = folds
            if after_id is None or (event_id is not None and after_id <= event_id):
                return merged
        return None

    def seals(self) -> list[Seal]:
        """The seals of all blocks that have one, in order."""
        seals = []
        with self.transaction.cursor() as cursor:
            if cursor.set_range(SEAL_PREFIX):
                for key, value in cursor:
                    if not key.startswith(SEAL_PREFIX):
                        break
                    seals.append(Seal.unpack(value))
        return seals

    def entries(self, fold: Fold) -> dict[bytes, bytes]:
        """A copy of the raw state of a fold: key to value."""
        return dict(self.base(fold).scan(b""))


def _merge(merged: dict[str, Touched | None], folds: dict[str, Touched | None]) -> None:
    for name, touched in folds.items():
        before = merged.get(name, Touched())
        if before is None or touched is None:
            merged[name] = None
        else:
            before.merge(touched)
            merged[name] = before


class SnapshotReader:
    """Begins transactions on the published state. Not thread-safe: the caller has a lock.

    Its owner closes it before a fork.

    Attributes:
        locator: finds the environment, and knows why one cannot be used.
    """

    def __init__(self, instance: Instance) -> None:
        self.locator = EnvironmentLocator(instance)
        self._raw_header = b""
        self._decoder = HeaderDecoder()
        self._header: Header | None = None

    def begin(self) -> _SnapshotTransaction:
        """A transaction on the published state, as a context manager; None if there is no usable one.

        Raises:
            DamagedStoreError: a page that was read is damaged. The environment is refused until it is made anew.
        """
        return _SnapshotTransaction(self)

    @contextmanager
    def begin_mapped(self) -> Iterator[tuple[MappedTransaction, FileId] | None]:
        """A transaction whose values are views of the map, and the environment's identity; None where nothing usable
        is. For the records beside the folds' state.

        Raises:
            DamagedStoreError: as `begin`.
        """
        environment = self.locator.locate()
        if environment is None:
            yield None
            return
        with contextlib.ExitStack() as stack:
            try:
                transaction = stack.enter_context(environment.read_mapped())
            except (StoreError, lmdb.Error) as error:
                self.locator.fail(environment, error)
                yield None
                return
            self.locator.failure = None
            try:
                yield transaction, environment.identity
            except (DamagedStoreError, lmdb.Error) as error:
                raise self.locator.fail(environment, error) from error

    def close(self) -> None:
        """Give the environment back."""
        self.locator.close()

    def read_header(self, transaction: Transaction) -> Header | None:
        """The header within a transaction; None where it is missing or of another format."""
        raw = transaction.get(HEADER_KEY)
        if raw is None:
            return None
        if raw != self._raw_header:
            try:
                self._header = self._decoder.unpack(raw)
                self.locator.failure = None
            except StoreError as error:
                self._header = None
                self.locator.failure = error
            self._raw_header = raw
        return self._header


class _SnapshotTransaction:
    """One `with` of `SnapshotReader.begin`; as generators, its layers would cost more than the transaction."""

    __slots__ = ("_environment", "_reader", "_transaction")

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._environment: Environment | None = None
        self._transaction: Transaction | None = None

    def __enter__(self) -> Snapshot | None:
        reader = self._reader
        environment = self._environment = reader.locator.locate()
        if environment is None:
            return None
        try:
            transaction = self._transaction = environment.begin()
            header = reader.read_header(transaction)
        except (StoreError, lmdb.Error) as error:
            reader.locator.fail(environment, error)
            return None
        except BaseException:
            self._end()
            raise
        return None if header is None else Snapshot(transaction, header, environment.identity)

    def __exit__(self, _: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        if self._environment is not None and isinstance(error, (DamagedStoreError, lmdb.Error)):
            raise self._reader.locator.fail(self._environment, error) from error

    def _end(self) -> None:
        if self._environment is not None and self._transaction is not None:
            self._environment.end(self._transaction)
