"""The schema of the ledger, and its creation."""

from __future__ import annotations

import sqlite3
import time

from pmm_shm.crash_points import crash_point
from pmm_shm.errors import NotALedgerError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.files import refuse_orphaned_wal
from pmm_shm.ledger.sqlite_errors import retry_busy

TABLE_SQL = """CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ts TEXT NOT NULL,
    kind TEXT NOT NULL,
    content TEXT NOT NULL,
    meta TEXT NOT NULL,
    prev_hash TEXT,
    hash TEXT
)"""

TS_INDEX = "idx_events_ts_id"
INDEXES_SQL = (
    "CREATE INDEX IF NOT EXISTS idx_events_kind_id ON events (kind, id)",
    f"CREATE INDEX IF NOT EXISTS {TS_INDEX} ON events (ts, id)",
    "CREATE INDEX IF NOT EXISTS idx_metrics_lookup ON events (id DESC) WHERE kind = 'metrics_update'",
)


def create_indexes(handle: sqlite3.Connection) -> None:
    """Create the three indexes if they are missing, within the caller's transaction."""
    for statement in INDEXES_SQL:
        handle.execute(statement)


def create_ledger(path: str, timeout_s: float) -> None:
    """Create a ledger (WAL, all columns and indexes) where the file is missing or is a database without tables.

    Several processes may do so at once; an existing ledger is not changed.

    Raises:
        NotALedgerError: a database with other tables; it is not changed.
        LedgerUnwritableError: the file cannot be created.
        LedgerBusyError: another process held it for `timeout_s` seconds.
        LedgerReplacedError: the file is missing, and its `-wal` holds commits.
    """
    deadline = time.monotonic() + timeout_s
    connection = Connection(path, "rwc", timeout_s)
    try:
        with connection.lock:
            refuse_orphaned_wal(connection.path)
            handle = connection.handle()
            if connection.columns:
                return

            def transact() -> None:
                _create(handle, connection.path)

            try:
                retry_busy(transact, deadline - time.monotonic(), connection.path)
            except sqlite3.Error as error:
                raise connection.translate(error) from error
    finally:
        connection.close()


def _create(handle: sqlite3.Connection, path: str) -> None:
    # Another process may just have created other tables: then the journal mode stays.
    crash_point("create_ledger.opened")
    if not _tables(handle):
        handle.execute("PRAGMA journal_mode = WAL").fetchall()
        handle.execute("PRAGMA synchronous = NORMAL")
        crash_point("create_ledger.journal")
    handle.execute("BEGIN IMMEDIATE")
    try:
        tables = _tables(handle)
        if tables and "events" not in tables:
            raise NotALedgerError(f"{path}: a database without a table `events`, not a ledger; is a log shape missing?")
        if not tables:
            handle.execute(TABLE_SQL)
            create_indexes(handle)
        crash_point("create_ledger.inside")
        handle.execute("COMMIT")
        crash_point("create_ledger.committed")
    except BaseException:
        if handle.in_transaction:
            handle.execute("ROLLBACK")
        raise


def _tables(handle: sqlite3.Connection) -> set[str]:
    return {row[0] for row in handle.execute("SELECT name FROM sqlite_master").fetchall()}
