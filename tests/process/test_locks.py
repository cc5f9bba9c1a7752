"""The system's table of locks comes in pieces, and may lack one that is held: nobody is suspected for that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmm_shm.ledger import locks
from pmm_shm.ledger.files import old_users
from pmm_shm.ledger.locks import PENDING_BYTE, WAL_DMS_BYTE, holds_lock, pids_with_lock
from pmm_shm_client import connect
from tests.support.daemons import environment

USER = """
import sys
from pmm_shm_client import connect
with connect(sys.argv[1]) as cache:
    print(cache.append("user", "x"), flush=True)
    sys.stdin.read()
"""


@contextmanager
def user_of(ledger: str) -> Iterator[int]:
    """A process that has the ledger open, with events in its `-wal`."""
    with subprocess.Popen(
        [sys.executable, "-c", USER, ledger],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        try:
            yield process.pid
        finally:
            process.kill()


def inodes(ledger: str) -> tuple[int, int]:
    return os.stat(ledger).st_ino, os.stat(ledger + "-shm").st_ino


def test_what_the_system_says_of_another_process(ledger: str) -> None:
    with user_of(ledger) as pid:
        main, shm = inodes(ledger)
        assert holds_lock(main, PENDING_BYTE, pid) is True
        assert holds_lock(shm, WAL_DMS_BYTE, pid) is True
        assert holds_lock(main, PENDING_BYTE) is False
        assert pid in pids_with_lock(main, PENDING_BYTE)
    assert holds_lock(main, PENDING_BYTE, pid) is None


def test_a_user_whose_lock_the_table_lacks_is_no_user_of_a_replaced_file(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with user_of(ledger) as pid:
        main, shm = inodes(ledger)
        lines = [line for line in locks._table()[0] if not line.split()[5].endswith(b":%d" % main)]
        table = tmp_path / "locks"
        table.write_bytes(b"\n".join(lines))
        monkeypatch.setattr(locks, "_TABLE", str(table))
        assert pids_with_lock(shm, WAL_DMS_BYTE) == {pid}
        assert not pids_with_lock(main, PENDING_BYTE)
        assert old_users(ledger, shm) == set()
        with connect(ledger) as cache:
            assert cache.metrics().as_of == 1
