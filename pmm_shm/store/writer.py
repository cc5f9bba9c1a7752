"""Writing the store: the daemon's alone.

Invariant: position, anchor, lineage and state change in one transaction.
Invariant: a rebuild writes into a generation that no header names, until one commit flips to it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import lmdb

from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.errors import StoreError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State, Touched
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.tail import START, Position
from pmm_shm.store import boot, environment, making
from pmm_shm.store.environment import (
    DamagedStoreError,
    Environment,
    HeldTableError,
    SamePidError,
    Transaction,
)
from pmm_shm.store.layout import (
    GENERATION_PREFIX,
    HEADER_KEY,
    OTHER_HISTORY_KEY,
    SEAL_PREFIX,
    TOUCHED_PREFIX,
    Header,
    Seal,
    TouchedRecord,
    generation_key,
    seal_key,
    state_prefix,
    touched_key,
)
from pmm_shm.store.snapshot import Snapshot

_T = TypeVar("_T")


class StoreFullError(StoreError):
    """The disk is full: nothing of the commit was written, and the last snapshot stays."""


class StoreWriter:
    """The one writer of an instance's environment. Thread-safe.

    Raises:
        StoreError: the environment cannot be opened, even after it was made anew.
    """

    def __init__(self, instance: Instance, map_size_bytes: int = limits.MAP_SIZE_BYTES) -> None:
        self._instance = instance
        self._map_size_bytes = map_size_bytes
        self._lock = threading.RLock()
        self._environment = self._open_or_remake()
        self.map_growths = 0
        self._is_damaged = False
        boot.mark(instance.boot_file, is_clean=False)

    @property
    def header(self) -> Header:
        """The published header."""
        return self._header

    @property
    def environment(self) -> Environment:
        return self._environment

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The published state, within a read transaction.

        Raises:
            StoreError: as `Environment.read`.
        """
        with self._environment.read() as transaction:
            header = Header.unpack(transaction.get(HEADER_KEY) or b"")
            snapshot = Snapshot(transaction, header, self._environment.identity)
            try:
                yield snapshot
            finally:
                snapshot.detach()

    def publish(self, position: Position, states: Mapping[Fold, State], head_mark: bytes = b"") -> None:
        """Write the overlays and move the position, in one commit.

        A fold that is not in `states` is no longer published: its state is not at the new position.

        Parameters:
            head_mark: the shared mark before the position was found to be the head of the log.
        """
        folds = {fold.name: self._header.folds[fold.name] for fold in states}
        used = {fold.name: state for fold, state in states.items() if state.is_used}
        touched = {name: written for name, state in used.items() if (written := state.take_touched())}
        record = TouchedRecord(
            self._header.position.event_id, {name: _bounded(written) for name, written in touched.items()}
        )
        changes = [(folds[name][2], list(state.changes())) for name, state in used.items()]

        def write(transaction: Transaction) -> Header:
            for generation, pairs in changes:
                _put_state(transaction, generation, pairs)
            header = self._next(position=position, folds=folds, head_mark=head_mark)
            transaction.put(touched_key(header.sequence), record.pack())
            transaction.delete(touched_key(max(0, header.sequence - limits.TOUCHED_COMMITS_MAX)))
            return header

        self._commit("publish", write)

    def begin_generation(self, fold: Fold) -> int:
        """A new, empty generation for a rebuild of `fold`."""

        def write(transaction: Transaction) -> Header:
            generation = self._header.next_generation
            transaction.put(generation_key(generation), fold.name.encode())
            return self._next(next_generation=generation + 1)

        with self._lock:
            self._commit("begin_generation", write)
            return self._header.next_generation - 1

    def flush_shadow(self, shadows: Mapping[int, State]) -> None:
        """Write the overlays of a rebuild into its generations; nobody reads them yet."""
        changes = [(generation, list(state.changes())) for generation, state in shadows.items()]

        def write(transaction: Transaction) -> None:
            for generation, pairs in changes:
                _put_state(transaction, generation, pairs)

        self._commit("flush_shadow", write)

    def flip(self, position: Position, generations: Mapping[Fold, int], keep: Iterable[Fold]) -> None:
        """Publish rebuilt generations at `position`, beside the folds in `keep`, which are there already."""
        folds = {fold.name: self._header.folds[fold.name] for fold in keep}
        for fold, generation in generations.items():
            _, version, parameters = fold.identity()
            folds[fold.name] = (version, parameters, generation)

        def write(transaction: Transaction) -> Header:
            header = self._next(position=position, folds=folds, is_void=False)
            # The list of touched keys does not reach across a flip.
            _delete_prefix(transaction, TOUCHED_PREFIX, limits.TOUCHED_COMMITS_MAX * 2)
            return header

        self._commit("flip", write)

    def void(self) -> None:
        """Declare the published state void."""
        if not self._header.is_void:
            self._commit("void", lambda _: self._next(is_void=True))

    def put_seals(self, seals: Mapping[int, Seal]) -> None:
        """Keep seals by the numbers of their blocks; that of a block that has grown takes the place of the old one."""

        def write(transaction: Transaction) -> None:
            for block, seal in seals.items():
                transaction.put(seal_key(block), seal.pack())

        self._commit("put_seals", write)

    def end_history(self) -> None:
        """Forget all seals, and mark the event tables as void: they were of another history."""

        def write(transaction: Transaction) -> int:
            transaction.put(OTHER_HISTORY_KEY, b"")
            return _delete_prefix(transaction, SEAL_PREFIX, limits.DELETE_KEYS_PER_TXN)

        while self._commit_result("end_history", write):
            pass

    def delete_old_generation(self) -> bool:
        """Delete some keys of one generation that is not live; not while a rebuild runs. Returns whether there may be
        more.
        """
        keep = {entry[2] for entry in self._header.folds.values()}

        def write(transaction: Transaction) -> bool:
            generation = _first_generation_outside(transaction, keep)
            if generation is None:
                return False
            if not _delete_prefix(transaction, state_prefix(generation), limits.DELETE_KEYS_PER_TXN):
                transaction.delete(generation_key(generation))
            return True

        return self._commit_result("delete_old_generation", write)

    def transact(self, name: str, write: Callable[[Transaction], _T]) -> _T:
        """Run `write` in a separate commit and return its result; for records beside the folds' state.

        Parameters:
            name: of the commit, in `crash_points.COMMITS`.

        `write` runs again if the map had to grow. An exception undoes the commit.

        Raises:
            StoreError: it cannot be written; nothing was.
        """
        return self._commit_result(name, write)

    def readers(self) -> list[tuple[int, int]]:
        """(pid, transaction id) of every other process that reads now; dead ones are cleared first."""
        return [(pid, transaction) for pid, transaction in self.reader_slots() if transaction is not None]

    def reader_slots(self) -> list[tuple[int, int | None]]:
        """(pid, transaction id) of every place in the table of readers that another process has, None where it does not
        read now; dead ones are cleared first.
        """
        self.clear_dead_readers()
        return [slot for slot in self._environment.reader_slots() if slot[0] != os.getpid()]

    def used_bytes(self) -> int:
        """The size of all records, without free pages."""
        stat = self._environment.env.stat()
        return int(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]))

    def clear_dead_readers(self) -> None:
        """Free the pages that processes pin which died while they read."""
        self._environment.check_readers()

    def last_transaction_id(self) -> int:
        """The id of the newest commit."""
        return int(self._environment.env.info()["last_txnid"])

    def mark_damaged(self) -> None:
        """Note that the environment is damaged: nobody opens it again, and the next start makes it anew."""
        self._is_damaged = True
        boot.mark_damaged(self._instance.boot_file)

    def close(self, *, is_clean: bool = True) -> None:
        """Sync, and leave the mark of a clean shutdown unless told otherwise or the environment is damaged."""
        with self._lock:
            if not self._is_damaged:
                self._environment.env.sync(True)
                crash_point("close.synced")
            environment.close(self._environment)
        crash_point("close.closed")
        if is_clean and not self._is_damaged:
            boot.mark(self._instance.boot_file, is_clean=True)
            crash_point("close.marked")

    def _next(
        self,
        position: Position | None = None,
        folds: dict[str, tuple[int, bytes, int]] | None = None,
        is_void: bool | None = None,
        next_generation: int | None = None,
        head_mark: bytes = b"",
    ) -> Header:
        before = self._header
        return Header(
            before.uuid,
            before.position if position is None else position,
            before.sequence + 1,
            before.folds if folds is None else folds,
            before.is_void if is_void is None else is_void,
            before.next_generation if next_generation is None else next_generation,
            before.head_mark if position is None else head_mark,
        )

    def _commit(self, name: str, write: Callable[[Transaction], Header | None]) -> None:
        def run(transaction: Transaction) -> Header | None:
            header = write(transaction)
            if header is not None:
                transaction.put(HEADER_KEY, header.pack())
            return header

        with self._lock:
            header = self._commit_result(name, run)
            if header is not None:
                self._header = header

    def _commit_result(self, name: str, write: Callable[[Transaction], _T]) -> _T:
        """One write transaction; a full map grows, with no transaction open, and the write runs again."""
        with self._lock:
            while True:
                try:
                    with self._environment.write() as transaction:
                        result = write(transaction)
                        crash_point(name + ".inside")
                    crash_point(name + ".committed")
                    return result
                except lmdb.MapFullError:
                    self._grow()
                except (lmdb.DiskError, OSError) as error:
                    raise self._full(error) from error
                except lmdb.Error as error:
                    if "No space left" in str(error) or making.disk_hint(self._instance.directory):
                        raise self._full(error) from error
                    raise environment.store_error(self._instance.directory, error) from error

    def _full(self, error: Exception) -> StoreFullError:
        hint = "" if "No space left" in str(error) else making.disk_hint(self._instance.directory)
        return StoreFullError(f"{self._instance.directory}: {error}{hint}")

    def _grow(self) -> None:
        crash_point("grow.before")
        size = self._environment.env.info()["map_size"] * 2
        try:
            self._environment.resize(size)
        except (lmdb.Error, OSError, MemoryError) as error:
            raise StoreFullError(f"{self._instance.directory}: the map cannot grow to {size} bytes: {error}") from error
        crash_point("grow.grown")
        # Without them, each is taken when it is needed.
        with contextlib.suppress(lmdb.Error, StoreError):
            self._environment.take_slots()
        self.map_growths += 1

    def _open_or_remake(self) -> Environment:
        directory = self._instance.directory
        if not boot.is_openable(self._instance.boot_file):
            _remove_environment(directory)
        # A damaged file may crash this process: starts must not try it again and again.
        if self._instance.data_file.exists():
            boot.mark_opening(self._instance.boot_file)
        try:
            opened = self._try_open()
        except (HeldTableError, SamePidError):
            # Not the file's fault: the next starts must not make it anew.
            boot.mark(self._instance.boot_file, is_clean=False)
            raise
        if opened is None:
            _remove_environment(directory)
            opened = self._try_open()
        if opened is None:
            raise StoreError(
                f"{directory}: the environment cannot be read even after it was made anew{making.disk_hint(directory)}"
            )
        return opened

    def _try_open(self) -> Environment | None:
        """The environment with a readable header; None where it is damaged or of another format."""
        try:
            opened = making.open_writer(self._instance.directory, self._map_size_bytes)
        except DamagedStoreError:
            return None
        try:
            with opened.write() as transaction:
                data = transaction.get(HEADER_KEY)
                if data is None:
                    self._header = Header(os.urandom(16), START, 0, {}, False, 1)
                    transaction.put(HEADER_KEY, self._header.pack())
                else:
                    self._header = Header.unpack(data)
                crash_point("open.inside")
            crash_point("open.committed")
        except (StoreError, lmdb.Error):
            environment.close(opened)
            return None
        return opened


