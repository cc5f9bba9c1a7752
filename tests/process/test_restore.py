"""`pmm-shm restore`: in one transaction, while real writers, readers and the daemon use the ledger."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import errors
from pmm_shm.ledger import restore as restoring
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import forking, ledgers, workers
from tests.support.answers import everything, replayed
from tests.support.daemons import DEADLINE_S, environment, run_python, until
from tests.support.restoring import (
    AS_NOBODY,
    BUSY,
    HEAD,
    JOURNALS,
    check_refused_for_room,
    dead_writer,
    empty,
    without_hashes,
    without_table,
)
from tests.support.workers import EVENT_LOG, FOREIGN, READER, contents, journal_of, make, working

NEVER = ("--verify-every", "0")


def listing(directory: str | os.PathLike[str]) -> dict[str, bytes]:
    """Every file and its bytes; those of daemons and their logs aside."""
    names = sorted(name for name in os.listdir(directory) if "-cache" not in name and ".log-" not in name)
    return {name: ledgers.read_bytes(os.path.join(directory, name)) for name in names}


def cli(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return forking.run("pmm_shm_cli.main:main", ["pmm-shm", "restore", *arguments], environment(**env))


# What a restore does.


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("backups", JOURNALS)
def test_live_connections_go_on_exactly(tmp_path: Path, journal: str, backups: str, start_daemon: StartDaemon) -> None:
    """Fewer events, more, and the same number; the ledger keeps its mode, whatever the backup's is."""
    ledger = make(str(tmp_path / "ledger.db"), "Old", 300, journal)
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache, connect(ledger, freshness="data_version") as other, EventLog(ledger) as log:
        log.append("user", "before")
        everything(cache), everything(other)
        for name, notes in (("Fewer", 20), ("More", 700), ("Same", 700)):
            backup = make(str(tmp_path / f"{name}.db"), name, notes, backups)
            before = contents(ledger)
            done = restore(backup, ledger)
            assert (done.events, done.head_id) == (HEAD + notes, HEAD + notes)
            assert done.safety_copy is not None
            assert contents(done.safety_copy) == before
            assert cache.identity().name == name
            assert everything(cache) == everything(other) == replayed(ledger)
            assert journal_of(ledger) == journal
            assert log.append("user", f"after {name}") == done.head_id + 1
            assert log.verify_chain().ok
            assert log.verify_chain().rows_checked == done.events + 1
            assert everything(cache) == everything(other) == replayed(ledger)
            until(lambda n=name: published(ledger)["identity"].startswith(f"('{n}'"), "the daemon has noticed")
            daemon.wait_published(done.head_id + 1)
            assert published(ledger) == replayed(ledger)
        assert daemon.stats()["problem"] is None


def published(ledger: str) -> dict[str, Any]:
    """Everything as it is published; while a rebuild is under way, that nothing is."""
    with connect(ledger, consistency="snapshot") as cache:
        try:
            return everything(cache)
        except errors.SnapshotUnavailableError:
            return {"identity": "nothing"}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("journal", JOURNALS)
def test_restores_under_writers_readers_and_daemon(tmp_path: Path, journal: str, start_daemon: StartDaemon) -> None:
    """No reader sees half a restore; no event that a writer was told of is in neither ledger nor safety copies."""
    ledger = make(str(tmp_path / "ledger.db"), "Old", 300, journal)
    names = {"A": 100, "B": 1_500, "C": 100}
    backups = {name: make(str(tmp_path / f"{name}.db"), name, notes, journal) for name, notes in names.items()}
    daemon = start_daemon(ledger, *NEVER)
    crew = {f"log{n}": (EVENT_LOG, 0.002) for n in range(2)} | {f"foreign{n}": (FOREIGN, 0.002) for n in range(2)}
    crew |= {f"reader{n}": (READER, 0.001) for n in range(2)}
    copies: list[str] = []
    with working(ledger, **crew) as processes, connect(ledger) as cache:
        for name in ("A", "B", "C", "A", "B"):
            head = ledgers.execute(ledger, "SELECT max(id) FROM events")[0][0]
            until(lambda h=head: ledgers.execute(ledger, "SELECT max(id) FROM events")[0][0] > h, "writers write")
            done = restore(backups[name], ledger)
            assert done.safety_copy is not None
            copies.append(done.safety_copy)
            assert cache.identity().name == name
        results = {name: worker.end() for name, worker in processes.items()}
    kept = set().union(*(contents(path) for path in [*copies, ledger]))
    for name, result in results.items():
        assert result["failure"] is None
        if name.startswith("reader"):
            assert result["wrong"] == []
            assert set(result["names"]) <= {"Old", *names}
            assert len(result["names"]) > 1
            assert result["names"][-1] == "B"
        else:
            assert result["done"], name
            assert [token for _, _, token in result["done"] if token not in kept] == [], name
    with connect(ledger) as cache, EventLog(ledger) as log:
        log.append("user", "the last")
        assert everything(cache) == replayed(ledger)
        report = log.verify_chain()
        assert report.ok
        assert report.rows_without_hash > 0
        daemon.wait_published(cache.metrics().as_of)
        until(lambda: published(ledger) == replayed(ledger), "what is published equals a replay")
    assert journal_of(ledger) == journal
    for path in copies:
        with EventLog(path) as copy:
            assert copy.verify_chain().ok


