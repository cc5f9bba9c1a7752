"""One SQLite connection to a ledger, with everything that can go wrong around it.

Owns: opening (read-only or for writing), the file's identity, the epoch, fork, and the proof that SQLite's lock is
really there. Never opens the ledger's files itself: closing any descriptor of them would drop SQLite's locks.

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
import urllib.parse
import weakref
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

from pmm_shm import limits
from pmm_shm.errors import (
    LedgerError,
    LedgerReplacedError,
    LedgerUnreadableError,
    LedgerUnwritableError,
    LockLostError,
    NotALedgerError,
)
from pmm_shm.instance.file_systems import network_file_system
from pmm_shm.late import late_imports
from pmm_shm.ledger.files import (
    HeldByOldUsersError,
    beside_old_wal,
    check_file,
    file_identity,
    has_wal,
    index_fits,
    inode_of,
    old_users,
    refuse_foreign_wal,
)
from pmm_shm.ledger.locks import PENDING_BYTE, WAL_DMS_BYTE, holds_lock
from pmm_shm.ledger.sqlite_errors import BlankLedgerError, no_index, retry_busy, sleep_between, translated

Mode = Literal["ro", "rw", "rwc", "immutable"]
_READING: tuple[Mode, ...] = ("ro", "immutable")
_URI_MODES: dict[Mode, str] = {"ro": "ro", "rw": "rw", "rwc": "rwc", "immutable": "ro&immutable=1"}
REQUIRED_COLUMNS = ("id", "ts", "kind", "content", "meta")
HASH_COLUMNS = ("prev_hash", "hash")

_T = TypeVar("_T")


class Connection:
    """A lazily opened SQLite connection that survives fork, replacement and closing.

    Parameters:
        path: the ledger.
        mode: `"ro"` for everyone who reads; `"rw"` and `"rwc"` (create) belong to `EventLog` and `restore` alone;
            `"immutable"` for a backup where SQLite cannot make the files that it locks by: it takes no locks, and the
            caller sees to it that nobody has written meanwhile.
        timeout_s: how long to wait for a busy ledger.

    Use it under `lock`: `with connection.lock: handle = connection.handle()`.
    """

    def __init__(self, path: str | os.PathLike[str], mode: Mode, timeout_s: float = limits.LEDGER_TIMEOUT_S) -> None:
        # The real path: SQLite resolves symbolic links too, and names the -wal and -shm files after the target.
        self.path = os.path.realpath(os.fspath(path))
        self.mode: Mode = mode
        self.timeout_s = timeout_s
        self.lock = threading.RLock()
        self.epoch = 0
        self.is_wal = False
        self.columns: tuple[str, ...] = ()
        self._handle: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._wal_inode: int | None = None
        self._shm_inode: int | None = None
        self._stray_wal_inode: int | None = None
        self._close_hooks: list[Callable[[], None]] = []
        _open_connections.add(self)

    def on_close(self, hook: Callable[[], None]) -> None:
        """Call `hook` whenever the connection closes: what was remembered of the old epoch has to go."""
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
    def is_open(self) -> bool:
        return self._handle is not None

    @property
    def shm_inode(self) -> int | None:
        """Inode of the `-shm` file as of the open; None outside WAL mode."""
        return self._shm_inode

    @property
    def identity(self) -> tuple[int, int] | None:
        """(device, inode) of the file that is open."""
        return self._identity

    def close_if_switched(self) -> None:
        """Close where the ledger was switched to WAL mode since it was opened: what is known of its files is of before.

        SQLite itself notices. We would neither refuse a replacement beside the `-wal` nor look after the lock on the
        `-shm`.
        """
        if self.is_open and not self.is_wal:
            wal_inode = inode_of(self.path + "-wal")
            if wal_inode is not None and wal_inode != self._stray_wal_inode:
                self.close()

    def check_lock(self) -> bool:
        """Whether SQLite's locks of this connection are really held (True where the system does not tell)."""
        if self._identity is None or not self.is_wal:
            return True
        if holds_lock(self._identity[1], PENDING_BYTE) is False:
            return False
        if self._shm_inode is None:
            return True
        # Somebody may have removed the file: a lock on what nobody else uses is none.
        return (
            inode_of(self.path + "-shm") == self._shm_inode and holds_lock(self._shm_inode, WAL_DMS_BYTE) is not False
        )

    def retry(self, action: Callable[[], _T]) -> _T:
        """`retry_busy` with this connection's path and timeout; SQLite's errors become ours."""
        try:
            return retry_busy(action, self.timeout_s, self.path)
        except sqlite3.Error as error:
            raise self.translate(error) from error

    @contextlib.contextmanager
    def one_snapshot(self) -> Iterator[None]:
        """Let several statements see the ledger at one moment; for short reads, with the lock held.

        Within another one it is the other's moment.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        handle = self.handle()
        if handle.in_transaction:
            yield
            return
        self.retry(lambda: handle.execute("BEGIN"))
        try:
            yield
        except BaseException:
            # What went wrong within goes first: a damaged file cannot even end a transaction that has written nothing.
            with contextlib.suppress(sqlite3.Error):
                handle.execute("ROLLBACK")
            raise
        if handle.in_transaction:
            self.retry(lambda: handle.execute("COMMIT"))

    def translate(self, error: sqlite3.Error) -> LedgerError:
        """Our error for one of SQLite's."""
        return translated(error, self.path, is_reader=self.mode in _READING)

    def close(self) -> None:
        """Close the connection; the next use opens it anew, in a new epoch."""
        with self.lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self.epoch += 1
                handle.close()
            for hook in self._close_hooks:
                hook()

    def _forget_file(self) -> None:
        self.close()
        # Answered for: what lies in the -wal from now on may well be the new ledger's.
        self._wal_inode = None
        self._identity = None

    def _open(self) -> None:
        if self._identity is not None and os.path.exists(self.path) and file_identity(self.path) != self._identity:
            refuse_foreign_wal(self.path, self._wal_inode)
        deadline = time.monotonic() + min(self.timeout_s, limits.REPLACED_HOLDER_S)
        while True:
            try:
                self._handle = self._open_once()
                self.epoch += 1
                return
            except HeldByOldUsersError as error:
                if time.monotonic() >= deadline:
                    if not error.pids and isinstance(error.__cause__, LedgerError):
                        raise error.__cause__ from None
                    if has_wal(self.path):
                        raise beside_old_wal(self.path) from None
                    holder = f"process {error.pids[0]}" if error.pids else "a process"
                    raise LedgerReplacedError(
                        f"{self.path}: {holder} still has the file open that this one replaced; "
                        "stop it, or have it open the ledger anew; the right way next time: `pmm-shm restore`"
                    ) from None
                sleep_between(limits.REPLACED_SLEEP_MIN_S, limits.REPLACED_SLEEP_MAX_S)

    def _open_once(self) -> sqlite3.Connection:
        check_file(self.path, may_be_made=self.mode == "rwc")
        self._refuse_network()
        self._close_own_old_users()
        shm_before = inode_of(self.path + "-shm")
        is_known = self._is_known_index(shm_before)
        # Looked for now, too: they may let go while we open, and leave us their index.
        users_before = set() if is_known else old_users(self.path, shm_before)
        if users_before and has_wal(self.path):
            # Not even to look: they hold on to the -wal, and a lock of ours on the new file would tell them it is ours.
            raise HeldByOldUsersError(sorted(users_before))
        uri = f"file:{urllib.parse.quote(os.fsencode(self.path))}?mode={_URI_MODES[self.mode]}"
        try:
            handle = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._cannot_open(error) from error
        try:
            try:
                self._inspect(handle)
            except (NotALedgerError, LockLostError) as error:
                is_unreadable = isinstance(error, LockLostError) or isinstance(error.__cause__, sqlite3.Error)
                if shm_before is not None and is_unreadable:
                    # Perhaps read by the index of a file that was replaced; if not, it is so at the next look, too.
                    raise HeldByOldUsersError(sorted(users_before)) from error
                raise
            finally:
                if not is_known and shm_before is not None and shm_before == inode_of(self.path + "-shm"):
                    self._refuse_old_index(handle, users_before | old_users(self.path, shm_before))
        except BaseException:
            handle.close()
            raise
        return handle

    def _close_own_old_users(self) -> None:
        """Close this process's connections to a file that no longer stands at the path.

        Without waiting for one that is in use: who uses it may wait for us.
        """
        if not os.path.exists(self.path):
            return
        identity = file_identity(self.path)
        for one in _connections():
            if one.path != self.path or not one.is_open or one.identity == identity:
                continue
            if not one.lock.acquire(blocking=False):
                raise HeldByOldUsersError([os.getpid()])
            try:
                if one.identity != identity:
                    refuse_foreign_wal(one.path, one._wal_inode)
                    one._forget_file()
            finally:
                one.lock.release()

    def _is_known_index(self, shm_inode: int | None) -> bool:
        """Whether this process has the ledger open with this `-shm` file already, and so has looked at it before."""
        inode = inode_of(self.path)
        return any(
            one.is_open and one._shm_inode == shm_inode and one._identity is not None and one._identity[1] == inode
            for one in _connections()
        )

    def _refuse_old_index(self, handle: sqlite3.Connection, users: set[int]) -> None:
        """Raise where the `-shm` file belongs to users of a file that this one replaced.

        Its header tells the size of another database, and what is written by it destroys this one. Who holds the lock
        on the `-shm` file and none on the ledger itself has the old file open. Our own processes let go of it with
        their next read; until then, no harm is done where both databases have the same size.
        """
        if users and not index_fits(handle, self.path):
            raise HeldByOldUsersError(sorted(users))

    def _refuse_network(self) -> None:
        name = network_file_system(os.path.dirname(self.path))
        if name is not None:
            raise self._cannot_open(
                f"it lies on {name}, a network file system, which shares neither memory nor locks as SQLite needs; "
                "move the ledger to a local disk"
            )

    def _cannot_open(self, reason: object) -> LedgerError:
        if self.mode in _READING:
            return LedgerUnreadableError(f"{self.path}: {reason}")
        return LedgerUnwritableError(f"{self.path}: {reason}")

    def _inspect(self, handle: sqlite3.Connection) -> None:
        """Read the schema in one transaction, and prove within it that the lock is really there."""

        def look() -> None:
            handle.execute("BEGIN")
            try:
                columns = [row[1] for row in handle.execute("PRAGMA table_info(events)").fetchall()]
                tables = handle.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                identity = file_identity(self.path)
                self.is_wal = handle.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
                self._shm_inode = inode_of(self.path + "-shm") if self.is_wal else None
                wal_inode = inode_of(self.path + "-wal")
                self._wal_inode, self._stray_wal_inode = (wal_inode, None) if self.is_wal else (None, wal_inode)
                if self.mode != "immutable":
                    if holds_lock(identity[1], PENDING_BYTE) is False:
                        raise LockLostError(_lock_lost(self.path))
                    self._check_index_lock()
            finally:
                if handle.in_transaction:
                    handle.execute("ROLLBACK")
            self._identity = identity
            self.columns = self._usable_columns(columns, tables)

        self.retry(look)

    def _check_index_lock(self) -> None:
        """Raise where, in WAL mode, the lock on the `-shm` file is not there."""
        if not self.is_wal or (self._shm_inode is not None and holds_lock(self._shm_inode, WAL_DMS_BYTE) is not False):
            return
        if self._shm_inode is None or not os.access(self.path + "-shm", os.W_OK):
            # SQLite reads on with an index of its own in memory, which nobody keeps in step with the writers.
            raise no_index(self.path)
        raise LockLostError(_lock_lost(self.path))

    def _usable_columns(self, columns: list[str], tables: int) -> tuple[str, ...]:
        if not tables:
            if self.mode == "rwc":
                return ()
            raise BlankLedgerError(f"{self.path}: a database without tables, not a ledger")
        if not columns:
            raise NotALedgerError(f"{self.path}: a database without a table `events`, not a ledger")
        missing = [name for name in REQUIRED_COLUMNS if name not in columns]
        if missing:
            raise NotALedgerError(f"{self.path}: the table `events` lacks the columns {', '.join(missing)}")
        return tuple(columns)


