"""A deleted current directory, and ledgers of other users: the message names the path and the cause."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pmm_shm_client import EventLog
from tests.support import ledgers
from tests.support.command import is_one_line, run
from tests.support.daemons import environment, run_daemon, run_python
from tests.support.hazards import fill
from tests.support.mounts import in_mount_namespace
from tests.support.privileges import as_nobody

COMMANDS = (
    ("read", "a.db", "metrics"),
    ("append", "a.db", "user", "x", "--create"),
    ("status", "a.db"),
    ("doctor", "a.db"),
    ("verify", "a.db"),
    ("backup", "a.db", "b.db"),
    ("restore", "b.db", "a.db"),
    ("generate", "a.db", "--events", "10"),
    ("bench", "a.db"),
    ("chat", "a.db"),
)
IN_DELETED = """
import os, sys
os.mkdir(sys.argv[1])
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
sys.argv = sys.argv[2:]
if sys.argv[0] == "pmm-cached":
    from pmm_cached.main import main
else:
    from pmm_shm_cli.main import main
main()
"""
# Python 3.13.0 fails if it looks for modules in the current folder first, and that was deleted: CPython issue 130932.
SAFE = {"PYTHONSAFEPATH": "1"}
SAID = "a.db: no such file: the current directory was deleted\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_in_a_deleted_folder_a_relative_path_is_named_with_the_cause(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run_python(IN_DELETED, str(tmp_path / "gone"), "pmm-shm", *command)
    assert (done.returncode, done.stdout) == (1, "")
    assert is_one_line(done.stderr)
    assert done.stderr.endswith(SAID)


def test_in_a_deleted_folder_a_relative_output_is_named_with_the_cause(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fill(str(tmp_path / "a.db"), 3)
    words = ("pmm-shm", "plot", str(tmp_path / "a.db"), "-o", "x.svg")
    done = run_python(IN_DELETED, str(tmp_path / "gone"), *words, env=environment(**SAFE), forked=False)
    assert (done.returncode, done.stderr) == (1, "pmm-shm: x.svg: the current directory was deleted\n")


def test_in_a_deleted_folder_the_daemon_and_its_directory_are_named(tmp_path: Path) -> None:
    done = run_python(IN_DELETED, str(tmp_path / "gone"), "pmm-cached", "a.db")
    assert (done.returncode, done.stderr) == (1, f"pmm-cached: {SAID}")
    ledger = str(tmp_path / "a.db")
    fill(ledger, 1)
    for program, command in (("pmm-cached", ()), ("pmm-shm", ("read",))):
        words = [program, *command, ledger, *(("metrics",) if command else ())]
        done = run_python(
            IN_DELETED, str(tmp_path / "gone"), *words, env=environment(PMM_SHM_DIR="state", **SAFE), forked=False
        )
        said = f"{program}: PMM_SHM_DIR: 'state' is relative, and the current directory was deleted\n"
        assert (done.returncode, done.stderr) == (2, said)


def test_an_absolute_path_works_in_a_deleted_folder(tmp_path: Path) -> None:
    ledger = str(tmp_path / "a.db")
    fill(ledger, 3)
    words = ("pmm-shm", "read", ledger, "metrics", "--json")
    done = run_python(IN_DELETED, str(tmp_path / "gone"), *words, env=environment(**SAFE), forked=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's file")
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_another_users_private_ledger_is_named_with_owner_and_mode(open_folder: Path, journal: str) -> None:
    """Not SQLite's "unable to open database file"."""
    path = open_folder / "ledger.db"
    ledgers.build(path, 3, journal=journal)
    path.chmod(0o600)
    said = f"no permission to read {path}, which belongs to user root and has mode 0600; share a group"
    for action in ("read", "append"):
        done = as_nobody(action, path)
        assert (done.returncode, done.stderr) == (3, "")
        assert done.stdout.endswith(f": {path}: {said}\n"), done.stdout
    daemon = as_nobody("pmm-cached", path)
    assert (daemon.returncode, daemon.stderr) == (1, f"pmm-cached: {path}: {said}\n")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's file")
