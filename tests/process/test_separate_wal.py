"""A ledger whose `-wal` is not the one that others use: its file is mounted alone, or has several names.

SQLite finds `-wal` and `-shm` by the name of the ledger. Two processes with different ones lose each other's commits.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import LedgerUnreadableError
from pmm_shm.instance import file_systems
from pmm_shm_client import EventLog, connect
from tests.support import doctor, ledgers
from tests.support.daemons import environment
from tests.support.mounts import in_mount_namespace

COUNT = 3
WHY = "mounted as a single file, without the -wal and -shm beside it"

# One container: what each way in says, and what doctor finds. Prints it as JSON.
CONTAINER = """
import json, os, subprocess, sys
from pathlib import Path
from pmm_shm.ledger.backup import backup
from pmm_shm.ledger.restore import restore
from pmm_shm_client import EventLog, connect
source, target, options, asked, runs_daemon = sys.argv[1:]
if options == "read-only folder":
    folder, options = os.path.dirname(target), ""
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    Path(target).touch()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
else:
    Path(target).touch()
subprocess.run(["mount", "--bind", source, target], check=True)
if options:
    subprocess.run(["mount", "-o", "remount,bind," + options, target], check=True)
def said(action):
    try:
        return repr(action())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
def command(*words):
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]
found = {
    "log": said(lambda: EventLog(asked, create=False)),
    "append": said(lambda: EventLog(asked).append("user", "from the container")),
    "read": said(lambda: connect(asked).metrics().as_of),
    "backup": said(lambda: backup(asked, source + ".copy").events),
    "restore": said(lambda: restore(asked, source + ".restored").events),
    "daemon": command("pmm_cached", asked) if runs_daemon else None,
    "status": command("pmm_shm_cli", "status", asked)[0],
    "doctor": command("pmm_shm_cli", "doctor", asked),
}
print(json.dumps(found))
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(the folder of the host, the folder of the container)"""
    for name in ("host", "container"):
        (tmp_path / name).mkdir()
    return tmp_path / "host", tmp_path / "container"


def in_container(
    source: Path, target: Path, options: str = "", asked: Path | None = None, runs_daemon: str = ""
) -> dict[str, Any]:
    return in_mount_namespace(CONTAINER, str(source), str(target), options, str(asked or target), runs_daemon)


def refuses(found: dict[str, Any], path: Path) -> None:
    for way in ("log", "append", "read", "backup", "restore"):
        kind, _, message = found[way].partition(": ")
        assert kind == ("LedgerUnreadableError" if way != "restore" else kind), way
        assert message.startswith(f"{path}: {WHY}"), way
        assert "mount the folder" in found[way]
    assert found["status"] != 0
    code, out, _ = found["doctor"]
    assert code == 1
    assert f"{path} is mounted as a single file" in out


def test_a_single_file_mount_is_refused_while_the_host_appends(folders: tuple[Path, Path]) -> None:
    host, container = folders
    with EventLog(host / "a.db") as log:
        log.append_many([("user", f"event {number}", {}) for number in range(COUNT)])
        # The container's file lacks these commits: they are in the host's -wal.
        refuses(in_container(host / "a.db", container / "a.db"), container / "a.db")
        log.append("user", "after it")
        assert [event["id"] for event in log.read_all()] == [1, 2, 3, 4]
        assert log.verify_chain().ok


def test_under_another_name_read_only_and_through_a_link(folders: tuple[Path, Path]) -> None:
    """As Kubernetes mounts a `subPath`."""
    host, container = folders
    with EventLog(host / "a.db") as log:
        log.append("user", "event")
    (container / "link.db").symlink_to(container / "data.db")
    found = in_container(host / "a.db", container / "data.db", "ro", container / "link.db")
    refuses(found, container / "data.db")


def test_in_a_folder_where_sqlite_may_make_no_files(folders: tuple[Path, Path]) -> None:
    host, container = folders
    with EventLog(host / "a.db") as log:
        log.append("user", "event")
        refuses(in_container(host / "a.db", container / "a.db", "read-only folder"), container / "a.db")


def test_no_ledger_is_made_in_an_empty_file_that_is_mounted(folders: tuple[Path, Path]) -> None:
    host, container = folders
    (host / "a.db").touch()
    found = in_container(host / "a.db", container / "a.db")
    assert found["append"].startswith(f"LedgerUnwritableError: {container / 'a.db'}: {WHY}")
    assert (host / "a.db").stat().st_size == 0


def test_a_rollback_journal_works_there_and_doctor_warns(folders: tuple[Path, Path]) -> None:
    host, container = folders
    EventLog(host / "a.db").close()
    with sqlite3.connect(host / "a.db", isolation_level=None) as handle:
        handle.execute("PRAGMA journal_mode = DELETE")
    handle.close()
    found = in_container(host / "a.db", container / "a.db")
    assert [found[name] for name in ("append", "read", "backup", "restore")] == ["1", "1", "1", "1"]
    assert found["doctor"][0] == 0
    assert "is mounted as a single file" in found["doctor"][1]
    assert "journal_mode = WAL" not in found["doctor"][1]
    with EventLog(host / "a.db", create=False) as log:
        assert [event["content"] for event in log.read_all()] == ["from the container"]


SWITCH = """
import json, sqlite3, subprocess, sys
from pathlib import Path
from pmm_shm_client import EventLog
source, target = sys.argv[1:]
Path(target).touch()
subprocess.run(["mount", "--bind", source, target], check=True)
log = EventLog(target, create=False)
log.append("user", "with a rollback journal")
handle = sqlite3.connect(source, isolation_level=None)
handle.execute("PRAGMA journal_mode = WAL")
try:
    said = repr(log.append("user", "at once"))
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


