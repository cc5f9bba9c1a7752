"""What makes a read after an append cheap gives what a fresh look would give."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START, TailReader
from tests.support import ledgers

_TIMEOUT_S = 30.0


# The few rows behind a position.


def test_few_rows_wait_for_a_busy_ledger(tmp_path: Path) -> None:
    path = str(ledgers.build(tmp_path / "ledger.db", 8, journal="delete"))
    connection = Connection(path, "ro", _TIMEOUT_S)
    reader = TailReader(connection, None)
    with connection.lock:
        position = reader.read(START).position
        blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        blocker.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.1, blocker.execute, ["COMMIT"]).start()
        assert reader.read(position).position == position
    connection.close()
    blocker.close()
