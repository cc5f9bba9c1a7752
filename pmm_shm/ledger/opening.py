"""Opens a ledger with SQLite, and proves that the handle is safe to use.

Checks the file at the path, that no process still uses a file which this one replaced, the schema, and that SQLite's
locks are really held. Never opens the ledger's files itself: closing any descriptor of them would drop those locks.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterable, Sequence

from pmm_shm.errors import (
    LedgerError,
    LedgerReplacedError,
    LedgerUnreadableError,
    LedgerUnwritableError,
    LockLostError,
    NotALedgerError,
)
from pmm_shm.instance.file_systems import is_mounted_alone, network_file_system
from pmm_shm.instance.paths import FileId, file_id
from pmm_shm.late import late_imports
from pmm_shm.ledger.files import (
    MOUNTED_ALONE,
    beside_old_wal,
    check_file,
    has_wal,
    ledger_file_id,
    old_users,
    why_wal_is_not_shared,
)
from pmm_shm.ledger.locks import PENDING_BYTE, WAL_DMS_BYTE, holds_lock, inode_of
from pmm_shm.ledger.rows import HASH_COLUMNS, REQUIRED_COLUMNS, not_integers
from pmm_shm.ledger.sqlite_errors import BlankLedgerError, no_index, retry_busy, translated, why_not_opened
from pmm_shm.typed import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from pmm_shm.ledger.shape import Shape

Mode = Literal["ro", "rw", "rwc", "immutable"]
_PMM2_TABLE = "pmm_writer_lease"
_IS_PMM2 = f"(type = 'table' AND lower(name) = '{_PMM2_TABLE}')"
_DEFINITION = (
    f"SELECT CAST(sql AS BLOB), {_IS_PMM2} FROM sqlite_master "
    f"WHERE (lower(tbl_name) = 'events' AND type <> 'index' AND sql NOT NULL) OR {_IS_PMM2}"
)
_OUR_COLUMNS = frozenset(REQUIRED_COLUMNS + HASH_COLUMNS)
_PLAIN_IN_URI = frozenset(b"/-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_KIND_OF_OTHER_ID = "SELECT typeof(id) FROM events WHERE typeof(id) <> 'integer' LIMIT 1"
_URI_MODES: dict[Mode, str] = {"ro": "ro", "rw": "rw", "rwc": "rwc", "immutable": "ro&immutable=1"}


class Schema(NamedTuple):
    """The table `events`, as the schema defines it.

    Attributes:
        version: SQLite's number of the whole schema; a change of any table, index or trigger changes it.
        columns: by name, with their declared types; none in a database without tables.
        definition: the statements that made the table and its triggers, for comparison.
        may_mix_ids: whether the ids could be something else than integers: the key is no rowid.
        is_of_pmm2: whether PMM 2 keeps the ledger: it has the table of its writer lease, and lets nobody else append.
    """

    version: int
    columns: dict[str, str]
    definition: frozenset[bytes]
    may_mix_ids: bool = False
    is_of_pmm2: bool = False


class LedgerFile(NamedTuple):
    """The ledger's files as they were when a handle was opened.

    Attributes:
        identity: of the main file.
        schema: as it was then, or when it was looked at again.
        is_wal: whether the journal mode is WAL.
        shm_id: identity of the `-shm` file; None outside WAL mode.
        wal_inode: inode of the `-wal` file; outside WAL mode, of one that was left there.
    """

    identity: FileId
    schema: Schema
    is_wal: bool
    shm_id: FileId | None
    wal_inode: int | None


class HeldByOldUsersError(Exception):
    """Processes use, or used, a file that this one replaced, and left their index; `pids` are those that are known."""

    def __init__(self, pids: Collection[int]) -> None:
        self.pids = sorted(pids)

    def final(self, path: str) -> LedgerError:
        """The error to raise if they have not closed it in time."""
        if not self.pids and isinstance(self.__cause__, LedgerError):
            return self.__cause__
        if has_wal(path):
            return beside_old_wal(path)
        holder = f"process {self.pids[0]}" if self.pids else "a process"
        return LedgerReplacedError(
            f"{path}: {holder} still has the file open that this one replaced; stop it, or make it reopen the ledger; "
            "the right way next time: `pmm-shm restore`"
        )


def reads_only(mode: Mode) -> bool:
    """Whether a connection of this mode never writes."""
    return mode in ("ro", "immutable")


def check_path(path: str, mode: Mode) -> None:
    """Check the file at the path and its file system, before SQLite opens it.

    Raises:
        LedgerError: in one of its kinds.
    """
    check_file(path, may_be_made=mode == "rwc")
    name = network_file_system(os.path.dirname(path))
    if name is not None:
        raise _cannot_open(
            path,
            mode,
            f"it is on {name}, a network file system, which shares neither memory nor locks as SQLite needs; "
            "stop all its users, then move it and its -wal to a local disk",
        )
    if mode == "rwc" and is_mounted_alone(path):
        # A new ledger is in WAL mode.
        raise _cannot_open(path, mode, MOUNTED_ALONE)


def open_ledger(
    path: str,
    mode: Mode,
    timeout_s: float,
    known_files: Collection[tuple[FileId, FileId | None]],
    shape: Shape | None = None,
) -> tuple[sqlite3.Connection, LedgerFile]:
    """Open the ledger and inspect it.

    Parameters:
        shape: how a foreign table is the log; None for a ledger.
        known_files: identities of this process's open files and their `-shm` files: these were inspected before.

    Raises:
        HeldByOldUsersError: a file that this one replaced is in use; its users may close it soon.
        LedgerError: in one of its kinds.
    """
    shm_before = file_id(path + "-shm")
    is_known = (file_id(path), shm_before) in known_files
    # Before opening, too: old users may end while we open, and leave us their index.
    users_before = set() if is_known else old_users(path, shm_before)
    if users_before and has_wal(path):
        # Do not even look: they use the -wal, and a lock of ours on the new file would tell them that it is ours.
        raise HeldByOldUsersError(users_before)
    uri = f"file:{_quoted(path)}?mode={_URI_MODES[mode]}"
    try:
        handle = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _cannot_open(path, mode, why_not_opened(path) or error) from error
    try:
        try:
            return handle, _inspect(handle, path, mode, timeout_s, shape)
        except (NotALedgerError, LockLostError) as error:
            is_unreadable = isinstance(error, LockLostError) or isinstance(error.__cause__, sqlite3.Error)
            if shm_before is not None and is_unreadable:
                # Perhaps read through the index of a replaced file; if not, the next attempt fails in the same way.
                raise HeldByOldUsersError(users_before) from error
            raise
        finally:
            if not is_known and shm_before is not None and shm_before == file_id(path + "-shm"):
                _refuse_old_index(handle, path, users_before | old_users(path, shm_before))
    except BaseException:
        handle.close()
        raise


def _refuse_old_index(handle: sqlite3.Connection, path: str, users: set[int]) -> None:
    """Raise where the `-shm` file belongs to users of a file that this one replaced.

    Its header gives the size of another database, and pages written by it destroy this one. A process that holds the
    lock on the `-shm` file and none on the ledger has the old file open. Our own processes close it at their next
    read; until then, no harm is done where both databases have the same size.
    """
    if users and not _index_fits(handle, path):
        raise HeldByOldUsersError(users)


def _index_fits(handle: sqlite3.Connection, path: str) -> bool:
    """Whether the wal-index that `handle` reads gives the size of the file at the path, and the `-wal` is empty."""
    try:
        pages = handle.execute("PRAGMA page_count").fetchall()[0][0]
        page_bytes = handle.execute("PRAGMA page_size").fetchall()[0][0]
        return bool(not has_wal(path) and pages * page_bytes == os.stat(path).st_size)
    except (sqlite3.Error, OSError):
        return False


def _inspect(handle: sqlite3.Connection, path: str, mode: Mode, timeout_s: float, shape: Shape | None) -> LedgerFile:
    """Read the schema in one transaction, and prove within it that SQLite's locks are held."""

    def inspect() -> LedgerFile:
        handle.execute("BEGIN")
        try:
            is_wal = handle.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            shm_id = file_id(path + "-shm") if is_wal else None
            identity = ledger_file_id(path)
            # Before the locks are checked: the first statement that reads takes them.
            version = handle.execute("PRAGMA schema_version").fetchall()[0][0]
            if mode != "immutable":
                _check_locks(path, identity, is_wal, shm_id)
                reason = why_wal_is_not_shared(path, shm_id) if is_wal else None
                if reason is not None:
                    raise _cannot_open(path, mode, reason)
            elif is_mounted_alone(path) and is_in_wal_mode(path):
                # The commits that its users have in a -wal elsewhere are missing.
                raise _cannot_open(path, mode, MOUNTED_ALONE)
            if shape is None:
                schema = read_schema(handle, path, version, may_be_blank=mode == "rwc")
            else:
                schema = shaped_schema(handle, path, version, shape, makes_view=True)
                if reads_only(mode):
                    # The other modes take the write lock, to roll back what a dead writer left, and nothing else.
                    handle.execute("PRAGMA query_only = ON")
                # Rolled back, the temporary view would be gone.
                handle.execute("COMMIT")
            return LedgerFile(identity, schema, is_wal, shm_id, inode_of(path + "-wal"))
        finally:
            if handle.in_transaction:
                handle.execute("ROLLBACK")

    try:
        return retry_busy(inspect, timeout_s, path)
    except sqlite3.Error as error:
        if "unable to open" in str(error) and os.access(path, os.R_OK) and is_mounted_alone(path):
            # There SQLite may not make the -wal that is missing.
            raise _cannot_open(path, mode, MOUNTED_ALONE) from error
        raise translated(error, path, is_reader=reads_only(mode)) from error