def _remove_environment(directory: Path) -> None:
    """Unlink, never truncate: readers that have the old file mapped go on reading it."""
    crash_point("remove_environment.before")
    _unlink(directory / "data.mdb")
    crash_point("remove_environment.data_removed")
    _unlink(directory / "lock.mdb")
    crash_point("remove_environment.removed")


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


def _bounded(touched: Touched) -> Touched | None:
    return touched if touched.key_count() <= limits.TOUCHED_KEYS_MAX else None


def _put_state(transaction: Transaction, generation: int, pairs: Iterable[tuple[bytes, bytes | None]]) -> None:
    prefix = state_prefix(generation)
    for key, value in pairs:
        if value is None:
            transaction.delete(prefix + key)
        else:
            transaction.put(prefix + key, value)


def _delete_prefix(transaction: Transaction, prefix: bytes, keys_max: int) -> int:
    """Delete up to `keys_max` keys; returns how many there were."""
    count = 0
    with transaction.cursor() as cursor:
        while count < keys_max and cursor.set_range(prefix) and cursor.key().startswith(prefix):
            cursor.delete()
            count += 1
    return count


def _first_generation_outside(transaction: Transaction, keep: set[int]) -> int | None:
    with transaction.cursor() as cursor:
        if cursor.set_range(GENERATION_PREFIX):
            for key, _ in cursor:
                if not key.startswith(GENERATION_PREFIX):
                    break
                generation = int.from_bytes(key[1:], "big")
                if generation not in keep:
                    return generation
    return None
