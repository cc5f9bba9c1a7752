"""`pmm-shm doctor`: every finding is provoked, for real where a test can; none is without a remedy, nothing is written.

Versions, file systems and the like are facts that no test can bring about: there the judgement alone is tried.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.files import ledger_file_id
from pmm_shm.ledger.locks import holds_lock
from pmm_shm.store import boot, inspection
from pmm_shm.store.environment import close, open_reader
from pmm_shm.wire import protocol
from pmm_shm_cli.doctor import Finding, diagnose, gather
from pmm_shm_cli.doctor.facts import ReaderSlot, StoreFacts
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import forking, ledgers
from tests.support.daemons import DEADLINE_S, environment, is_alive, run_python, until
from tests.support.doctor import TIMEOUT_S, by_check, examined, ill, worst
from tests.support.readers import table_of_readers_held

OTHER_UID = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user can be made by root only")


def run_doctor(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path = Path()
) -> subprocess.CompletedProcess[str]:
    return forking.run("pmm_shm_cli.main:main", ["pmm-shm", "doctor", *arguments], env or environment(), cwd)


def remedied(finding: Finding) -> None:
    """Do what the finding says, as it says it."""
    programs = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", finding.command], env={**environment(), "PATH": programs}, capture_output=True, timeout=30
    )
    assert ran.returncode == 0, (finding.command, ran.stderr)


def tree(folder: Path) -> dict[str, Any]:
    """Everything in a folder: what SQLite's own index holds aside, which every reader marks."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_size)
        if not path.name.endswith("-shm"):
            found[str(path)] += (status.st_mtime_ns, path.is_file() and ledgers.read_bytes(path))
    return found


@pytest.fixture
def path(folder: Path) -> str:
    """A private ledger, in WAL mode, that nobody has open."""
    made = ledgers.build(folder / "l.db", 20)
    os.chmod(made, 0o600)
    return made


# All is well.


def test_a_good_ledger_with_a_daemon_has_nothing_wrong(path: str, start_daemon: StartDaemon) -> None:
    start_daemon(path)
    found = examined(path)
    not_well = {check for check, all_of_it in found.items() if any(one.severity != "ok" for one in all_of_it)}
    # Which SQLite this Python has is not for the test to choose.
    assert not_well - {"sqlite-version", "file-system"} == set()
    assert {"daemon", "versions", "map-size", "reader-slots", "hash-chain", "ledger-mode"} <= set(found)
    assert "healthy" in found["daemon"][0].found
    assert found["hash-chain"][0].found == "formula full (id and time included); the newest 20 of 20 rows hold"


def test_the_journal_mode_of_a_ledger_that_nobody_has_open(folder: Path) -> None:
    for journal, severity in (("wal", "ok"), ("delete", "note")):
        made = ledgers.build(folder / f"{journal}.db", 3, journal=journal)
        assert worst(examined(made), "journal-mode").severity == severity


# Nothing is written, nothing of the ledger is opened but by SQLite.


def left_by_a_copy(path: str) -> None:
    """A -wal with commits and no -shm, as after a copy of both files."""
    holder = ledgers.connect(path)
    holder.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('2026', 'k', '', '{}')")
    for suffix in ("", "-wal"):
        shutil.copy(path + suffix, path + ".copy" + suffix)
    holder.close()
    for suffix in ("", "-wal"):
        os.replace(path + ".copy" + suffix, path + suffix)


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("daemon", ["none", "running", "frozen", "killed"])
def test_nothing_is_written(folder: Path, journal: str, daemon: str, start_daemon: StartDaemon) -> None:
    made = ledgers.build(folder / "l.db", 50, journal=journal)
    if daemon != "none":
        running = start_daemon(made)
        running.log.unlink()
        # Each thread's first look at the store marks the table of readers.
        running.wait_published(50)
        running.call(protocol.INDEX)
        running.call(protocol.VERIFY, {"fold": None})
        if daemon == "frozen":
            running.freeze()
        elif daemon == "killed":
            running.kill()
    before = tree(folder)
    found = examined(made)
    after = tree(folder)
    if daemon == "running":
        # It takes another place in the table of readers whenever two of its threads read at once.
        for each in (before, after):
            del each[f"{made}-cache/lock.mdb"]
    assert {name for name in before if before[name] != after.get(name)} == set()
    assert set(after) == set(before)
    assert worst(found, "hash-chain").severity == "ok"


