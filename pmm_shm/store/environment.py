"""One LMDB environment per process and directory, counted by reference.

LMDB forbids to open an environment twice in one process, and an environment must not cross fork: its readers close it
before, and both sides open their own. (The child alone could not: py-lmdb counts the parent's as open in it, and to
close a copy frees the parent's places in the table of readers.)

Invariant: never `writemap` (a full disk would be a SIGBUS), never `lock=False` (it allows corrupt reads).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from sys import getrefcount

import lmdb

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm.instance.access import unusable
from pmm_shm.instance.paths import DATA_FILE, LOCK_TABLE_FILE, FileId, StrPath, file_id
from pmm_shm.typed import Any, NamedTuple, Protocol, cast

_AnyTransaction = Any
"""The result of `lmdb.Environment.begin`; its type depends on `buffers`."""
_META = struct.Struct("=16xI20xI36xQ40xQ8xQ")
"""Of a meta page: the fields of `_Meta`."""
_MAGIC = 0xBEEFC0DE
_NO_PAGE = (1 << 64) - 1
_TABLE_LOCK = struct.Struct("=8xI")
"""Of the lock file, in LMDB 0.9 with glibc: the word of the table's lock, which has the thread that holds it."""
_OWNER = (1 << 30) - 1
_POLL_S = 0.01
SPARE_TRANSACTIONS = 1
"""Those that py-lmdb keeps in order to renew them: one or none, whatever the number says."""
_TAKEN = os.strerror(errno.EAGAIN)
_in_a_list = [object()]
_HELD_ONCE = getrefcount(_in_a_list[0])
"""What `getrefcount` gives for an element that nothing but its list refers to."""


class _Meta(NamedTuple):
    """A meta page of the data file."""

    magic: int
    page_bytes: int
    free_root: int
    main_root: int
    transaction_id: int


class DamagedStoreError(StoreError):
    """The files exist, but are damaged or not an LMDB environment of this version."""


class HeldTableError(StoreError):
    """Another process, which was stopped or gets no CPU time, holds the lock of the reader table."""


class SamePidError(StoreError):
    """A process of another pid namespace has this process's pid, by which LMDB tells its readers apart."""