@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_another_users_private_file_beside_the_ledger_is_named(open_folder: Path, suffix: str) -> None:
    """A writer whose umask is narrow made it: the ledger itself may be read."""
    path = open_folder / "ledger.db"
    ledgers.build(path, 3)
    writer = ledgers.connect(path)
    writer.execute("SELECT count(*) FROM events").fetchall()
    writer.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('', 'user', '', '{}')")
    try:
        Path(f"{path}{suffix}").chmod(0o600)
        done = as_nobody("read", path)
        assert done.returncode == 3
        assert f"no permission to read {path}{suffix}, which belongs to user root and has mode 0600" in done.stdout
    finally:
        writer.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_another_users_private_folder_is_named_with_owner_and_mode(open_folder: Path) -> None:
    private = open_folder / "private"
    private.mkdir(0o700)
    path = private / "deeper" / "ledger.db"
    path.parent.mkdir()
    ledgers.build(path, 3)
    said = f"no permission to enter {private}, which belongs to user root and has mode 0700; share a group"
    for action in ("read", "append"):
        assert as_nobody(action, path).stdout == f"LedgerUnreadableError: {path}: {said}\n"
    assert as_nobody("pmm-cached", path).stderr == f"pmm-cached: {path}: {said}\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")
def test_a_read_beside_a_dead_writers_journal_of_another_user_says_who_repairs_it(open_folder: Path) -> None:
    path, copy = open_folder / "live.db", open_folder / "ledger.db"
    ledgers.build(path, 3, journal="delete")
    writer = ledgers.connect(path)
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("BEGIN IMMEDIATE")
    for _ in range(50):
        writer.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('', 'user', ?, '{}')", ("x" * 3_000,))
    for suffix in ("", "-journal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
        Path(f"{copy}{suffix}").chmod(0o644)
    writer.close()
    done = as_nobody("read", copy)
    assert done.stdout.startswith(f"LedgerUnreadableError: {copy}: a writer died within a transaction, and only")
    with EventLog(copy) as log:
        log.append("user", "repaired")
    assert as_nobody("read", copy).stdout == "4 4\n"


def test_a_status_of_a_missing_ledger_names_it(tmp_path: Path) -> None:
    assert run("status", str(tmp_path / "none.db")).err == f"pmm-shm: {tmp_path / 'none.db'}: no such file\n"
    assert run_daemon(str(tmp_path / "none.db")).stderr == f"pmm-cached: {tmp_path / 'none.db'}: no such file\n"


READ_ONLY = """
import json, os, subprocess, sys
from pmm_shm_cli.doctor import diagnose, gather
from pmm_shm_client import EventLog, connect
folder = sys.argv[1]
with EventLog(f"{folder}/a.db") as log:
    log.append("user", "hello")
for options in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
    if subprocess.run(["mount", *options]).returncode:
        sys.exit(77)
said = []
for action in (lambda: connect(f"{folder}/a.db"), lambda: EventLog(f"{folder}/a.db").append("user", "x")):
    try:
        action()
    except Exception as error:
        said.append(str(error))
findings = diagnose(gather(f"{folder}/a.db", 1))
found = [one for one in findings if one.check == "ledger-access"]
typed = " ".join(one.command for one in findings)
groups = "g+rwx" in typed or "usermod" in typed
remedies, commands = [one.remedy for one in found], [one.command for one in found]
print(json.dumps({"said": said, "groups": groups, "remedies": remedies, "typed": commands}))
"""


def test_a_wal_ledger_on_a_read_only_mount_is_not_a_matter_of_permissions(tmp_path: Path) -> None:
    """As in a container with a read-only volume."""
    found = in_mount_namespace(READ_ONLY, str(tmp_path))
    assert len(found["said"]) == 2
    for message in found["said"]:
        assert f"{tmp_path} is on a read-only file system, where a WAL ledger can be read only while" in message
        assert "share a group" not in message
    assert [one.startswith("its file system is mounted read-only here") for one in found["remedies"]] == [True]
    assert (found["typed"], found["groups"]) == ([""], False)


def test_the_doctor_of_a_path_with_a_line_break(tmp_path: Path) -> None:
    folder = tmp_path / "one\ntwo"
    folder.mkdir()
    fill(str(folder / "a.db"), 3)
    done = run("doctor", str(folder / "a.db"), "--json")
    assert (done.code, done.err) == (0, "")
    typed = [one["command"] for one in json.loads(done.out)["findings"] if "pmm-cached" in one["command"]]
    assert typed
    assert all(f"'{tmp_path}/one'$'\\n''two/a.db'" in one for one in typed)
