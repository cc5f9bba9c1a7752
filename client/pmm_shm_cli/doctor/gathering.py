"""Gathers the facts of one ledger: its files, its rows, its instance directory, its daemon.

Writes nothing and makes no file. Reading leaves marks only in an existing `-shm` file, SQLite's index. The ledger's
files are opened only by SQLite. A ledger in WAL mode that nobody has open is read without the index that SQLite would
make beside it. LMDB's files are read without LMDB.
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import os
import socket
import sqlite3
import stat
from typing import Any

from pmm_shm import limits
from pmm_shm.errors import DaemonError, InstanceDirectoryError, LedgerBusyError, LedgerError, PmmShmError
from pmm_shm.folds.registry import chosen_folds
from pmm_shm.instance import access, file_systems, making
from pmm_shm.instance.paths import LOCK_TABLE_FILE, Instance
from pmm_shm.instance.run_reports import read_reports
from pmm_shm.ledger.chain import HASHED_ROW_SQL, HashedRow, detect_formula, verify_range
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.files import bytes_of, has_wal, ledger_file_id
from pmm_shm.ledger.forks import find_forks
from pmm_shm.ledger.locks import PENDING_BYTE, pids_with_lock
from pmm_shm.ledger.new_file import SIDE_FILES
from pmm_shm.ledger.obstacles import NEEDS_LEASE, needs_function
from pmm_shm.ledger.opening import Mode, is_in_wal_mode
from pmm_shm.ledger.replicas import read_record as read_replica_record
from pmm_shm.ledger.rows import HASH_COLUMNS
from pmm_shm.store import boot, inspection
from pmm_shm.wire.endpoints import check_listening, read_record
from pmm_shm.words.file import checked_record
from pmm_shm_cli.doctor.facts import (
    Disk,
    File,
    FileKind,
    LedgerFacts,
    ReaderSlot,
    RowFacts,
    ShapeFold,
    Socket,
    SocketState,
    StateFacts,
    StoreFacts,
    WordFacts,
)
from pmm_shm_cli.doctor.processes import process_state
from pmm_shm_terminal.state import ask, pid_here

NEWEST_ROWS = 1_000
"""Number of rows checked, the newest; `verify` checks all."""

FORK_ROWS = 100_000
"""Number of ids among which forks are looked for, the newest; a tenth of a second."""

_MEMORY = frozenset({0x01021994, 0x858458F6})
_UNLOCKED_READS_MAX = 3
_KINDS: dict[int, FileKind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFSOCK: "socket",
}


def look_at_ledger(path: str, timeout_s: float) -> LedgerFacts:
    """The facts of the ledger at a real path. Raises nothing, whatever it meets."""
    directory = os.path.dirname(path)
    sides = {suffix: found for suffix in SIDE_FILES if (found := file_at(path + suffix)) is not None}
    kept = [file_at(name) for name in sorted(glob.glob(glob.escape(path) + ".*"))]
    leftovers = tuple(one for one in kept if one is not None and _is_leftover(path, one.path))
    rows, problem, left_unread = None, None, False
    try:
        rows = _read(path, timeout_s)
        left_unread = rows is None
    except LedgerError as error:
        problem = error
    file = file_at(path)
    return LedgerFacts(
        # Modes and names are those of a ledger: they say nothing about a directory or a device.
        file if file is not None and file.kind == "file" else None,
        file_at(directory),
        disk_of(directory),
        sides,
        rows,
        problem,
        left_unread,
        leftovers,
        file_systems.is_mounted_alone(path),
    )


def _is_leftover(ledger: str, path: str) -> bool:
    """Whether a restore made the file: a safety copy, or a temporary one of a restore that was killed."""
    suffix = path.removeprefix(ledger)
    return suffix.startswith((".before-restore-", ".restoring")) and not suffix.endswith(SIDE_FILES)


def look_at_state(instance: Instance, timeout_s: float) -> StateFacts:
    """The facts of the instance directory and of the daemon. Raises nothing, whatever it meets."""
    directory, distrust, is_closed = file_at(str(instance.directory)), None, False
    entries: tuple[File, ...] = ()
    if directory is not None:
        try:
            access.check_directory(instance)
        except InstanceDirectoryError as error:
            distrust = str(error)
        except OSError:
            is_closed = True
        try:
            found = (file_at(str(one)) for one in sorted(instance.directory.iterdir()))
            entries = tuple(one for one in found if one is not None)
        except NotADirectoryError:
            pass
        except OSError:
            is_closed = True
    try:
        allowed_mode = None if directory is None else making.allowed_mode(instance)
    except OSError:
        allowed_mode = None
    recorded, pid = _record(instance)
    sockets = dict.fromkeys([*(one.path for one in entries if one.kind == "socket"), *recorded])
    daemon, failure = ask(instance, timeout_s)
    store, store_problem = None, None
    if directory is not None and not distrust and not is_closed:
        try:
            store = _look_at_store(instance)
        except PermissionError:
            store_problem = f"no permission for {instance.directory / LOCK_TABLE_FILE}"
    return StateFacts(
        instance,
        disk_of(file_systems.existing_part(instance.directory)),
        directory,
        allowed_mode,
        distrust,
        is_closed,
        entries,
        boot.openings(instance.boot_file),
        boot.is_trusted(instance.boot_file),
        recorded,
        tuple(Socket(path, _socket_state(path)) for path in sockets),
        daemon,
        failure,
        pid,
        None if pid is None else process_state(pid),
        store,
        store_problem,
        read_reports(instance),
        None if directory is None or distrust or is_closed else _look_at_words(instance),
    )


def file_at(path: str) -> File | None:
    """The file at a path; None if it does not exist or may not be seen."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
    return File(
        path,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_size,
        os.access(path, os.R_OK),
        os.access(path, os.W_OK),
        status.st_nlink,
    )