def test_a_wal_that_nobody_has_opened_stays_as_it_is(path: str) -> None:
    left_by_a_copy(path)
    before = tree(Path(path).parent)
    assert "nobody has it open" in worst(examined(path), "rows").found
    assert tree(Path(path).parent) == before
    remedied(worst(examined(path), "rows"))


def test_python_opens_no_file_of_the_ledger(path: str, start_daemon: StartDaemon) -> None:
    """Closing a descriptor of one would drop the locks of the whole process."""
    start_daemon(path)
    code = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from pmm_shm_cli.doctor import diagnose, gather
diagnose(gather(sys.argv[1], 5.0))
print(json.dumps(opened))
"""
    ran = run_python(code, path)
    assert ran.returncode == 0, ran.stderr
    opened = [name for name in json.loads(ran.stdout) if name.startswith(os.path.dirname(path))]
    assert opened
    # LMDB holds locks on one of these: a process that has it open does not read it so, see below.
    assert {os.path.basename(name) for name in opened} <= {"endpoints.json", "boot.json", "data.mdb", "lock.mdb"}


# The ledger.


def test_a_named_pipe_in_the_place_of_the_ledger(folder: Path) -> None:
    os.mkfifo(folder / "pipe.db")
    done = run_python("from pmm_shm_cli.main import main; main()", "doctor", str(folder / "pipe.db"))
    assert done.returncode == 1
    assert "not a regular file" in done.stdout


def test_a_busy_ledger_within_the_deadline(folder: Path) -> None:
    made = ledgers.build(folder / "l.db", 5, journal="delete")
    holder = ledgers.connect(made)
    holder.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    finding = worst(examined(made, 0.3), "rows")
    assert time.monotonic() - start < 5.0
    holder.execute("ROLLBACK")
    holder.close()
    assert (finding.severity, "busy" in finding.found) == ("warning", True)


def test_the_journal_of_a_dead_writer(folder: Path) -> None:
    made = ledgers.build(folder / "l.db", 5, journal="delete")
    writer = ledgers.python(
        """
import os, signal, sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE events SET content = 'half'")
for number in range(300):
    connection.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'k', ?, '{}')", ("x" * 1000,))
os.kill(os.getpid(), signal.SIGKILL)
""",
        made,
    )
    writer.communicate(timeout=DEADLINE_S)
    assert writer.returncode == -signal.SIGKILL
    before = tree(folder)
    finding = worst(examined(made), "rows")
    assert finding.severity == "warning"
    assert tree(folder) == before
    assert finding.command == f"pmm-shm status {made}"
    run_python("from pmm_shm_cli.main import main; main()", "status", made)
    assert "rows" not in examined(made)


def as_other(path: str) -> dict[str, dict[str, str]]:
    """The findings of another user, by check; all is imported before the privileges go."""
    code = """
import dataclasses, json, os, sys
import inotify_simple, zmq
from pmm_shm.folds.registry import BUILT_IN
from pmm_shm_client import commands
from pmm_shm_cli.doctor import diagnose, gather, look_at_machine
look_at_machine(None)
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
print(json.dumps([dataclasses.asdict(one) for one in diagnose(gather(sys.argv[1], 1.0))]))
"""
    ran = run_python(code, path, str(OTHER_UID))
    assert ran.returncode == 0, ran.stderr
    return {one["check"]: one for one in json.loads(ran.stdout)}


@needs_root
def test_a_ledger_that_one_may_not_read(path: str) -> None:
    findings = as_other(path)
    assert "may not read" in findings["ledger-access"]["found"]
    assert findings["ledger-access"]["severity"] == "error"


@needs_root
def test_a_ledger_that_one_may_only_read(path: str) -> None:
    os.chmod(path, 0o644)
    findings = as_other(path)
    assert findings["ledger-access"]["severity"] == "note"
    assert findings["hash-chain"]["severity"] == "ok"


@pytest.mark.parametrize(("mode", "severity"), [(0o600, "ok"), (0o660, "ok"), (0o644, "note"), (0o666, "warning")])
def test_who_can_read_the_ledger(path: str, mode: int, severity: str) -> None:
    os.chmod(path, mode)
    finding = worst(examined(path), "ledger-mode")
    assert finding.severity == severity
    if severity != "ok":
        remedied(finding)
        assert worst(examined(path), "ledger-mode").severity == "ok"


def test_side_files_that_the_group_cannot_open(path: str) -> None:
    os.chmod(path, 0o660)
    holder = ledgers.connect(path)
    holder.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('2026', 'k', '', '{}')")
    os.chmod(path + "-wal", 0o600)
    found = examined(path)
    assert [path + "-wal" in one.found for one in found["side-files"]] == [True]
    remedied(found["side-files"][0])
    assert "side-files" not in examined(path)
    holder.close()


def test_a_file_that_was_replaced_while_somebody_had_it_open(path: str) -> None:
    holder = ledgers.python(
        """