def is_in_wal_mode(path: str) -> bool:
    """Whether a database that this process does not have open is in WAL mode.

    Without locks SQLite refuses to read one, before it makes any other file.
    """
    uri = f"file:{_quoted(path)}?mode=ro&nolock=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)) as handle:
            handle.execute("SELECT count(*) FROM sqlite_master").fetchall()
            return False
    except sqlite3.OperationalError:
        return True
    except sqlite3.DatabaseError:
        # No database, or written meanwhile: opening it in the normal way reports which.
        return False


def _check_locks(path: str, identity: FileId, is_wal: bool, shm_id: FileId | None) -> None:
    """Raise where, within a transaction, the lock on the ledger or, in WAL mode, on the `-shm` file is missing."""
    if holds_lock(identity, PENDING_BYTE) is False:
        raise _lock_lost(path)
    if not is_wal or (shm_id is not None and holds_lock(shm_id, WAL_DMS_BYTE) is not False):
        return
    if shm_id is None or not os.access(path + "-shm", os.W_OK):
        # SQLite then reads by an index of its own in memory, which follows no writer.
        raise no_index(path)
    raise _lock_lost(path)


def _lock_lost(path: str) -> LockLostError:
    return LockLostError(
        f"{path}: SQLite's lock is not held by this process. A connection to the ledger was open across a fork, or "
        "another SQLite library closed the file: close all connections before forking, and restart this process"
    )