def shm_files_in_use() -> set[tuple[int, int]]:
    """(device, inode) of the `-shm` files that this process's open connections use."""
    return {
        (one._identity[0], one._shm_inode)
        for one in _connections()
        if one.is_open and one._identity is not None and one._shm_inode is not None
    }


def close_replaced(path: str) -> bool:
    """Close this process's connections to a file that no longer stands at `path`, all before any is opened anew.

    A connection to the new file shares the `-shm` with those to the old one: closing these later would drop its locks.
    The caller holds no connection's lock. Returns whether there were any.

    Raises:
        LedgerNotFoundError: nothing stands there.
        LedgerReplacedError: the new file lies beside the predecessor's non-empty `-wal`; nothing was closed.
    """
    identity = file_identity(path)
    connections = [one for one in _connections() if one.path == path and one.identity is not None]
    stale = [one for one in connections if one.identity != identity]
    if not stale:
        return False
    with contextlib.ExitStack() as locks:
        for one in sorted(stale, key=id):
            locks.enter_context(one.lock)
        stale = [one for one in stale if one.identity != identity]
        for one in stale:
            refuse_foreign_wal(one.path, one._wal_inode)
        for one in stale:
            one._forget_file()
    return bool(stale)


def _lock_lost(path: str) -> str:
    return (
        f"{path}: SQLite's lock is not held by this process. A connection to the ledger was open across a fork, or "
        "another SQLite library closed the file: close all connections before forking, and start this process anew"
    )


# Fork: SQLite's book of locks survives fork while the locks do not, so every connection is closed before and opened
# anew, on first use, on both sides.
_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _connections() -> list[Connection]:
    """All connections of this process, while other threads make new ones."""
    while True:
        try:
            return list(_open_connections)
        except RuntimeError:
            continue


_closed_for_fork: list[Connection] = []


def _before_fork() -> None:
    for connection in sorted(_connections(), key=id):
        connection.lock.acquire()
        _closed_for_fork.append(connection)
        connection.close()
    # The last one: who holds it waits for no connection.
    late_imports.acquire()


def _after_fork() -> None:
    late_imports.release()
    while _closed_for_fork:
        _closed_for_fork.pop().lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
