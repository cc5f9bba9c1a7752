"""The SQLite connections of this process: opened on first use, closed before a fork or when the ledger is replaced.

Owns their epochs and locks, and the check that SQLite's lock is still held; `opening` makes the handles.

Invariant: whatever was remembered about the ledger dies with the epoch; every open begins a new one.
Invariant: a thread that holds one connection's lock never waits for another's. Only the fork hook and `close_replaced`
take several, in the same order, and hold none when they begin.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from pmm_shm import limits
from pmm_shm.errors import ConfigError, LedgerError, LedgerUnwritableError, LockLostError
from pmm_shm.instance.paths import SHAPE_FILE, FileId, Instance, file_id, real_path
from pmm_shm.late import late_imports
from pmm_shm.ledger.files import ledger_file_id, not_reached, refuse_foreign_wal
from pmm_shm.ledger.locks import PENDING_BYTE, WAL_DMS_BYTE, holds_lock, inode_of
from pmm_shm.ledger.opening import (
    HeldByOldUsersError,
    LedgerFile,
    Mode,
    Schema,
    check_path,
    open_ledger,
    read_schema,
    reads_only,
    shaped_schema,
)
from pmm_shm.ledger.sqlite_errors import is_busy, retry_busy, sleep_between, translated
from pmm_shm.typed import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from pmm_shm.ledger.shape import Shape

Durability = Literal["default", "full"]
DURABILITIES: tuple[Durability, ...] = ("default", "full")
"""What an acknowledged append survives, see `EventLog`."""

_T = TypeVar("_T")
_NO_SCHEMA = Schema(0, {}, frozenset())
_locks_trusted_until_s: dict[tuple[FileId, FileId | None], float] = {}
"""A ledger and its `-shm` that this process has open, to the time until which its locks count as held."""


def check_durability(durability: object) -> None:
    """Raise `ConfigError` where this is none of `DURABILITIES`."""
    if durability not in DURABILITIES:
        raise ConfigError(f"durability: expected one of {', '.join(DURABILITIES)}, got {durability!r:.80}")


class Connection:
    """A lazily opened SQLite connection that survives fork, replacement and closing.

    Parameters:
        path: the ledger.
        mode: `"ro"` for readers; `"rw"` and `"rwc"` (create) are for `EventLog` and `restore` alone; `"immutable"` for
            a backup where SQLite cannot make the files that it locks by: it takes no locks, and the caller checks that
            nobody has written meanwhile.
        timeout_s: how long to wait for a busy ledger.
        shape: how a table of another program is the log; None for the recorded one, if there is one.

    Use it under `lock`: `with connection.lock: handle = connection.handle()`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: Mode,
        timeout_s: float = limits.LEDGER_TIMEOUT_S,
        shape: Shape | None = None,
    ) -> None:
        # The real path: SQLite resolves symbolic links too, and names the -wal and -shm files after the target.
        self.path = real_path(path)
        self.mode: Mode = mode
        self.timeout_s = timeout_s
        self._shape = shape
        self._knows_shape = shape is not None
        self.lock = threading.RLock()
        self.epoch = 0
        self.replacements = 0
        """How often another file was found at the path."""
        self._handle: sqlite3.Connection | None = None
        self.file: LedgerFile | None = None
        """The files as of the open, with the schema as of the last look; another object after either of the two.

        It outlives the handle: a later file at the path is compared with it. None before, and when a replacement was
        noticed.
        """
        self.next_lock_check_s = 0.0
        """The monotonic time from which `require_lock` asks again."""
        self._close_hooks: list[Callable[[], None]] = []
        with _making:
            _open_connections.add(self)

    def __del__(self) -> None:
        # The handle and its cache of statements refer to each other. Without this it would stay open until they are
        # collected: over a fork, too, for which nobody finds it any more.
        if getattr(self, "_handle", None) is not None:
            self.close()

    def on_close(self, hook: Callable[[], None]) -> None:
        """Call `hook` whenever the connection closes, to forget what was remembered of the old epoch."""
        self._close_hooks.append(hook)

    def handle(self) -> sqlite3.Connection:
        """The open connection; opens it where it is closed.

        Raises:
            LedgerError: in one of its kinds, when there is no usable ledger at the path.
        """
        if self._handle is None:
            self._open()
        assert self._handle is not None
        return self._handle

    @property
    def shape(self) -> Shape | None:
        """The shape of a table of another program; None for a ledger. It stays the same.

        Raises:
            ConfigError: the recorded shape cannot be read.
        """
        if not self._knows_shape:
            self._shape, self._knows_shape = recorded_shape(self.path), True
        return self._shape

    def refuse_foreign(self) -> None:
        """Raise `LedgerUnwritableError` where the log is a table of another program."""
        if self.shape is not None:
            raise LedgerUnwritableError(
                f"{self.path}: a log of another program, read by the shape {self.shape.name!r}: only that program "
                "writes it; nothing was written"
            )

    @property
    def is_open(self) -> bool:
        return self._handle is not None

    @property
    def identity(self) -> FileId | None:
        """That of the file that was opened last; None before, and when a replacement was noticed."""
        return file.identity if (file := self.file) else None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table `events`."""
        return tuple(self.schema.columns)

    @property
    def schema(self) -> Schema:
        """The table `events`; another object whenever the schema was looked at again."""
        return file.schema if (file := self.file) else _NO_SCHEMA

    @property
    def is_wal(self) -> bool:
        """Whether the ledger was in WAL mode at the open."""
        return file.is_wal if (file := self.file) else False

    @property
    def shm_id(self) -> FileId | None:
        """Identity of the `-shm` file as of the open; None outside WAL mode."""
        return file.shm_id if (file := self.file) else None

    def is_switched(self) -> bool:
        """Whether the ledger was switched to WAL mode since the open.

        SQLite itself notices. We would neither refuse a replacement beside the `-wal`, nor a file that is mounted
        alone, nor check the lock on the `-shm`.
        """
        file = self.file
        if self._handle is None or file is None or file.is_wal:
            return False
        return (wal_inode := inode_of(self.path + "-wal")) is not None and wal_inode != file.wal_inode

    def close_if_switched(self) -> None:
        """Close where `is_switched`: the next use opens the ledger anew, with all checks."""
        if self.is_switched():
            self.close()

    def follow_schema(self) -> bool:
        """Look at the schema again where it has changed. The caller holds `lock`.

        Returns:
            Whether columns, constraints or triggers of `events` have changed, or PMM 2 has taken the ledger over: not
            after a `VACUUM`, for example, or the creation of an index or of another table.

        Raises:
            LedgerError: the ledger cannot be read, or has no usable table `events` any more.
        """
        handle, file = self._handle, self.file
        if handle is None or file is None:
            return False
        version = self.retry(lambda: handle.execute("PRAGMA schema_version").fetchall()[0][0])
        if version == file.schema.version:
            return False
        schema = self.retry(lambda: self._read_schema(handle, version))
        before = file.schema
        has_changed = (schema.definition, schema.is_of_pmm2) != (before.definition, before.is_of_pmm2)
        self.file = file._replace(schema=schema if has_changed else file.schema._replace(version=version))
        return has_changed

    def _read_schema(self, handle: sqlite3.Connection, version: int) -> Schema:
        if self._shape is None:
            return read_schema(handle, self.path, version, may_be_blank=self.mode == "rwc")
        return shaped_schema(handle, self.path, version, self._shape)

    def lock_trusted_until(self, left_s: float = 0.0) -> float | None:
        """The monotonic time until which SQLite's locks of this connection count as held; None if they are not held.

        Locks belong to the process: what was proved for one connection within `limits.TRUST_PERIOD_S` counts for all.
        It is proved again where less than `left_s` is left. Where the system does not tell, they count as held.
        """
        file, now_s = self.file, time.monotonic()
        if file is None or not file.is_wal:
            return now_s + limits.TRUST_PERIOD_S
        files = file.identity, file.shm_id
        trusted_until_s = _locks_trusted_until_s.get(files, 0.0)
        if now_s < trusted_until_s - left_s:
            return trusted_until_s
        if not self._is_lock_held(*files):
            return None
        trusted_until_s = _locks_trusted_until_s[files] = now_s + limits.TRUST_PERIOD_S
        return trusted_until_s

    def _is_lock_held(self, identity: FileId, shm_id: FileId | None) -> bool:
        if holds_lock(identity, PENDING_BYTE) is False:
            return False
        if shm_id is None:
            return True
        # The file may have been removed: a lock on a deleted file excludes nobody.
        return file_id(self.path + "-shm") == shm_id and holds_lock(shm_id, WAL_DMS_BYTE) is not False

    def require_lock(self) -> None:
        """Check the lock, at least every `limits.TRUST_PERIOD_S`. The caller holds `lock`.

        Ahead of time, when a quarter of that is left: so an exact read right behind an append finds it proved.

        Raises:
            LockLostError: SQLite's lock is gone.
        """
        now_s = time.monotonic()
        if now_s < self.next_lock_check_s or self._handle is None:
            return
        self.close_if_switched()
        left_s = limits.TRUST_PERIOD_S / 4
        trusted_until_s = self.lock_trusted_until(left_s)
        if trusted_until_s is None:
            raise LockLostError(
                f"{self.path}: SQLite's lock is no longer held by this process (the host program kept a connection "
                "open across a fork, or uses another SQLite library): nothing was written; restart this process"
            )
        self.follow_schema()
        self.next_lock_check_s = trusted_until_s - left_s

    def follow_replacement(self) -> None:
        """Where another file is at the ledger's path, close this process's connections to the old one. One `stat`.

        The caller holds no connection's lock.

        Raises:
            LedgerNotFoundError: there is no file.
            LedgerReplacedError: the new file is beside the predecessor's non-empty `-wal`.
        """
        if self.file is not None and not self.is_at_path():
            close_replaced(self.path)

    def is_at_path(self) -> bool:
        """Whether the file that was opened last is still at the path, by one `stat`.

        False before the first open, and when a replacement was noticed.

        Raises:
            LedgerNotFoundError: there is no file.
        """
        # Taken once: another thread may forget it meanwhile.
        file = self.file
        if file is None:
            return False
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise not_reached(self.path, error) from None
        return (status.st_dev, status.st_ino) == file.identity

    def retry(self, action: Callable[[], _T]) -> _T:
        """The result of `action`, which is repeated while the ledger is busy; SQLite's errors become ours."""
        try:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
            return retry_busy(action, self.timeout_s, self.path)
        except sqlite3.Error as error:
            raise self.translate(error) from error

    @contextlib.contextmanager
    def one_snapshot(self) -> Iterator[None]:
        """Let several statements see the ledger at one moment; for short reads, with the lock held.

        Within another `one_snapshot`, the outer one's moment counts.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        handle = self.handle()
        if handle.in_transaction:
            yield
            return
        try:
            # In here, because an exception of a signal handler may strike right behind it. One that stays open would
            # show later reads this moment.
            self.retry(lambda: handle.execute("BEGIN"))
            yield
            if handle.in_transaction:
                self.retry(lambda: handle.execute("COMMIT"))
        except BaseException:
            self.end_snapshot()
            raise

    def end_snapshot(self) -> None:
        """Roll back the transaction of a read that failed, wherever that was; with the lock held."""
        handle = self._handle
        if handle is not None and handle.in_transaction:
            # The first error counts: a damaged file cannot even end a transaction that has written nothing.
            with contextlib.suppress(sqlite3.Error):
                handle.execute("ROLLBACK")

    def translate(self, error: sqlite3.Error) -> LedgerError:
        """Our error for one of SQLite's."""
        return translated(error, self.path, is_reader=reads_only(self.mode))

    def close(self) -> None:
        """Close the connection; the next use reopens it, in a new epoch."""
        with self.lock:
            # First: an exception of a signal handler may strike in between, and nothing that was remembered may outlive
            # the handle.
            for hook in self._close_hooks:
                hook()
            handle, self._handle = self._handle, None
            if handle is not None:
                self.epoch += 1
                try:
                    handle.close()
                finally:
                    if self.file is not None:
                        # Another file can have the same inodes later.
                        _locks_trusted_until_s.pop((self.file.identity, self.file.shm_id), None)

    def _open(self) -> None:
        if self.file is not None and os.path.exists(self.path) and not self.is_at_path():
            self._refuse_foreign_wal()
        deadline_s = time.monotonic() + min(self.timeout_s, limits.REPLACED_HOLDER_S)
        while True:
            try:
                check_path(self.path, self.mode)
                _close_old_users(self.path)
                known_files = {(file.identity, file.shm_id) for file in _open_files()}
                self._handle, file = open_ledger(self.path, self.mode, self.timeout_s, known_files, self.shape)
                self.replacements += self.file is not None and self.file.identity != file.identity
                self.file = file
                self.epoch += 1
                return
            except HeldByOldUsersError as error:
                if time.monotonic() >= deadline_s:
                    raise error.final(self.path) from None
                sleep_between(limits.REPLACED_SLEEP_S_MIN, limits.REPLACED_SLEEP_S_MAX)

    def _refuse_foreign_wal(self) -> None:
        """Raise where the file that replaced this connection's is beside its non-empty `-wal`."""
        if self.file is not None and self.file.is_wal:
            refuse_foreign_wal(self.path, self.file.wal_inode)

    def _forget_file(self) -> None:
        """Close, after `_refuse_foreign_wal`: from now on, the `-wal` at the path may be the new ledger's."""
        self.close()
        self.replacements += 1
        self.file = None