def test_the_command_line(place: tuple[str, str]) -> None:
    ledger, backup = place
    done = cli(backup, ledger)
    assert (done.returncode, done.stderr) == (0, "")
    (copy,) = (name for name in os.listdir(os.path.dirname(ledger)) if ".before-restore-" in name)
    copy = os.path.join(os.path.dirname(ledger), copy)
    assert done.stdout == (
        f"{ledger}: {HEAD + 50} events from {backup}, as of event {HEAD + 50}; what it held before is in {copy}\n"
    )
    # The safety copy is a backup like any other.
    done = cli(copy, "--no-keep", "--json", PMM_DB=ledger)
    assert json.loads(done.stdout) == {
        "ledger": ledger, "backup": copy, "events": HEAD + 300, "head_id": HEAD + 300, "safety_copy": None,
    }  # fmt: skip
    with connect(ledger) as cache:
        assert cache.identity().name == "Old"
    done = cli(ledger, ledger)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pmm-shm: {ledger}: backup and ledger are the same file\n"
    ledgers.execute(backup, "UPDATE events SET content = 'edited' WHERE id = 7")
    before = listing(os.path.dirname(ledger))
    done = cli(backup, ledger)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == f"pmm-shm: {backup}: the hash chain is broken at event 7; nothing was changed\n"
    assert listing(os.path.dirname(ledger)) == before
    assert cli(backup, ledger, "--no-chain").returncode == 0
    assert "edited" in contents(ledger)


# A backup that is no good changes nothing.


def damage(path: str) -> None:
    """Bytes of one page in the middle become others."""
    with open(path, "r+b") as file:
        file.seek(os.stat(path).st_size // 2 // 4_096 * 4_096)
        file.write(b"\xff" * 4_096)


def cut_text(path: str) -> None:
    Path(path).write_text("no database at all\n" * 100, encoding="utf-8")


def without_column(path: str) -> None:
    ledgers.execute(path, "ALTER TABLE events RENAME COLUMN kind TO sort")


def utf16(path: str) -> None:
    os.unlink(path)
    connection = ledgers.connect(path)
    connection.execute("PRAGMA encoding = 'UTF-16'")
    ledgers.make_table(connection)
    connection.close()


def broken_chain(path: str) -> None:
    ledgers.execute(path, "UPDATE events SET meta = '{\"cid\": 1}' WHERE id = 5")


def link(path: str) -> None:
    os.unlink(path)
    os.link(ledger_of(path), path)


def symlink(path: str) -> None:
    os.unlink(path)
    os.symlink(ledger_of(path), path)


def ledger_of(backup: str) -> str:
    return os.path.join(os.path.dirname(os.path.dirname(backup)), "here", "ledger.db")


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (os.unlink, errors.LedgerNotFoundError, "no such file"),
        (cut_text, errors.NotALedgerError, "file is not a database"),
        (empty, errors.NotALedgerError, "empty"),
        (damage, errors.NotALedgerError, "damaged: "),
        (without_table, errors.NotALedgerError, "a table `events`"),
        (without_column, errors.NotALedgerError, "lacks the columns kind"),
        (without_hashes, errors.NotALedgerError, "not the columns of"),
        (utf16, errors.NotALedgerError, "not the text encoding of"),
        (broken_chain, errors.ChainError, "broken at event 5;"),
        (link, errors.ConfigError, "the same file"),
        (symlink, errors.ConfigError, "the same file"),
        (dead_writer, errors.LedgerUnreadableError, "a writer died within a transaction"),
    ],
)
def test_a_backup_that_is_no_good(
    place: tuple[str, str], spoil: Callable[[str], None], error: type[errors.LedgerError], says: str
) -> None:
    ledger, backup = place
    spoil(backup)
    before = [listing(os.path.dirname(path)) for path in place]
    with pytest.raises(error, match=says) as caught:
        restore(backup, ledger)
    assert "\n" not in str(caught.value)
    assert [listing(os.path.dirname(path)) for path in place] == before


