"""Reading the store: short transactions over the state that the daemon has published last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType

import lmdb

from pmm_shm import limits
from pmm_shm.codec import unpack
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
    state_prefix,
    touched_key,
)
from pmm_shm.store.locator import EnvironmentLocator
from pmm_shm.typed import Any, Final, cast

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


class Attachment:
    """Attributes:
    transaction: the one in which bases read; `DETACHED` between the reads of an owner that keeps them.
    """

    __slots__ = ("transaction",)

    def __init__(self, transaction: Transaction = DETACHED) -> None:
        self.transaction = transaction


class LmdbBase:
    """One generation within a read transaction, as the base of an overlay."""

    __slots__ = ("_attachment", "_prefix")

    def __init__(self, attachment: Attachment, generation: int) -> None:
        self._attachment = attachment
        self._prefix = state_prefix(generation)

    def get(self, key: bytes, /) -> bytes | None:
        try:
            return self._attachment.transaction.get(self._prefix + key)
        except lmdb.Error as error:
            raise store_error("the published state", error) from error

    def scan(self, prefix: bytes, /) -> Iterator[tuple[bytes, bytes]]:
        full = self._prefix + prefix
        skip = len(self._prefix)
        try:
            with self._attachment.transaction.cursor() as cursor:
                if cursor.set_range(full):
                    for key, value in cursor:
                        if not key.startswith(full):
                            return
                        yield key[skip:], value
        except lmdb.Error as error:
            raise store_error("the published state", error) from error


class Snapshot:
    """The published state, as of one transaction; valid only within a `with` of `SnapshotReader`."""

    __slots__ = ("_attachment", "header", "identity", "transaction")

    def __init__(self, transaction: Transaction, header: Header, identity: FileId) -> None:
        self.transaction = transaction
        self.header = header
        self.identity = identity
        self._attachment: Attachment | None = None

    def detach(self) -> None:
        """Let go of the transaction: whoever keeps a state must not keep its reader slot."""
        self.transaction = DETACHED
        if self._attachment is not None:
            self._attachment.transaction = DETACHED

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
        if self._attachment is None:
            self._attachment = Attachment(self.transaction)
        return LmdbBase(self._attachment, generation)

    def state_sizes(self, entries_max: int) -> dict[str, tuple[int, int]]:
        """Fold name to (entries, bytes of keys and values) of its state; counting ends at `entries_max` of each."""
        found = {}
        for name, (_, _, generation) in self.header.folds.items():
            entries = size_bytes = 0
            for key, value in LmdbBase(Attachment(self.transaction), generation).scan(b""):
                entries += 1
                size_bytes += len(key) + len(value)
                if entries >= entries_max:
                    break
            found[name] = (entries, size_bytes)
        return found

    def state(self, fold: Fold) -> State:
        """The published state of a fold, to be read within this transaction."""
        return State(self.base(fold))

    def add_touched(self, behind_id: int | None, fold: str, touched: Touched) -> bool:
        """Add what the commits behind event `behind_id` wrote of a fold; False if not all of it is listed any more."""
        get, sequence = self.transaction.get, self.header.sequence
        for number in range(sequence, max(0, sequence - limits.TOUCHED_COMMITS_MAX), -1):
            record = get(touched_key(number))
            if record is None:
                return False
            # A packed `TouchedRecord`.
            after_id, folds = unpack(record)
            if fold in folds:
                entry = folds[fold]
                if entry is None:
                    return False
                touched.cells = touched.cells or entry[0]
                for table, keys in entry[1].items():
                    touched.tables.setdefault(table, set()).update(keys)
            if after_id is None or (behind_id is not None and after_id <= behind_id):
                return True
        return False

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


class SnapshotReader:
    """Transactions on the published state. Not thread-safe: the caller has a lock.

    `with reader as snapshot:` begins one, and ends it; `snapshot` is None if there is no usable published state. One at
    a time. The environment at the path is looked for now and then only: a snapshot that is no longer the published one
    still is that of its position. `with reader.begin() as snapshot:` looks first. Both raise `DamagedStoreError` where
    a page that was read is damaged: the environment is refused until it is made anew.

    Its owner closes it before a fork.

    Attributes:
        locator: finds the environment, and knows why one cannot be used.
    """

    def __init__(self, instance: Instance) -> None:
        self.locator = EnvironmentLocator(instance)
        self._environment: Environment | None = None
        self._transaction: Transaction | None = None
        self._raw_header: bytes | None = None
        self._decoder = HeaderDecoder()
        self._header: Header | None = None

    def begin(self) -> SnapshotReader:
        """The context manager, which looks at the path first: for what is published now."""
        self.locator.trusted_until = 0.0
        return self

    def __enter__(self) -> Snapshot | None:
        locator = self.locator
        is_trusted = monotonic() < locator.trusted_until
        environment = self._environment = locator.environment if is_trusted else locator.locate()
        if environment is None:
            return None
        try:
            transaction = self._transaction = environment.begin()
            raw = transaction.get(HEADER_KEY)
            if raw != self._raw_header:
                # In this order: an exception of a signal handler must not leave the header before under the new bytes.
                self._header = self._decoded(raw)
                self._raw_header = raw
        except (StoreError, lmdb.Error) as error:
            locator.fail(environment, error)
            return None
        except BaseException:
            self.end()
            raise
        header = self._header
        return None if header is None else Snapshot(transaction, header, environment.identity)

    def __exit__(self, _: object, error: BaseException | None, trace: TracebackType | None) -> None:
        environment = self.end()
        if environment is not None and isinstance(error, (DamagedStoreError, lmdb.Error)):
            raise self.locator.fail(environment, error) from error

    def end(self) -> Environment | None:
        """End the transaction, if one is open. Returns the environment that it was one of."""
        environment, transaction = self._environment, self._transaction
        self._environment = self._transaction = None
        if environment is not None and transaction is not None:
            try:
                environment.end(transaction)
            except BaseException:
                # Of a signal handler, whose traceback would keep it open. A second `abort` does nothing.
                transaction.abort()
                raise
        return environment

    def _decoded(self, raw: bytes | None) -> Header | None:
        """The header; None where it is missing or of another format."""
        try:
            header = None if raw is None else self._decoder.unpack(raw)
            failure = None
        except StoreError as error:
            header, failure = None, error
        if raw is not None:
            self.locator.failure = failure
        return header

    @contextmanager
    def begin_mapped(self) -> Iterator[tuple[MappedTransaction, FileId] | None]:
        """A transaction whose values are views of the map, and the environment's identity; None where nothing usable
        is. For the records beside the folds' state.

        Raises:
            DamagedStoreError: a page that was read is damaged.
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