def test_a_ledger_that_is_switched_to_wal_mode_takes_no_append_there(folders: tuple[Path, Path]) -> None:
    """SQLite follows the switch by itself: it would make a `-wal` of its own beside the mounted file."""
    host, container = folders
    EventLog(host / "a.db").close()
    ledgers.execute(host / "a.db", "PRAGMA journal_mode = DELETE")
    said = in_mount_namespace(SWITCH, str(host / "a.db"), str(container / "a.db"))
    assert str(said).startswith(f"LedgerUnwritableError: {container / 'a.db'}: {WHY}")
    with EventLog(host / "a.db", create=False) as log:
        assert [event["content"] for event in log.read_all()] == ["with a rollback journal"]


def test_the_daemon_does_not_start_on_a_single_file(folders: tuple[Path, Path]) -> None:
    host, container = folders
    with EventLog(host / "a.db") as log:
        log.append("user", "event")
    path = container / "a.db"
    code, _, error = in_container(host / "a.db", path, runs_daemon="yes")["daemon"]
    assert code == 1
    assert error.startswith(f"pmm-cached: {path}: {WHY}")
    assert error.count("\n") == 1
    assert not Path(f"{path}-cache").exists()


# Several names.

HOLD = """
import sys
from pmm_shm_client import EventLog
with EventLog(sys.argv[1], create=False) as log:
    log.append("user", "by another name")
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_ledger_that_is_open_by_another_name_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    with EventLog(one) as log:
        log.append("user", "event")
    os.link(one, two)
    with connect(one) as cache:
        # A second name alone does no harm, such as that of a copy by hard links.
        assert cache.metrics().as_of == 1
        cache.append("user", "event")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(two)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        expected = f"process {holder.pid} has it open by another name"
        with pytest.raises(LedgerUnreadableError, match=expected):
            EventLog(one, create=False)
        with pytest.raises(LedgerUnreadableError, match=expected):
            connect(one)
        assert "-samefile" in doctor.worst(doctor.examined(one), "rows").command
        # By the name that is in use, everything works.
        with connect(two) as cache:
            assert cache.metrics().as_of == 3
    finally:
        holder.communicate("", timeout=20)
    with connect(one) as cache:
        assert cache.metrics().as_of == 3


LEAVE = """
import os, sys
from pmm_shm_client import EventLog
EventLog(sys.argv[1], create=False).append("user", "only in the -wal")
os._exit(0)
"""


def test_a_wal_that_a_killed_process_left_by_another_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    EventLog(one).close()
    os.link(one, two)
    subprocess.run([sys.executable, "-c", LEAVE, str(one)], env=environment(), check=True)
    for use in (lambda: EventLog(two, create=False), lambda: connect(two)):
        with pytest.raises(LedgerUnreadableError, match=f"{one} is the same file.*use that name only"):
            use()
    with EventLog(one, create=False) as log:
        assert [event["content"] for event in log.read_all()] == ["only in the -wal"]
        assert log.append("user", "by the same name") == 2
    # Closed after an append, its commits are in the file itself.
    with EventLog(two, create=False) as log:
        assert log.append("user", "by the other name") == 3


def test_the_table_of_mounts_tells_where_the_kernel_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a bä.db"
    path.touch()
    assert not file_systems.is_mounted_alone(str(path))
    monkeypatch.setattr(file_systems, "_ATTR_MOUNT_ROOT", 0)
    assert not file_systems.is_mounted_alone(str(path))
    line = f"36 35 254:0 / {str(path).replace(' ', chr(92) + '040')} rw - ext4 /dev/vda rw\n"
    monkeypatch.setattr(file_systems, "mounts", lambda: line)
    assert file_systems.is_mounted_alone(str(path))
    assert not file_systems.is_mounted_alone(str(tmp_path))
