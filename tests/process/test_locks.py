"""The system's table of locks comes in pieces, and may lack one that is held: nobody is suspected for that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmm_shm.instance.paths import FileId
from pmm_shm.ledger import locks
from pmm_shm.ledger.files import ledger_file_id, old_users
from pmm_shm.ledger.locks import PENDING_BYTE, WAL_DMS_BYTE, holds_lock, pids_with_lock
from pmm_shm_client import connect
from tests.support.daemons import environment
from tests.support.mounts import in_mount_namespace

USER = """
import sys
from pmm_shm_client import connect
with connect(sys.argv[1]) as cache:
    print(cache.append("user", "x"), flush=True)
    sys.stdin.read()
"""

# Two file systems, as two volumes of a container are; the function makes the files of each in the same order.
TWO_DEVICES = """
import json, os, subprocess, sys, time
from pathlib import Path
from pmm_shm import limits
from pmm_shm.errors import LockLostError
from pmm_shm.ledger.locks import inode_of
from pmm_shm_client import EventLog, connect
from tests.process.test_locks import user_of
folder = Path(sys.argv[1])


def mounted(name):
    (folder / name).mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder / name]).returncode:
        sys.exit(77)
    return str(folder / name / "pmm.db")


def inodes(ledger):
    return [inode_of(ledger + suffix) for suffix in ("", "-shm")]


one, two = mounted("one"), mounted("two")
"""
LOST_ON_ONE = (
    TWO_DEVICES
    + """
found = []
with EventLog(one) as kept, EventLog(two) as lost, connect(two) as cache:
    kept.append("user"), lost.append("user"), cache.metrics()
    assert inodes(one) == inodes(two)
    # Other code of this process reads the files.
    for suffix in ("", "-shm"):
        os.close(os.open(two + suffix, os.O_RDONLY))
    time.sleep(limits.TRUST_PERIOD_S * 1.1)
    for call in (lambda: lost.append("user"), cache.metrics):
        try:
            found.append(repr(call()))
        except LockLostError:
            found.append("lost")
    assert kept.append("user") == 2
print(json.dumps(found))
"""
)
USED_ON_BOTH = (
    TWO_DEVICES
    + """
EventLog(one).close()
for ledger in (one, two):
    Path(ledger).with_name("other").touch()
EventLog(two).close()
with user_of(one), user_of(two):
    assert inodes(one)[1] == inodes(two)[1] and inodes(one)[0] != inodes(two)[0]
    with EventLog(two) as log:
        print(json.dumps(log.append("user")))
"""
)


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


def files(ledger: str) -> tuple[FileId, FileId]:
    return ledger_file_id(ledger), ledger_file_id(ledger + "-shm")


def test_what_the_system_says_of_another_process(ledger: str) -> None:
    with user_of(ledger) as pid:
        main, shm = files(ledger)
        assert holds_lock(main, PENDING_BYTE, pid) is True
        assert holds_lock(shm, WAL_DMS_BYTE, pid) is True
        assert holds_lock(main, PENDING_BYTE) is False
        assert pid in pids_with_lock(main, PENDING_BYTE)
    assert holds_lock(main, PENDING_BYTE, pid) is None


def test_a_user_whose_lock_the_table_lacks_is_no_user_of_a_replaced_file(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with user_of(ledger) as pid:
        main, shm = files(ledger)
        lines = [line for line in locks._table()[0] if not line.split()[5].endswith(b":%d" % main[1])]
        table = tmp_path / "locks"
        table.write_bytes(b"\n".join(lines))
        monkeypatch.setattr(locks, "_TABLE", str(table))
        assert pids_with_lock(shm, WAL_DMS_BYTE) == {pid}
        assert not pids_with_lock(main, PENDING_BYTE)
        assert old_users(ledger, shm) == set()
        with connect(ledger) as cache:
            assert cache.metrics().as_of == 1


def test_a_lock_on_the_same_inode_of_another_device_is_another_lock(tmp_path: Path) -> None:
    assert in_mount_namespace(LOST_ON_ONE, str(tmp_path)) == ["lost", "lost"]


def test_a_user_of_the_same_inode_of_another_device_is_no_user_of_a_replaced_file(tmp_path: Path) -> None:
    assert in_mount_namespace(USED_ON_BOTH, str(tmp_path)) == 2