_shapes_in_use: dict[str, Shape] = {}


def use_shape(path: str, shape: Shape) -> None:
    """Let all connections of this process read a log by its shape, whatever becomes of the record."""
    _shapes_in_use[real_path(path)] = shape


def recorded_shape(path: str | os.PathLike[str]) -> Shape | None:
    """The shape that is recorded for a log of another program; None for a ledger.

    Raises:
        ConfigError: the record cannot be read.
    """
    instance = Instance.of(path)
    if instance.ledger in _shapes_in_use:
        return _shapes_in_use[instance.ledger]
    if not os.path.exists(instance.file(SHAPE_FILE)):
        return None
    with late_imports:
        from pmm_shm.ledger.shape_record import read_shape

    return read_shape(instance)


def shm_files_in_use() -> set[FileId]:
    """The identities of the `-shm` files that this process's open connections use."""
    return {file.shm_id for file in _open_files() if file.shm_id is not None}


def close_idle(path: str) -> None:
    """Close this process's connections to a ledger that no thread uses now; the next use reopens them."""
    for one in _connections():
        if one.path == path and one.is_open:
            try:
                if one.lock.acquire(blocking=False):
                    one.close()
            finally:
                # An exception of a signal handler may strike right behind `acquire`, where nobody knows that it has it.
                try:
                    one.lock.release()
                except RuntimeError:
                    # Another thread has it.
                    pass


