"""PMM 2 is another program: nothing of it is replaced, its ledgers are read, and only its lease holder appends."""

from __future__ import annotations

import os
import sqlite3

from pmm_shm import limits
from pmm_shm.errors import PmmShmError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.obstacles import NEEDS_LEASE


def is_ledger_of_pmm2(path: str | os.PathLike[str], timeout_s: float = limits.LEDGER_TIMEOUT_S) -> bool:
    """Whether PMM 2 keeps the ledger at a path; False where there is none, or none that can be read. Never raises."""
    try:
        connection = Connection(path, "ro", timeout_s)
        try:
            with connection.lock:
                connection.handle()
                return connection.schema.is_of_pmm2
        finally:
            connection.close()
    except (PmmShmError, sqlite3.Error, OSError, ValueError):
        return False


def notice(path: str | os.PathLike[str]) -> str:
    """One line about a ledger of PMM 2, without the name of the program that says it."""
    return f"{os.fspath(path)}: {NEEDS_LEASE}"
