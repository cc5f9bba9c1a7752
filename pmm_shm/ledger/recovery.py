"""Open a ledger to read it, after rolling back what a dead writer left."""

from __future__ import annotations

import contextlib
import os

from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.sqlite_errors import HotJournalError
from pmm_shm.ledger.tail import head_of


def open_recovered(ledger: str | os.PathLike[str], timeout_s: float) -> Connection:
    """A read connection; what a writer that died within a transaction had written is rolled back first.

    Raises:
        LedgerError: there is no usable ledger.
    """
    connection = Connection(ledger, "ro", timeout_s)
    try:
        try:
            head_of(connection)
        except HotJournalError:
            # A read connection may not roll it back; the connection of an append does.
            with EventLog(ledger, timeout=timeout_s, create=False) as log:
                log.recover()
            head_of(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def ledger_head(ledger: str | os.PathLike[str], timeout_s: float) -> int:
    """The newest event's id, by a connection for this question alone."""
    with contextlib.closing(open_recovered(ledger, timeout_s)) as connection:
        return head_of(connection)