def close_replaced(path: str) -> None:
    """Close this process's connections to a file that is no longer at `path`, all before any is reopened.

    A connection to the new file shares the `-shm` with those to the old one: closing these later would drop its locks.
    The caller holds no connection's lock.

    Raises:
        LedgerNotFoundError: there is no file.
        LedgerReplacedError: the new file is beside the predecessor's non-empty `-wal`; nothing was closed.
    """
    identity = ledger_file_id(path)
    connections = [one for one in _connections() if one.path == path and one.identity is not None]
    stale = [one for one in connections if one.identity != identity]
    with contextlib.ExitStack() as locks:
        for one in sorted(stale, key=id):
            locks.enter_context(one.lock)
        stale = [one for one in stale if one.identity != identity]
        for one in stale:
            one._refuse_foreign_wal()
        for one in stale:
            one._forget_file()


def _close_old_users(path: str) -> None:
    """As `close_replaced`, for a caller that holds a connection's lock.

    It does not wait for a connection that is in use: the thread that uses it may wait for us.

    Raises:
        HeldByOldUsersError: one is in use.
    """
    if not os.path.exists(path):
        return
    identity = ledger_file_id(path)
    for one in _connections():
        if one.path != path or not one.is_open or one.identity == identity:
            continue
        try:
            if not one.lock.acquire(blocking=False):
                raise HeldByOldUsersError([os.getpid()])
            if one.identity != identity:
                one._refuse_foreign_wal()
                one._forget_file()
        finally:
            # As in `close_idle`.
            try:
                one.lock.release()
            except RuntimeError:
                pass