import sqlite3
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM events").fetchall()
print("ready", flush=True)
sys.stdin.read()
""",
        path,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    try:
        new = ledgers.build(path + ".new", 300)
        os.replace(new, path)
        found = examined(path)
        finding = worst(found, "replaced-file")
        assert (finding.severity, f"process {holder.pid}" in finding.found) == ("warning", True)
        remedied(finding)
        until(lambda: not is_alive(holder.pid), "the holder ends")
    finally:
        holder.kill()
        holder.communicate()
    assert "replaced-file" not in examined(path)


def test_leftovers_of_restores(path: str) -> None:
    for suffix in (".before-restore-20260101T000000Z", ".restoring"):
        shutil.copy(path, path + suffix)
    shutil.copy(path, path + ".mine")
    found = examined(path)
    assert len(found["leftover"]) == 2
    for finding in found["leftover"]:
        remedied(finding)
    assert "leftover" not in examined(path)
    assert os.path.exists(path + ".mine")


# The instance directory and the daemon.


def test_a_frozen_daemon_within_the_deadline(path: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(path)
    daemon.freeze()
    start = time.monotonic()
    found = examined(path, 0.5)
    assert time.monotonic() - start < 5.0
    finding = worst(found, "daemon")
    assert (finding.severity, finding.command) == ("error", f"kill -CONT {daemon.pid}")
    assert worst(found, "reader-slots").severity == "ok"
    remedied(finding)
    assert worst(examined(path, DEADLINE_S), "daemon").severity == "ok"


def test_a_killed_daemon_leaves_sockets(path: str, start_daemon: StartDaemon) -> None:
    start_daemon(path).kill()
    found = examined(path)
    assert worst(found, "daemon").severity == "note"
    assert len(found["stale-socket"]) == 4
    for finding in found["stale-socket"]:
        remedied(finding)
    assert "stale-socket" not in examined(path)


def test_a_socket_that_was_removed_under_the_daemon(path: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(path)
    (daemon.instance.directory / "admin.sock").unlink()
    assert worst(examined(path), "stale-socket").severity == "warning"


def test_a_degraded_daemon_says_why(path: str, start_daemon: StartDaemon) -> None:
    start_daemon(path)
    facts = gather(path, TIMEOUT_S)
    assert facts.state is not None
    assert facts.state.daemon is not None
    ill = {**facts.state.daemon, "health": "degraded", "health_reasons": ["the disk\nis full"]}
    found = by_check(dataclasses.replace(facts, state=dataclasses.replace(facts.state, daemon=ill)))
    assert worst(found, "daemon").found == "degraded: the disk is full"


@pytest.mark.parametrize("name", ["version", "format", "protocol"])
def test_a_daemon_of_another_version(path: str, name: str, start_daemon: StartDaemon) -> None:
    start_daemon(path)
    facts = gather(path, TIMEOUT_S)
    assert facts.state is not None
    assert facts.state.daemon is not None
    for theirs in ({**facts.state.daemon, name: 0}, {k: v for k, v in facts.state.daemon.items() if k != name}):
        found = by_check(dataclasses.replace(facts, state=dataclasses.replace(facts.state, daemon=theirs)))
        finding = worst(found, "versions")
        assert (finding.severity, name in finding.found) == ("warning", True)
        pid = facts.state.daemon_pid
        assert finding.command == f"kill -TERM {pid} && tail --pid={pid} -f /dev/null && pmm-cached {path} &"


def test_a_daemon_in_another_instance_directory(path: str, folder: Path, start_daemon: StartDaemon) -> None:
    elsewhere = str(folder / "elsewhere")
    start_daemon(path, env=environment(PMM_SHM_DIR=elsewhere), wait=False, forked=False)
    until(lambda: "daemon-elsewhere" in examined(path, 0.2), "the daemon has the ledger open")
    finding = worst(examined(path), "daemon-elsewhere")
    assert (finding.severity, finding.command) == ("warning", f"export PMM_SHM_DIR={elsewhere}")
    ran = run_doctor(path, "--json", env=environment(PMM_SHM_DIR=elsewhere))
    findings = {one["check"]: one for one in json.loads(ran.stdout)["findings"]}
    assert "daemon-elsewhere" not in findings
    assert findings["daemon"]["severity"] in ("ok", "warning")


def test_a_directory_that_is_wider_than_the_ledger(path: str, start_daemon: StartDaemon) -> None:
    directory = start_daemon(path).instance.directory
    os.chmod(directory, 0o755)
    finding = worst(examined(path), "state-directory")
    assert finding.severity == "warning"
    remedied(finding)
    assert worst(examined(path), "state-directory").severity == "ok"
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_write_is_not_trusted(path: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(path)
    daemon.stop()
    os.chmod(daemon.instance.directory, 0o777)
    found = examined(path)
    finding = worst(found, "state-directory")
    assert (finding.severity, "store" in found) == ("error", False)
    directory = daemon.instance.directory
    assert finding.command == f"mv --backup=numbered {directory} {directory}.old && pmm-cached {path} &"


def test_files_in_it_that_are_not_as_they_should_be(path: str, start_daemon: StartDaemon) -> None:
    directory = start_daemon(path).instance.directory
    os.chmod(directory / "data.mdb", 0o666)
    os.symlink("/etc/passwd", directory / "link")
    found = examined(path)["state-files"]
    assert sorted(one.severity for one in found) == ["error", "warning"]
    for finding in found:
        remedied(finding)
    assert "state-files" not in examined(path)


@needs_root
def test_a_directory_that_one_may_not_enter(path: str, start_daemon: StartDaemon) -> None:
    os.chmod(path, 0o644)
    directory = start_daemon(path).instance.directory
    os.chmod(directory, 0o700)
    findings = as_other(path)
    assert "may not look into" in findings["state-directory"]["found"]
    assert "no permission" in findings["daemon"]["found"]


def test_daemons_that_died_while_opening(path: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(path)
    daemon.stop()
    for severity in ("note", "warning"):
        boot.mark_opening(daemon.instance.boot_file)
        assert worst(examined(path), "boot-mark").severity == severity


def test_a_state_of_before_the_last_boot(path: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(path)
    daemon.stop()
    daemon.instance.boot_file.write_text('{"clean": false, "boot_id": "another"}')
    assert "without a clean stop" in worst(examined(path), "boot-mark").found


def test_a_socket_path_that_is_too_long(tmp_path: Path, start_daemon: StartDaemon) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    made = ledgers.build(deep / "l.db", 3)
    daemon = start_daemon(made)
    found = examined(made)
    finding = worst(found, "socket-path")
    assert finding.severity == "note"
    assert "pmm-shm" in finding.meaning
    assert worst(found, "daemon").severity == "ok"
    daemon.stop()


# Readers of the store.


READER = """
import lmdb, os, signal
env = lmdb.open(sys.argv[1], map_size=1 << 30, readonly=True, create=False, max_readers=1024)
transaction = env.begin()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def reader() -> Iterator[Callable[[Instance], subprocess.Popen[str]]]:
    """Starts a process that stays within a read transaction."""
    started: list[subprocess.Popen[str]] = []

    def start(instance: Instance) -> subprocess.Popen[str]:
        process = ledgers.python(READER, str(instance.directory))
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_stopped_reader(
    path: str, start_daemon: StartDaemon, reader: Callable[[Instance], subprocess.Popen[str]]
) -> None:
    daemon = start_daemon(path)
    process = reader(daemon.instance)
    assert "stale-reader" not in examined(path)
    os.kill(process.pid, signal.SIGSTOP)
    with connect(path) as cache:
        cache.wait_for(cache.append("user", "one more"), timeout=DEADLINE_S)
    finding = worst(examined(path), "stale-reader")
    assert f"process {process.pid} was stopped" in finding.found
    remedied(finding)
    assert "stale-reader" not in examined(path)


