"""Open a ledger to read it, after rolling back what a dead writer left."""

from __future__ import annotations

import os

from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.sqlite_errors import HotJournalError


def open_recovered(ledger: str | os.PathLike[str], timeout_s: float) -> Connection:
    """A read connection; what a writer that died within a transaction had written is rolled back first.

    Raises:
        LedgerError: there is no usable ledger.
    """
    connection = Connection(ledger, "ro", timeout_s)
    try:
        _open(connection)
    except HotJournalError:
        # A read connection may not roll it back; the connection of an append does.
        with EventLog(ledger, timeout=timeout_s, create=False) as log:
            log.recover()
        _open(connection)
    return connection


def _open(connection: Connection) -> None:
    with connection.lock:
        handle = connection.handle()
        connection.retry(lambda: handle.execute("SELECT 1 FROM events LIMIT 1").fetchall())