def read_schema(handle: sqlite3.Connection, path: str, version: int, *, may_be_blank: bool) -> Schema:
    """The schema with this number.

    Raises:
        NotALedgerError: it has no usable table `events`.
        sqlite3.Error: it cannot be read.
    """
    rows = handle.execute("PRAGMA table_info(events)").fetchall()
    columns = {_our_name(row[1]): row[2] for row in rows}
    # As bytes: a foreign program's names need not be UTF-8. Without NULs, UTF-16 has the keywords as they are, too.
    found = handle.execute(_DEFINITION).fetchall()
    definition = frozenset(sql.replace(b"\0", b"") for sql, is_pmm2 in found if not is_pmm2)
    may_mix_ids = False
    if columns:
        missing = [name for name in REQUIRED_COLUMNS if name not in columns]
        if missing:
            raise NotALedgerError(
                f"{path}: the table `events` lacks the columns {', '.join(missing)}; is a log shape missing?"
            )
        may_mix_ids = _check_ids(handle, path, [(_our_name(row[1]), row[2]) for row in rows if row[5]], definition)
    elif handle.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise NotALedgerError(f"{path}: a database without a table `events`, not a ledger; is a log shape missing?")
    elif not may_be_blank:
        raise BlankLedgerError(f"{path}: a database without tables, not a ledger")
    return Schema(version, columns, definition, may_mix_ids, any(is_pmm2 for _, is_pmm2 in found))


def shaped_schema(
    handle: sqlite3.Connection, path: str, version: int, shape: Shape, *, makes_view: bool = False
) -> Schema:
    """The schema of the view `events` that stands for a shape; `makes_view` where the handle has none yet.

    Raises:
        NotALedgerError: the shape does not fit the file.
        sqlite3.Error: it cannot be read.
    """
    with late_imports:
        from pmm_shm.ledger.shape_view import fit_view

    may_mix_ids = fit_view(handle, path, shape, makes_it=makes_view)
    columns = {row[1]: row[2] for row in handle.execute("PRAGMA table_info(events)").fetchall()}
    return Schema(version, columns, frozenset((shape.identity.encode(),)), may_mix_ids)


def _our_name(column: str) -> str:
    """The name that we use for a column: SQLite's are the same in every case."""
    return name if (name := column.lower()) in _OUR_COLUMNS else column


def _check_ids(
    handle: sqlite3.Connection, path: str, key: Sequence[tuple[str, str]], definition: Iterable[bytes]
) -> bool:
    """Raise if an id is anything but a different integer for each row. Returns whether one could be.

    A key that is no rowid keeps fractions, texts and NULLs, too. A rowid is declared as INTEGER, and not DESC, in a
    table that is not WITHOUT ROWID.
    """
    if len(key) != 1 or key[0][0] != "id" or "INT" not in key[0][1].upper():
        raise not_integers(path, "is not its integer primary key")
    if key[0][1].upper() == "INTEGER" and not any(_may_have_no_rowid(sql.lower()) for sql in definition):
        return False
    for (kind,) in handle.execute(_KIND_OF_OTHER_ID).fetchall():
        raise not_integers(path, f"holds a value of type {kind}, not an integer")
    return True


def _may_have_no_rowid(sql: bytes) -> bool:
    return b"rowid" in sql or b"desc" in sql


def _quoted(path: str) -> str:
    """A path within a URI; `urllib.parse` does the same, and costs a first read 3 ms."""
    return "".join(chr(byte) if byte in _PLAIN_IN_URI else f"%{byte:02X}" for byte in os.fsencode(path))


def _cannot_open(path: str, mode: Mode, reason: object) -> LedgerError:
    return (LedgerUnreadableError if reads_only(mode) else LedgerUnwritableError)(f"{path}: {reason}")