def test_a_dead_reader(
    path: str, start_daemon: StartDaemon, reader: Callable[[Instance], subprocess.Popen[str]]
) -> None:
    daemon = start_daemon(path)
    process = reader(daemon.instance)
    # It would clear the slot at once.
    daemon.freeze()
    process.kill()
    process.wait(DEADLINE_S)
    assert f"process {process.pid} died" in worst(examined(path, 0.3), "dead-reader").found


def test_data_that_was_removed_under_a_reader(
    path: str, start_daemon: StartDaemon, reader: Callable[[Instance], subprocess.Popen[str]]
) -> None:
    daemon = start_daemon(path)
    process = reader(daemon.instance)
    daemon.stop()
    daemon.instance.data_file.unlink()
    assert f"process {process.pid}" in worst(examined(path), "replaced-file").found


def test_the_table_of_readers_is_the_one_that_lmdb_reports(
    path: str, start_daemon: StartDaemon, reader: Callable[[Instance], subprocess.Popen[str]]
) -> None:
    daemon = start_daemon(path)
    process = reader(daemon.instance)
    sizes, table = inspection.sizes_of(daemon.instance.directory), inspection.reader_table(daemon.instance.directory)
    assert sizes is not None
    assert table is not None
    environment_ = open_reader(daemon.instance.directory)
    assert environment_ is not None
    try:
        told, numbers = environment_.env.readers(), environment_.env.info()
        # What this process has open, only LMDB may look at: to close its table would drop its locks.
        assert inspection.reader_table(daemon.instance.directory) is None
        with environment_.read():
            assert "store" not in examined(path)
            assert holds_lock(ledger_file_id(daemon.instance.directory / "lock.mdb"), 0)
    finally:
        close(environment_)
    lines = [line.split() for line in told.splitlines()[1:]]
    slots = [(int(pid), None if txn == "-" else int(txn)) for pid, _, txn in lines if int(pid) != os.getpid()]
    assert slots == [tuple(slot) for slot in table.slots if slot.pid != os.getpid()]
    assert (process.pid, sizes.transaction_id) in slots
    assert table.slots_max == numbers["max_readers"]
    assert sizes.map_bytes == numbers["map_size"]
    assert sizes.used_bytes == (numbers["last_pgno"] + 1) * 4_096
    assert sizes.transaction_id == numbers["last_txnid"]