def _open_files() -> list[LedgerFile]:
    """What this process's connections have open."""
    return [file for one in _connections() if one.is_open and (file := one.file) is not None]


# Fork: SQLite's table of locks survives fork while the locks do not, so every connection is closed before, and
# reopened on first use on both sides.
_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _connections() -> list[Connection]:
    """All connections of this process, while other threads make new ones."""
    while True:
        try:
            return list(_open_connections)
        except RuntimeError:
            continue


# Held while a connection is added, and during a fork: one that the fork has not listed could be locked, and opened.
_making = threading.RLock()


class _Lock(Protocol):
    """What a fork waits for: a lock, or the late imports."""

    def acquire(self, *args: Any, **kwargs: Any) -> object: ...

    def release(self) -> object: ...


class LocksOfFork(threading.local):
    """The locks that a thread holds for a fork that it has begun.

    An exception of a signal handler may strike anywhere: what was about to be locked counts, too.
    """

    def __init__(self) -> None:
        self._taken: list[_Lock] = []
        self.is_complete = False
        """Whether nothing is left to lock."""

    def take(self, lock: _Lock, *arguments: Any) -> None:
        self._taken.append(lock)
        lock.acquire(*arguments)

    def give_back(self) -> None:
        self.is_complete = False
        while self._taken:
            try:
                self._taken[-1].release()
            except RuntimeError:
                # It was not taken after all, or was given back already.
                pass
            del self._taken[-1]


_fork = LocksOfFork()


def _before_fork() -> None:
    while not _fork.is_complete:
        # From the beginning: all locks are taken in one order.
        _fork.give_back()
        of_logging = late_imports.let_go_of_logging()
        closed = sorted(_connections(), key=id)
        for connection in closed:
            _fork.take(connection.lock)
            connection.close()
        # After the connections: its holder waits for none, but may make one.
        _fork.take(late_imports, of_logging)
        _fork.take(_making)
        _fork.is_complete = all(connection in closed for connection in _connections())


def _after_fork() -> None:
    _fork.give_back()


# Each of them twice: Python forks in spite of an exception in such a hook, and a signal handler's can strike anywhere
# in one, even before its first line. Then the other does what is left. After a hook that was not interrupted, it does
# nothing.
for _ in range(2):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
late_imports.follow_fork_hooks()