@pytest.mark.parametrize("spoil", [cut_text, without_table, without_column])
def test_what_is_no_ledger_is_not_written_over(place: tuple[str, str], spoil: Callable[[str], None]) -> None:
    ledger, backup = place
    ledgers.execute(ledger, "PRAGMA journal_mode = DELETE")
    spoil(ledger)
    before = [listing(os.path.dirname(path)) for path in place]
    with pytest.raises(errors.NotALedgerError, match=f"{ledger}: .*to restore in its place, move it away first"):
        restore(backup, ledger)
    assert [listing(os.path.dirname(path)) for path in place] == before


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_damaged_ledger_is_restored(place: tuple[str, str], journal: str) -> None:
    """What else are backups for; the safety copy holds the damaged bytes."""
    ledger, backup = place
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    damage(ledger)
    done = restore(backup, ledger)
    assert ledgers.raw_rows(ledger) == ledgers.raw_rows(backup)
    assert done.safety_copy is not None
    assert b"\xff" * 4_096 in ledgers.read_bytes(done.safety_copy)


# The backup stays as it is.


@pytest.mark.parametrize("journal", JOURNALS)
def test_nothing_of_the_backup_changes(place: tuple[str, str], journal: str) -> None:
    ledger, backup = place
    ledgers.execute(backup, f"PRAGMA journal_mode = {journal}")
    before, status = listing(os.path.dirname(backup)), os.stat(backup)
    restore(backup, ledger)
    assert listing(os.path.dirname(backup)) == before
    assert os.stat(backup).st_mtime_ns == status.st_mtime_ns


@pytest.mark.parametrize("is_open", [True, False])
def test_commits_in_the_backups_own_wal_count(place: tuple[str, str], is_open: bool) -> None:
    """The writer of the backup has it open, or was killed; `-shm` is SQLite's, and may be made anew."""
    ledger, backup = place
    with working(backup, w=(EVENT_LOG, 0.001)) as processes:
        until(lambda: len(contents(backup)) > HEAD + 70, "commits")
        if not is_open:
            processes["w"].kill()
            os.unlink(backup + "-shm")
        else:
            processes["w"].process.send_signal(19)
            until(lambda: stands(processes["w"].process.pid), "it stands")
        assert os.stat(backup + "-wal").st_size
        before = listing(os.path.dirname(backup))
        done = restore(backup, ledger)
        after = listing(os.path.dirname(backup))
        after.pop("backup.db-shm"), before.pop("backup.db-shm", None)
        assert after == before
        assert done.events > HEAD + 70
        assert contents(ledger) == contents(backup)
        processes["w"].kill()