def test_a_table_of_readers_that_is_locked_keeps_nobody_waiting(path: str, start_daemon: StartDaemon) -> None:
    start_daemon(path).freeze()
    with table_of_readers_held(Path(path)):
        start = time.monotonic()
        assert worst(examined(path, 0.3), "reader-slots").severity == "ok"
        assert time.monotonic() - start < 5.0


def test_how_full_the_store_is(path: str, start_daemon: StartDaemon) -> None:
    start_daemon(path)
    facts = gather(path, TIMEOUT_S)
    assert facts.state is not None
    assert facts.state.store is not None
    assert facts.state.store.map_bytes == limits.MAP_SIZE_BYTES
    for used, severity in ((921, "ok"), (922, "warning"), (1_024, "error")):
        readers = tuple(ReaderSlot(1, "S", None) for _ in range(used))
        store = StoreFacts(100 << 20, 95 << 20, 1_024, readers)
        found = by_check(dataclasses.replace(facts, state=dataclasses.replace(facts.state, store=store)))
        assert worst(found, "reader-slots").severity == severity
        assert worst(found, "map-size").severity == "warning"
    far = StoreFacts(1 << 40, 1, 1_024, (ReaderSlot(7, "S", 5_000),))
    found = by_check(dataclasses.replace(facts, state=dataclasses.replace(facts.state, store=far)))
    assert "5,000 commits" in worst(found, "stale-reader").found