def disk_of(directory: str) -> Disk:
    """The file system of a directory, and its free room."""
    try:
        numbers = os.statvfs(directory)
    except OSError:
        return Disk(directory)
    return Disk(
        directory,
        file_systems.network_file_system(directory),
        file_systems.type_number(directory) in _MEMORY,
        numbers.f_bavail * numbers.f_frsize,
        # Some file systems do not count files, and report 0 of 0.
        numbers.f_favail if numbers.f_files else None,
        file_systems.plain_file_system(directory),
        bool(numbers.f_flag & os.ST_RDONLY),
    )


# The rows.


def _read(path: str, timeout_s: float) -> RowFacts | None:
    """The facts that SQLite reads; None if it would have to make an index first.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    for _ in range(_UNLOCKED_READS_MAX):
        mode = _mode_for(path)
        if mode is None:
            return None
        before = _status(path)
        connection = Connection(path, mode, timeout_s)
        try:
            rows = _rows(connection)
        except LedgerError:
            if mode == "ro" or _status(path) == before:
                raise
            continue
        finally:
            connection.close()
        # Read without locks: a concurrent write may have been read in part.
        if mode == "ro" or _status(path) == before:
            return rows
    raise LedgerBusyError(f"{path}: written again and again while it was read")


def _mode_for(path: str) -> Mode | None:
    # SQLite would wait for a writer of a named pipe.
    if not os.path.isfile(path) or any(os.path.exists(path + suffix) for suffix in ("-shm", "-journal")):
        return "ro"
    if has_wal(path):
        return None
    # A program that keeps the ledger for itself has its index in memory.
    is_in_use = pids_with_lock(ledger_file_id(path), PENDING_BYTE) - {os.getpid()}
    return "immutable" if not is_in_use and is_in_wal_mode(path) else "ro"


def _status(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    sides = (int(os.path.exists(path + "-shm")), bytes_of(path + "-wal"), bytes_of(path + "-journal"))
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, *sides


def _rows(connection: Connection) -> RowFacts:
    with connection.lock:
        handle = connection.handle()

        def one(sql: str, *parameters: Any) -> Any:
            rows = connection.retry(lambda: handle.execute(sql, parameters).fetchall())
            return rows[0][0] if rows else None

        # SQLite reports none for an immutable file.
        journal = "wal" if connection.mode == "immutable" else str(one("PRAGMA journal_mode"))
        head_id = one("SELECT max(id) FROM events") or 0
        first_id = one("SELECT min(id) FROM (SELECT id FROM events ORDER BY id DESC LIMIT ?)", NEWEST_ROWS) or 0
        has_hashes = set(HASH_COLUMNS) <= set(connection.columns)
        newest_ts = one("SELECT CAST(ts AS BLOB) FROM events ORDER BY id DESC LIMIT 1")
        newest: list[HashedRow] = []
        if has_hashes:
            sql = f"{HASHED_ROW_SQL} WHERE id >= ? AND id <= ? ORDER BY id LIMIT ?"
            fetched = fetch_batch(connection, sql, (first_id, head_id), NEWEST_ROWS).rows
            newest = [row for row in map(HashedRow._make, fetched) if row.hash is not None]
        record = connection.retry(lambda: read_replica_record(handle, connection.path))
        of_pmm2 = connection.schema.is_of_pmm2
        if connection.shape is not None:
            refusal = None
        else:
            refusal = NEEDS_LEASE if of_pmm2 else connection.retry(lambda: needs_function(handle))
    checked = one("SELECT count(*) FROM events WHERE id >= ?", first_id)
    formula = next((found for row in newest[:1] + newest[-1:] if (found := detect_formula(row))), None)
    links = verify_range(connection, first_id, head_id) if newest else None
    bad, fork = (links.first_bad_id, links.fork) if links is not None else (None, None)
    forks = find_forks(connection, head_id - FORK_ROWS + 1)
    is_continuable = not newest or detect_formula(newest[-1]) is not None
    ts = newest_ts.decode("utf-8", "replace") if isinstance(newest_ts, bytes) else newest_ts
    facts = (journal, head_id, has_hashes, formula, len(newest), checked, bad, ts)
    replica_of = None if record is None else record.name
    rows = RowFacts(*facts, fork, forks, is_continuable, refusal, of_pmm2, replica_of)
    shape = connection.shape
    if shape is None:
        return rows
    sql = "SELECT DISTINCT CAST(kind AS BLOB) FROM events WHERE id >= ?"
    with connection.lock:
        kinds = connection.retry(lambda: handle.execute(sql, (first_id,)).fetchall())
    newest_kinds = frozenset(kind.decode("utf-8", "replace") for (kind,) in kinds if isinstance(kind, bytes))
    return dataclasses.replace(
        rows, shape=str(shape), shape_folds=tuple(map(_shape_fold, shape.folds)), newest_kinds=newest_kinds
    )


def _shape_fold(name: str) -> ShapeFold:
    try:
        (fold,) = chosen_folds([name])
    except PmmShmError as error:
        return ShapeFold(name, problem=str(error))
    return ShapeFold(fold.name, None if fold.kinds is None else frozenset(fold.kinds))


# The instance directory.


def _record(instance: Instance) -> tuple[tuple[str, ...], int | None]:
    try:
        endpoints = read_record(instance)
    except (OSError, DaemonError):
        return (), None
    pid = pid_here(endpoints.commands, endpoints.pid)
    return (endpoints.commands, endpoints.admin, endpoints.announcements), pid


def _socket_state(path: str) -> SocketState:
    try:
        try:
            check_listening(path)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
            # The socket for the workers' reports is one for datagrams.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(path)
    except PermissionError:
        return "forbidden"
    except ConnectionRefusedError:
        return "silent"
    except OSError:
        return "absent"
    return "listening"


def _look_at_words(instance: Instance) -> WordFacts | None:
    file = file_at(str(instance.words_file))
    if file is None:
        return None
    try:
        record = checked_record(instance.words_file)
    except (sqlite3.Error, ValueError, TypeError) as error:
        return WordFacts(0, f"{file.path}: {error}")
    if record is None:
        return WordFacts(0, f"{file.path}: of another version")
    return WordFacts(record.position.as_of, None)


def _look_at_store(instance: Instance) -> StoreFacts | None:
    sizes, table = inspection.sizes_of(instance.directory), inspection.reader_table(instance.directory)
    if sizes is None or table is None:
        return None
    readers = tuple(
        ReaderSlot(pid, process_state(pid), None if txn is None else max(0, sizes.transaction_id - txn))
        for pid, txn in table.slots
    )
    return StoreFacts(sizes.map_bytes, sizes.used_bytes, table.slots_max, readers)


assert NEWEST_ROWS <= limits.TAIL_ROWS_MAX