def stands(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def apart() -> Iterator[Path]:
    """A directory that nobody may enter and write, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o777)
        yield Path(path)


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("mode", [0o444, 0o666])
def test_a_backup_in_a_directory_that_cannot_be_written(apart: Path, journal: str, mode: int) -> None:
    folder = apart / "backups"
    folder.mkdir()
    backup = make(str(folder / "backup.db"), "New", 50, journal)
    os.chmod(backup, mode)
    os.chmod(folder, 0o555)
    before = listing(folder)
    ended = run_python(AS_NOBODY, backup, str(apart / "ledger.db"))
    assert (ended.stdout, ended.stderr) == (f"{HEAD + 50}\n", "")
    assert listing(folder) == before
    assert contents(str(apart / "ledger.db")) == contents(backup)


def test_a_wal_that_cannot_be_read_is_not_left_out(apart: Path) -> None:
    folder = apart / "backups"
    folder.mkdir()
    backup = make(str(folder / "backup.db"), "New", 50)
    with working(backup, w=(EVENT_LOG, 0.001)) as processes:
        until(lambda: len(contents(backup)) > HEAD + 50, "commits")
        processes["w"].kill()
    os.unlink(backup + "-shm")
    os.chmod(folder, 0o555)
    ended = run_python(AS_NOBODY, backup, str(apart / "ledger.db"))
    assert ended.stdout.startswith("LedgerUnreadableError: ")
    assert "copy both files elsewhere and restore from there\n" in ended.stdout
    assert os.listdir(apart) == ["backups"]


@pytest.mark.parametrize("mode", ["rw", "immutable"])
def test_a_backup_that_is_written_meanwhile(place: tuple[str, str], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is restored; without locks, nothing is."""
    ledger, backup = place
    monkeypatch.setattr(restoring, "_mode_for", lambda path: mode)
    look = restoring._check

    def look_and_write(*arguments: Any) -> Any:
        found = look(*arguments)
        ledgers.execute(backup, "UPDATE events SET content = 'torn' WHERE id = 9")
        return found

    monkeypatch.setattr(restoring, "_check", look_and_write)
    before, checked = listing(os.path.dirname(ledger)), contents(backup)
    if mode == "rw":
        restore(backup, ledger)
        assert contents(ledger) == checked != contents(backup)
        return
    with pytest.raises(errors.LedgerBusyError, match="it was written while it was read"):
        restore(backup, ledger)
    assert listing(os.path.dirname(ledger)) == before


# A busy ledger, and a full disk.


COMMITS_LATE = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', 'committed late', '{}')")
print("ready", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
print("committed", flush=True)
"""


@pytest.mark.parametrize(
    ("journal", "statement"),
    [("wal", "BEGIN IMMEDIATE"), ("delete", "BEGIN IMMEDIATE"), ("delete", "SELECT * FROM events")],
)
def test_a_busy_ledger(place: tuple[str, str], journal: str, statement: str) -> None:
    ledger, backup = place
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    before = contents(ledger)
    holder = ledgers.python(BUSY, ledger, statement)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        began = time.monotonic()
        with pytest.raises(errors.LedgerBusyError, match=ledger):
            restore(backup, ledger, timeout=0.5)
        assert 0.5 <= time.monotonic() - began < 10
        assert [name for name in os.listdir(os.path.dirname(ledger)) if "restor" in name] == []
        assert contents(ledger) == before
    finally:
        holder.communicate("\n")
    restore(backup, ledger, timeout=10)
    assert contents(ledger) == contents(backup)


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_busy_ledger_is_waited_for(place: tuple[str, str], journal: str) -> None:
    """Tries that fail are in nobody's way: who holds the lock can commit; what he commits is in the safety copy."""
    ledger, backup = place
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    holder = ledgers.python(COMMITS_LATE, ledger)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    waiting = subprocess.Popen(
        [sys.executable, "-m", "pmm_shm_cli", "restore", backup, ledger, "--timeout", "60", "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: is_open(waiting.pid, ledger), "it waits")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.5)
    assert holder.communicate("\n")[0] == "committed\n"
    done = json.loads(waiting.communicate(timeout=DEADLINE_S)[0])
    assert contents(ledger) == contents(backup)
    assert "committed late" in contents(done["safety_copy"])


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("keep", [True, False])
def test_a_full_disk(tmp_path: Path, journal: str, keep: bool) -> None:
    """Full while the safety copy is made, or later; nothing changes, and no part of a file stays."""
    workers.skip_without_root()
    built = make(str(tmp_path / "built.db"), "Old", 1_000, journal)
    backup = make(str(tmp_path / "backup.db"), "New", 10 if keep else 3_000)
    room_bytes = os.stat(built).st_size * 16 // 10
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room_bytes}", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount")
    try:
        ledger = shutil.copy(built, disk / "ledger.db")
        check_refused_for_room(str(ledger), backup, keep)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_directory_that_cannot_be_written(apart: Path) -> None:
    folder = apart / "here"
    folder.mkdir()
    backup = make(str(apart / "backup.db"), "New", 5)
    ledger = make(str(folder / "ledger.db"), "Old", 5, "delete")
    os.chmod(ledger, 0o666)
    os.chmod(folder, 0o555)
    before = listing(folder)
    ended = run_python(AS_NOBODY, backup, ledger)
    assert ended.stdout.startswith("LedgerUnwritableError: ")
    ended = run_python(AS_NOBODY, backup, str(folder / "new.db"))
    assert ended.stdout.startswith("LedgerUnwritableError: ")
    assert listing(folder) == before


# Killed in the middle.


KILLED = """
import os, random, signal, sqlite3, sys, time
from pmm_shm import limits
from pmm_shm.ledger import restore as restoring
from pmm_shm.ledger.eventlog import EventLog
ledger, backup, how, seed = sys.argv[1:]
limits.RESTORE_PAGES_PER_STEP = 8
random.seed(int(seed))

def rows(path):
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        return connection.execute("SELECT * FROM events ORDER BY id").fetchall()
    finally:
        connection.close()

def child(backup, ledger, steps):
    looks = 0
    refuse = restoring._refuse_to_sleep
    def look(code):
        nonlocal looks
        looks += 1
        if looks == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        refuse(code)
    restoring._refuse_to_sleep = look
    restoring.restore(backup, ledger)
    os._exit(0)

known = {"old": rows(ledger), "new": rows(backup)}
copy = ledger + ".copy"
restoring.restore(ledger, copy)
source = {"old": copy, "new": backup}
began = time.monotonic()
restoring.restore(copy, ledger)
span_s = time.monotonic() - began
end_s = began + 8
found = {"old": 0, "new": 0}
stands, turns, killed = "old", 0, 0
while how == "steps" or (turns < 40 and time.monotonic() < end_s):
    turns += 1
    wanted = "new" if stands == "old" else "old"
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            child(source[wanted], ledger, turns if how == "steps" else None)
        finally:
            os._exit(1)
    if how == "random":
        time.sleep(random.uniform(0, 1.3 * span_s))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    status = os.waitpid(pid, 0)[1]
    was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    killed += was_killed
    assert was_killed or status == 0, status
    # Whatever else the machine does: some are killed, some are not.
    span_s = span_s * 1.1 if was_killed else (span_s + time.monotonic() - began) / 2
    with EventLog(ledger, create=False) as log:
        log.recover()
    after = rows(ledger)
    now = [name for name in known if known[name] == after]
    assert now, f"turn {turns}: neither old nor new: {len(after)} rows"
    assert now == [stands] or now == [wanted]
    if not was_killed:
        assert now == [wanted]
    stands = now[0]
    found[stands] += 1
    # Safety copies are whole, but for the one that a dying process was at.
    for name in os.listdir(os.path.dirname(ledger)):
        if ".before-restore-" in name and not name.endswith("-journal"):
            os.unlink(os.path.join(os.path.dirname(ledger), name))
    if how == "steps" and not was_killed:
        break
print(turns, killed, found["old"], found["new"])
"""


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("how", ["steps", "random"])
def test_who_is_killed_leaves_the_old_or_the_new(tmp_path: Path, journal: str, how: str) -> None:
    """SIGKILL before each step of the copies, the committing one included, and at random moments."""
    folder = tmp_path / "here"
    folder.mkdir()
    ledger = make(str(folder / "ledger.db"), "Old", 400, journal)
    backup = make(str(tmp_path / "backup.db"), "New", 800)
    seed = str(int(time.time()))
    ended = run_python(KILLED, ledger, backup, how, seed)
    assert ended.returncode == 0, (seed, ended.stderr)
    turns, killed, old, new = map(int, ended.stdout.split())
    assert old + new == turns
    if how == "steps":
        assert (killed, new) == (turns - 1, 1)
        assert killed > 10
    else:
        assert killed, (seed, ended.stdout)
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)


def test_a_signal_ends_it_in_order(place: tuple[str, str]) -> None:
    """SIGTERM while it waits: nothing is changed, and nothing stays."""
    ledger, backup = place
    before = set(os.listdir(os.path.dirname(ledger)))
    holder = ledgers.python(BUSY, ledger, "BEGIN IMMEDIATE")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    process = subprocess.Popen(
        [sys.executable, "-m", "pmm_shm_cli", "restore", backup, ledger],
        env=environment(),
        stderr=subprocess.PIPE,
    )
    until(lambda: is_open(process.pid, ledger), "it waits")
    process.terminate()
    assert process.wait(DEADLINE_S) == 143
    assert process.communicate() == (None, b"")
    holder.communicate("\n")
    assert contents(ledger) != contents(backup)
    assert set(os.listdir(os.path.dirname(ledger))) <= {*before, "ledger.db-wal", "ledger.db-shm"}


def is_open(pid: int, path: str) -> bool:
    try:
        return any(os.readlink(one) == path for one in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


# One place that may be got wrong by Python or SQLite.


def test_pythons_backup_alone_would_wait_for_ever(place: tuple[str, str]) -> None:
    """Why `_refuse_to_sleep` is there: the progress callback is all that ends it."""
    ledger, backup = place
    holder = ledgers.python(BUSY, ledger, "BEGIN IMMEDIATE")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    codes: list[int] = []

    def progress(code: int, remaining: int, total: int) -> None:
        codes.append(code)
        if len(codes) == 3:
            raise InterruptedError

    source, target = ledgers.connect(backup), sqlite3.connect(ledger, timeout=0, isolation_level=None)
    try:
        with pytest.raises(InterruptedError):
            source.backup(target, progress=progress, sleep=0)
        assert [code & 0xFF for code in codes] == [5, 5, 5]
    finally:
        source.close(), target.close()
        holder.communicate("\n")
    shutil.rmtree(os.path.dirname(backup))