def test_a_damaged_store_is_said(path: str, start_daemon: StartDaemon) -> None:
    start_daemon(path)
    facts = gather(path, TIMEOUT_S)
    assert facts.state is not None
    ill = dataclasses.replace(facts.state, store=None, store_problem="data.mdb: truncated")
    assert worst(by_check(dataclasses.replace(facts, state=ill)), "store").severity == "error"


# The machine.


def test_address_space_and_file_sizes_that_are_limited(path: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))

    command = [sys.executable, "-m", "pmm_shm_cli", "doctor", path, "--json"]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, preexec_fn=limit, check=False)
    findings = {one["check"]: one for one in json.loads(ran.stdout)["findings"]}
    assert findings["address-space"]["command"] == "ulimit -v unlimited"
    assert "4,096 MiB" in findings["address-space"]["found"]
    assert "1 MiB" in findings["file-size"]["found"]
    assert "50 files" in findings["open-files"]["found"]
    assert ran.returncode == 0


def test_the_limits_of_the_daemon_are_looked_at(path: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(path)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (1 << 29, resource.RLIM_INFINITY))
    assert f"daemon (pid {daemon.pid})" in worst(examined(path), "file-size").found


# Remedies.


def test_every_command_is_one_for_a_shell(path: str, start_daemon: StartDaemon) -> None:
    start_daemon(path)
    facts = gather(path, TIMEOUT_S)
    findings = [one for _, changed in ill(facts) for one in diagnose(changed) if one.severity != "ok"]
    for command in {one.command for one in findings}:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command


def test_no_finding_says_to_copy_a_ledger_behind_sqlites_back(path: str, start_daemon: StartDaemon) -> None:
    """A ledger in use has its newest events in the -wal: a copy of the file alone lacks them."""
    start_daemon(path)
    facts = gather(path, TIMEOUT_S)
    findings = [one for _, changed in ill(facts) for one in diagnose(changed)]
    for finding in findings:
        assert not re.search(r"\b(cp|rsync|scp|install|\.backup)\b .*\.db", finding.command), finding
    in_memory, on_network = (
        worst(by_check(changed), "file-system")
        for check, changed in ill(facts)
        if check == "file-system" and changed.ledger is not None and changed.ledger.disk.directory != "/"
    )
    if "NFS" in in_memory.found:
        in_memory, on_network = on_network, in_memory
    assert in_memory.command == f"pmm-shm backup {path} FILE"
    assert (on_network.command, "stop all writers" in on_network.remedy) == ("", True)
    assert "together with its -wal" in on_network.remedy
    assert "on the file server" in on_network.remedy