_DAMAGE = (
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


def store_error(where: StrPath, error: lmdb.Error) -> StoreError:
    """Our error for one of LMDB's."""
    if _TAKEN in str(error):
        # A reader locks the byte of its pid in the lock file, and LMDB does not wait for that lock.
        return SamePidError(
            f"{where}: a process of another pid namespace has the same pid, {os.getpid()}, and LMDB tells readers "
            "apart by it: share the pid namespace (docker: pid: host; Kubernetes: shareProcessNamespace: true)"
        )
    if os.strerror(errno.ENODEV) in str(error):
        return StoreError(unusable(where, "shared memory"))
    return (DamagedStoreError if isinstance(error, _DAMAGE) else StoreError)(f"{where}: {error}")


class Transaction(Protocol):
    """The part of `lmdb.Transaction` that we use, with its types without `buffers`."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def put(self, key: bytes, value: bytes | memoryview, /) -> bool: ...

    def delete(self, key: bytes, /) -> bool: ...

    def cursor(self) -> KeyCursor: ...

    def abort(self) -> None: ...


class MappedTransaction(Protocol):
    """The part of `lmdb.Transaction` that we use with `buffers`."""

    def get(self, key: bytes, /) -> memoryview | None: ...

    def cursor(self) -> Any: ...


class KeyCursor(Protocol):
    """The part of `lmdb.Cursor` that we use."""

    def __enter__(self) -> KeyCursor: ...

    def __exit__(self, *_: object) -> None: ...

    def set_range(self, key: bytes, /) -> bool: ...

    def key(self) -> bytes: ...

    def delete(self) -> bool: ...

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...


class _ReaderTable:
    """The lock of the reader table. LMDB waits for it without a time limit, and py-lmdb with the interpreter's lock.

    The lock file stays open as long as the environment: to close it would drop the locks by which LMDB knows that this
    process lives.
    """

    def __init__(self, directory: StrPath) -> None:
        self._directory = directory
        self._file: int | None = None
        self._stopped: int | None = None
        # Without the file, LMDB makes one that nobody holds; a file that may not be read, it refuses.
        with suppress(FileNotFoundError, PermissionError):
            self._file = os.open(os.path.join(directory, LOCK_TABLE_FILE), os.O_RDONLY | os.O_CLOEXEC)

    def wait_until_free(self, timeout_s: float) -> None:
        """Wait until nobody holds the lock; not again for a thread that has kept it for all of an earlier wait.

        Raises:
            HeldTableError: a process holds it for all this time.
        """
        deadline_s = time.monotonic() + timeout_s
        while (owner := self._owner()) is not None:
            if owner == self._stopped or time.monotonic() >= deadline_s:
                self._stopped = owner
                raise HeldTableError(
                    f"{self._directory}: a stopped process holds the lock of the reader table (thread {owner}), or one "
                    "that gets no CPU time; let it go on, or end it"
                )
            time.sleep(_POLL_S)
        self._stopped = None

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _owner(self) -> int | None:
        """The thread that holds the lock; None if none does, or where the system does not tell."""
        if self._file is None or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
            return None
        word = os.pread(self._file, _TABLE_LOCK.size, 0)
        owner = _TABLE_LOCK.unpack(word)[0] & _OWNER if len(word) == _TABLE_LOCK.size else 0
        # After a power loss the word is as it was, and LMDB makes the lock anew.
        return owner if owner and os.path.exists(f"/proc/{owner}") else None


class Environment:
    """An open environment.

    Attributes:
        env: py-lmdb's handle.
        identity: (device, inode) of its data file: an environment that was made anew has another.

    Parameters:
        open_again: opens the same environment once more; None for the writer's.
        slots_kept_max: how many reader slots it keeps for later reads.
    """

    def __init__(
        self,
        env: lmdb.Environment,
        table: _ReaderTable,
        directory: StrPath,
        identity: FileId,
        open_again: Callable[[], tuple[lmdb.Environment, _ReaderTable]] | None = None,
        slots_kept_max: int = limits.READER_SLOTS_KEPT_MAX,
    ) -> None:
        self.env = env
        self._table = table
        self._open_again = open_again
        self.directory = directory
        self.identity = identity
        self.users = 1
        self._reads = 0
        self._slots_kept_max = slots_kept_max
        # Each has a reader slot. py-lmdb renews the transaction whose object has gone last, and gives up the slots of
        # all others: so the objects are kept here, and one of them goes right before it is renewed.
        self._ended: list[lmdb.Transaction] = []
        self._reads_lock = threading.RLock()
        self._reads_ended = threading.Condition(self._reads_lock)
        self._is_resize_waiting = False
        # The newest commit in the map when it was first compared with the file, and whether a later one has come.
        self._first_seen_id: int | None = None
        self._is_written = False

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A short read transaction; never hold it between calls.

        Raises:
            HeldTableError: another process keeps the table of readers locked.
            DamagedStoreError: a page that was read is damaged.
            StoreError: LMDB failed.
        """
        with self._reading(buffers=False) as transaction:
            yield cast(Transaction, transaction)

    @contextmanager
    def read_mapped(self) -> Iterator[MappedTransaction]:
        """As `read`; values are views of the map, without a copy, and invalid after the end of the transaction."""
        with self._reading(buffers=True) as transaction:
            yield cast(MappedTransaction, transaction)

    @contextmanager
    def _reading(self, buffers: bool) -> Iterator[_AnyTransaction]:
        transaction: _AnyTransaction = self.begin(buffers)
        try:
            yield transaction
        except lmdb.Error as error:
            raise store_error(self.directory, error) from error
        finally:
            self.end(transaction)

    def begin(self, buffers: bool = False) -> Transaction:
        """As `read`, at half its cost; the caller must call `end`, whatever happens in between.

        Raises:
            StoreError: as `read`. Errors within the transaction are LMDB's own.
        """
        transaction: Transaction | None = None
        try:
            with self._reads_lock:
                transaction = self._begin_with_lock(buffers)
                self._reads += 1
                return transaction
        except lmdb.Error as error:
            raise store_error(self.directory, error) from error
        except BaseException:
            # Of a signal handler, whose traceback would keep it open.
            if transaction is not None:
                self.end(transaction)
            raise

    def end(self, transaction: _AnyTransaction) -> None:
        """End a transaction that `begin` gave."""
        transaction.abort()
        with self._reads_lock:
            self._reads -= 1
            self._keep_slot_of(transaction)
            if self._is_resize_waiting:
                self._reads_ended.notify_all()

    def get(self, key: bytes) -> bytes | None:
        """One value, in a separate transaction, without the cost of `read`.

        Raises:
            StoreError: as `read`.
        """
        try:
            with self._reads_lock:
                transaction = self._begin_with_lock()
                try:
                    value: bytes | None = transaction.get(key)
                finally:
                    transaction.abort()
                    self._keep_slot_of(transaction)
                return value
        except lmdb.Error as error:
            raise store_error(self.directory, error) from error

    @contextmanager
    def keeping_out_reads(self, timeout_s: float) -> Iterator[bool]:
        """Keep other threads out of `get` and `begin`; False where one was within for all of `timeout_s`."""
        try:
            yield self._reads_lock.acquire(timeout=timeout_s)
        finally:
            # An exception of a signal handler may strike right behind `acquire`, where nobody knows yet that it has it.
            try:
                self._reads_lock.release()
            except RuntimeError:
                # Another thread has it.
                pass

    def resize(self, size_bytes: int = 0) -> None:
        """Resize the map; 0 takes over the size that another process has set.

        Waits until all other threads have ended their reads: resizing would invalidate their transactions.

        Raises:
            lmdb.Error, OSError, MemoryError: no room for the map.
        """
        with self._reads_lock:
            while self._reads:
                self._is_resize_waiting = True
                # A thread that has ended its read counts it down as soon as this one waits.
                has_news = self._reads_ended.wait(limits.READ_LOST_S)
                if not has_news and not self._has_open_read():
                    # An exception out of a signal handler has struck between a read's end and its count.
                    self._reads = 0
            self._is_resize_waiting = False
            # The new map ends them.
            self._ended.clear()
            self.env.set_mapsize(size_bytes)

    def _begin_with_lock(self, buffers: bool = False) -> _AnyTransaction:
        is_resized = False
        while True:
            try:
                ended = self._ended
                if ended and getrefcount(ended[-1]) == _HELD_ONCE:
                    del ended[-1]
                else:
                    self._free_slot()
                return self.env.begin(buffers=True) if buffers else self.env.begin()
            except lmdb.MapResizedError:
                if is_resized:
                    raise
                is_resized = True
                self.resize()

    def _free_slot(self) -> None:
        """See to a slot for the next transaction: a new one needs the lock of the table, which may be held for long."""
        ended = self._ended
        for number in range(len(ended) - 1, -1, -1):
            # Somebody still has the others.
            if getrefcount(ended[number]) == _HELD_ONCE:
                del ended[number]
                return
        self._table.wait_until_free(limits.STORE_MUTEX_S)

    def _keep_slot_of(self, ended: _AnyTransaction) -> None:
        if len(self._ended) < self._slots_kept_max:
            self._ended.append(ended)

    def take_slots(self) -> None:
        """Take all reader slots that are kept: as many reads at a time never need the lock of the table.

        Raises:
            HeldTableError: another process keeps the table of readers locked.
            lmdb.Error: the table is full, for example.
        """
        with self._reads_lock:
            self._table.wait_until_free(limits.STORE_MUTEX_S)
            # All are open at once, so that each needs a slot.
            taken = [self.env.begin() for _ in range(self._slots_kept_max - len(self._ended))]
            for transaction in taken:
                transaction.abort()
            self._ended += taken

    def follow_copy_up(self) -> None:
        """Map the data file anew if this map is of another file, which stands still.

        On an overlay, the file of a lower layer is copied to the upper one when the daemon opens it to write. Path and
        inode stay, and so does a map of the lower file. Compares the newest commit in the map with that in the file, as
        a new descriptor reads it. Does nothing while another thread reads: the next call will. Once a commit has come
        into the map, it is of the file that the daemon writes, and nothing is compared any more.

        Raises:
            StoreError: the file cannot be mapped any more.
        """
        if self._is_written or self._open_again is None:
            return
        try:
            if not self._reads_lock.acquire(blocking=False):
                return
            # In this order: a commit in between is in the map, unless the map is of another file.
            newest = _newest_meta(self.directory)[0]
            mapped_id = self._mapped_transaction_id()
            if newest is None or newest.transaction_id <= mapped_id:
                if self._first_seen_id is None:
                    self._first_seen_id = mapped_id
                self._is_written = mapped_id > self._first_seen_id
                return
            if not self._reads or not self._has_open_read():
                self.close()
                self._ended.clear()
                self._first_seen_id = None
                self.env, self._table = self._open_again()
        finally:
            # As in `keeping_out_reads`.
            try:
                self._reads_lock.release()
            except RuntimeError:
                pass

    def _has_open_read(self) -> bool:
        """Whether this process has a transaction open."""
        return any(pid == os.getpid() and transaction is not None for pid, transaction in self.reader_slots())

    def reader_slots(self) -> list[tuple[int, int | None]]:
        """(pid, transaction id) of every place that is taken in the table of readers; None where nobody reads now."""
        # One line each: "  1234 7f0123456789 42"; "-" where no transaction is open.
        lines = (line.split() for line in self.env.readers().splitlines())
        return [
            (int(fields[0]), int(fields[2]) if fields[2].isdigit() else None)
            for fields in lines
            if len(fields) == 3 and fields[0].isdigit()
        ]

    def _mapped_transaction_id(self) -> int:
        try:
            return int(self.env.info()["last_txnid"])
        except lmdb.Error:
            # Closed: it could not be opened again.
            return -1

    def check_readers(self) -> None:
        """Free the reader slots of processes that have died; without effect while the table of readers is locked."""
        with suppress(HeldTableError):
            # Reads go on meanwhile.
            self._table.wait_until_free(limits.STORE_MUTEX_S)
            with self._reads_lock:
                self.env.reader_check()

    def close(self) -> None:
        """Close the environment, and then its lock file. `close` of this module gives back one use."""
        self.env.close()
        self._table.close()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """The write transaction; committed at the end, aborted by an exception."""
        with self.env.begin(write=True) as transaction:
            yield cast(Transaction, transaction)


_environments: dict[FileId, Environment] = {}
# Re-entrant: a signal handler may open or close a cache while its thread opens one.
_lock = threading.RLock()
_left_to_parent: list[Environment] = []


def data_file_identity(directory: StrPath) -> FileId | None:
    """(device, inode) of the data file in the directory now; None if it is missing."""
    return file_id(os.path.join(directory, DATA_FILE))


def is_open_here(directory: StrPath) -> bool:
    """Whether this process has the environment in the directory open."""
    with _lock:
        return data_file_identity(directory) in _environments


def open_reader(directory: StrPath) -> Environment | None:
    """Open the environment in the directory for reading; None if it is missing.

    Raises:
        StoreError: it cannot be opened.
    """
    with _lock:
        identity = data_file_identity(directory)
        if identity is None:
            return None
        known = _environments.get(identity)
        if known is not None:
            known.users += 1
            return known
        opened = Environment(*_map_to_read(directory), directory, identity, lambda: _map_to_read(directory))
        if data_file_identity(directory) != identity:
            opened.close()
            return None
        return _remember(opened)


def _map_to_read(directory: StrPath) -> tuple[lmdb.Environment, _ReaderTable]:
    check_size(directory)
    return open_map(
        lambda size: lmdb.open(
            str(directory),
            map_size=size,
            readonly=True,
            create=False,
            max_readers=limits.READERS_MAX,
            max_spare_txns=SPARE_TRANSACTIONS,
        ),
        directory,
        limits.STORE_MUTEX_S,
    )


def close(environment: Environment) -> None:
    """Give back one use; the last one closes, unless another thread hangs in a read."""
    # That thread may be in a signal handler that waits for us. An environment that is left open does no harm: it stays
    # this process's, and a child of a fork does not touch it.
    with environment.keeping_out_reads(limits.STORE_MUTEX_S * 2) as is_alone:
        if is_alone:
            _give_back(environment)


def _give_back(environment: Environment) -> None:
    with _lock:
        environment.users -= 1
        if environment.users == 0 and _environments.get(environment.identity) is environment:
            del _environments[environment.identity]
            environment.close()


def open_once(directory: StrPath, opener: Callable[[], Environment]) -> Environment:
    """What `opener` opens in a directory, of which this process has nothing open.

    Raises:
        StoreError: it has.
    """
    with _lock:
        if data_file_identity(directory) in _environments:
            raise StoreError(f"{directory}: this process already has the environment open")
        return _remember(opener())


def _remember(environment: Environment) -> Environment:
    _environments[environment.identity] = environment
    return environment


def open_map(
    opener: Callable[[int], lmdb.Environment],
    directory: StrPath,
    timeout_s: float,
    size: int = limits.MAP_SIZE_BYTES,
) -> tuple[lmdb.Environment, _ReaderTable]:
    """Open an environment with the largest map that there is address space for: 1 TiB costs nothing, but `ulimit -v`
    may forbid it.
    """
    try:
        table = _ReaderTable(directory)
    except OSError as error:
        raise StoreError(f"{os.path.join(directory, LOCK_TABLE_FILE)}: {error.strerror}") from error
    try:
        while True:
            table.wait_until_free(timeout_s)
            try:
                return opener(size), table
            except lmdb.MemoryError as error:
                failure: Exception = error
            except lmdb.ReadonlyError as error:
                raise StoreError(
                    f"{directory}: {error}; readers need write permission on lock.mdb: share a group"
                ) from error
            except lmdb.Error as error:
                if "Cannot allocate memory" not in str(error):
                    raise store_error(directory, error) from error
                failure = error
            size //= 4
            if size < limits.MAP_SIZE_BYTES_MIN:
                raise StoreError(f"{directory}: no address space for the map ({failure})")
    except BaseException:
        table.close()
        raise


def check_size(directory: StrPath) -> None:
    """Refuse a data file that ends before the roots of its trees: to read behind its end would be a SIGBUS.

    Not before its last page: LMDB does not write one that was used and freed within one transaction.

    Raises:
        DamagedStoreError: the file is too short.
    """
    # No meta page: an empty file, which LMDB makes anew, or another one, which it refuses.
    meta, size_bytes = _newest_meta(directory)
    roots = () if meta is None else (meta.free_root, meta.main_root)
    if meta is not None and any(root != _NO_PAGE and (root + 1) * meta.page_bytes > size_bytes for root in roots):
        raise DamagedStoreError(f"{os.path.join(directory, DATA_FILE)}: truncated")


def _newest_meta(directory: StrPath) -> tuple[_Meta | None, int]:
    """The newer meta page of the data file, read through a descriptor of its own, and the file's size in bytes."""
    try:
        with open(os.path.join(directory, DATA_FILE), "rb", buffering=0) as file:
            first = file.read(_META.size)
            if len(first) < _META.size:
                return None, 0
            file.seek(_META.unpack(first)[1])
            pages = (first, file.read(_META.size))
            size_bytes = os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        return None, 0
    metas = [_Meta._make(_META.unpack(page)) for page in pages if len(page) == _META.size]
    newest = max(metas, key=lambda meta: meta.transaction_id)
    return newest if newest.magic == _MAGIC else None, size_bytes


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    # Kept, so that no destructor runs on the parent's environments.
    _left_to_parent.extend(_environments.values())
    _environments.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