def test_the_copy_of_a_live_ledger_in_memory_is_whole() -> None:
    """What the doctor says, word by word, while a writer has all its events in the -wal."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no file system in memory")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory() as disk:
        made = f"{memory}/l.db"
        with EventLog(made) as log:
            log.append_many([("user", str(number), {}) for number in range(50)])
            finding = worst(examined(made), "file-system")
            file = f"{disk}/copy.db"
            remedied(dataclasses.replace(finding, command=finding.command.replace("FILE", file)))
            assert len(ledgers.raw_rows(file)) == 50
            assert run_doctor(file).returncode == 0


def test_a_missing_ledger_beside_its_wal_is_not_made_anew(path: str) -> None:
    """SQLite would delete the -wal, and the commits in it."""
    left_by_a_copy(path)
    os.rename(path, path + ".moved")
    finding = worst(examined(path), "rows")
    assert (finding.severity, "--create" in finding.command) == ("error", False)
    assert finding.command.startswith("ls -l ")


def test_the_restart_waits_for_the_old_daemon(path: str, start_daemon: StartDaemon) -> None:
    """`pmm-cached` refuses to start while the old one holds the lock."""
    daemon = start_daemon(path)
    facts = gather(path, TIMEOUT_S)
    assert facts.state is not None
    assert facts.state.daemon is not None
    other = dataclasses.replace(facts.state, daemon={**facts.state.daemon, "version": "0"})
    command = worst(by_check(dataclasses.replace(facts, state=other)), "versions").command
    programs = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-c", f"({command.removesuffix('&')}) >/dev/null 2>&1 &"],
        env={**environment(), "PATH": programs},
        check=True,
    )
    daemon.process.wait(DEADLINE_S)
    until(lambda: gather(path, TIMEOUT_S).state.daemon is not None, "another daemon answers")
    state = gather(path, TIMEOUT_S).state
    assert state is not None
    assert state.daemon_pid not in (None, daemon.pid)
    os.kill(state.daemon_pid, signal.SIGTERM)  # type: ignore[arg-type]
    until(lambda: gather(path, TIMEOUT_S).state.daemon is None, "it ends")
    until(lambda: not is_alive(state.daemon_pid), "its process is gone")  # type: ignore[arg-type]


def test_paths_are_quoted(folder: Path) -> None:
    (folder / "a $(touch x) 'b").mkdir()
    made = ledgers.build(folder / "a $(touch x) 'b" / "l.db", 3)
    os.chmod(made, 0o666)
    remedied(worst(examined(made), "ledger-mode"))
    assert os.stat(made).st_mode & 0o777 == 0o660


# The command.


def test_exit_codes_and_json(path: str) -> None:
    ran = run_doctor(path, "--json")
    assert (ran.returncode, ran.stderr, ran.stdout.count("\n")) == (0, "", 1)
    report = json.loads(ran.stdout)
    assert (report["ok"], report["ledger"]) == (True, path)
    assert {"check", "severity", "found", "meaning", "remedy", "command"} == set(report["findings"][0])
    ledgers.execute(path, "UPDATE events SET content = 'edited' WHERE id = 7")
    ran = run_doctor(path, "--json")
    assert (ran.returncode, json.loads(ran.stdout)["ok"]) == (1, False)
    assert ran.stderr == f"pmm-shm: {path}: hash-chain: broken at event 7\n"


def test_what_people_see(path: str) -> None:
    os.chmod(path, 0o666)
    ran = run_doctor(path)
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith("warning ledger-mode: mode 0666"))
    assert lines[number + 3] == f"            chmod o-rwx {path}"
    assert re.fullmatch(r"(\d+ \w+, )+\d+ ok", lines[-1])


def test_without_a_ledger_the_machine_is_looked_at(tmp_path: Path) -> None:
    ran = run_doctor("--json", cwd=tmp_path)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["ledger"] is None
    assert list(tmp_path.iterdir()) == []
    ran = run_doctor(env=environment(PMM_USE_METRICS_CACHE="perhaps"))
    assert ran.returncode == 1
    assert "environment" in ran.stderr


def test_an_empty_path_is_not_the_ledger_of_the_environment(path: str) -> None:
    ran = run_doctor("", env=environment(PMM_DB=path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "pmm-shm: LEDGER: expected the path of a file, got an empty text\n"


def test_the_ledger_of_the_environment(path: str) -> None:
    ran = run_doctor("--json", env=environment(PMM_DB=path))
    assert json.loads(ran.stdout)["ledger"] == path


def test_a_socket_that_is_no_daemons(path: str) -> None:
    instance = Instance.of(path)
    instance.directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(instance.directory / "commands.sock"))
        assert worst(examined(path), "stale-socket").severity == "note"


def test_a_switched_link_above_the_ledger_is_not_followed_and_told(tmp_path: Path) -> None:
    """A path is resolved when a program opens the ledger: doctor names the file that a program would open now."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with EventLog(tmp_path / name / "a.db") as log:
            log.append("identity_adopt", name)
    link = tmp_path / "current"
    link.symlink_to("one")
    with connect(link / "a.db") as cache:
        assert cache.identity().name == "one"
        link.unlink()
        link.symlink_to("two")
        time.sleep(limits.TRUST_PERIOD_S)
        cache.append("identity_adopt", "still one")
        assert cache.identity().name == "still one"
        with connect(link / "a.db") as other:
            assert other.identity().name == "two"
        found = worst(examined(link / "a.db"), "ledger-path")
    assert found.severity == "note"
    assert found.found == f"{link / 'a.db'} leads through a symbolic link to {tmp_path / 'two' / 'a.db'}"
    assert "ledger-path" not in examined(tmp_path / "two" / "a.db")
    named = tmp_path / "named.db"
    named.symlink_to(link / "a.db")
    assert worst(examined(named), "ledger-path").found.endswith(f"to {tmp_path / 'two' / 'a.db'}")
