"""Another file at the ledger's path, while real writers, readers and the daemon have the old one open."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pmm_shm import errors, limits
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import command, ledgers
from tests.support.answers import everything, replayed
from tests.support.daemons import run_python, until
from tests.support.workers import EVENT_LOG, FOREIGN, READER, contents, make, working

NEVER = ("--verify-every", "0")
LOOK_S = 1.5


def sha256(*paths: str) -> list[str]:
    """Digests made by another process: here, closing a file of the ledger would drop SQLite's locks."""
    done = subprocess.run(["sha256sum", *paths], check=True, capture_output=True, text=True)
    return [row.split()[0] for row in done.stdout.splitlines()]


def newest(path: str) -> int:
    return int(ledgers.execute(path, "SELECT max(id) FROM events")[0][0])


def shown(ledger: str, file: Path) -> int:
    """The remedy for a ledger beside a `-wal` of unknown origin, word by word: its exit code."""
    return command.run("backup", ledger, str(file)).code or command.run("verify", str(file)).code


@pytest.mark.parametrize("foreign_end", ["killed", "ended"])
def test_a_rename_beside_a_full_wal_in_the_middle_of_appends(
    tmp_path: Path, foreign_end: str, start_daemon: StartDaemon
) -> None:
    """Ours stop by themselves; a foreign writer, which notices nothing, is stopped by the remedy. Nothing is lost."""
    ledger = make(str(tmp_path / "ledger.db"), "Old", 100)
    other = make(str(tmp_path / "other.db"), "New", 300)
    expected = replayed(other)
    daemon = start_daemon(ledger, *NEVER)
    crew = {f"log{number}": (EVENT_LOG, 0.001) for number in range(2)}
    with (
        working(ledger, foreign=(FOREIGN, 0.001), reader=(READER, 0.001), **crew) as processes,
        connect(ledger) as cache,
    ):
        head = newest(ledger)
        until(lambda: newest(ledger) > head + 100 and cache.metrics().as_of > head + 100, "all write")
        (new,) = sha256(other)
        wal_inode = os.stat(ledger + "-wal").st_ino
        os.replace(other, ledger)
        until(lambda: daemon.stats()["problem"], "the daemon stops following")
        problem = daemon.stats()["problem"]
        remedy = f"Stop all users of the ledger, then `pmm-shm backup {ledger} FILE` and `pmm-shm verify FILE` show"
        assert remedy in problem
        assert problem.endswith("the right way next time: `pmm-shm restore`")
        assert f'"problem": "{problem}"' in daemon.log.read_text(encoding="utf-8")

        def refused() -> bool:
            try:
                cache.metrics()
            except errors.LedgerReplacedError as error:
                return str(error) == problem
            return False

        until(refused, deadline_s=limits.REPLACEMENT_NOTICED_S)
        deadline = time.monotonic() + LOOK_S
        while time.monotonic() < deadline:
            # The foreign writer goes on in its file and its -wal.
            assert sha256(ledger) == [new]
            assert os.stat(ledger + "-wal").st_ino == wal_inode
            with pytest.raises(errors.LedgerReplacedError):
                cache.append("user", "lost")
        # Who comes now had nothing open, and must not open what the others refuse.
        for action in ("connect(path, timeout=0.3)", "EventLog(path, timeout=0.3).append('user', 'lost')"):
            code = f"import sys; path = sys.argv[1]; from pmm_shm_client import EventLog, connect; {action}"
            newcomer = run_python(code, ledger)
            assert f"LedgerReplacedError: {problem}" in newcomer.stderr
        assert sha256(ledger) == [new]
        assert os.stat(ledger + "-wal").st_ino == wal_inode
        assert daemon.stats()["problem"] == problem
        with pytest.raises(errors.LedgerReplacedError):
            cache.append("user", "lost")
        # The remedy, word by word: stop all users.
        if foreign_end == "killed":
            processes["foreign"].kill()
        else:
            assert processes["foreign"].end()["failure"] is None
        (wal,) = sha256(ledger + "-wal")
        for name in ("log0", "log1", "reader"):
            result = processes[name].end()
            assert result["failure"] == problem
            assert result.get("wrong", []) == []
        cache.close()
        assert daemon.stop() == 0
        assert sha256(ledger, ledger + "-wal") == [new, wal]
    # What both together hold is not ok: move the -wal to another name, then start again.
    assert shown(ledger, tmp_path / "shown.db") != 0
    assert sha256(ledger, ledger + "-wal") == [new, wal]
    os.rename(ledger + "-wal", str(tmp_path / "away-wal"))
    again = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache, working(ledger, **crew) as processes:
        assert replayed(ledger)["identity"] == expected["identity"]
        assert "foreign-0" not in contents(ledger)
        until(lambda: newest(ledger) > 400, "they write again")
        results = [worker.end() for worker in processes.values()]
        assert {token for result in results for _, _, token in result["done"]} <= contents(ledger)
        assert everything(cache) == replayed(ledger)
        again.wait_published(cache.metrics().as_of)
        with EventLog(ledger) as log:
            assert log.verify_chain().ok


KILLED_WRITER = """
import os, signal, sys
from pmm_shm_client import EventLog
log = EventLog(sys.argv[1], create=False)
print(log.append("identity_adopt", "newest"), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("replacements", [1, 2])
def test_the_remedy_keeps_what_is_new_in_a_wal_that_is_the_ledgers_own(tmp_path: Path, replacements: int) -> None:
    """A process that has seen neither the replacement nor the writer after it cannot know whose the -wal is."""
    ledger = make(str(tmp_path / "ledger.db"), "Old", 100)
    others = [make(str(tmp_path / f"other{number}.db"), "New", 100) for number in range(replacements)]
    with connect(ledger) as cache, EventLog(ledger) as log:
        log.append("user", "before")
        log.append("user", "again")
        ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)")
        assert cache.metrics().as_of == newest(ledger)
        for other in others:
            with EventLog(other) as made:
                made.append_many([("user", "before", {}), ("user", "again", {})])
            os.replace(other, ledger)
        done = run_python(KILLED_WRITER, ledger)
        assert done.returncode == -signal.SIGKILL, done.stderr
        appended = int(done.stdout)
        assert os.stat(ledger + "-wal").st_size > 0
        with pytest.raises(errors.LedgerReplacedError) as caught:
            log.append("user", "lost")
        assert "if not, first move" in str(caught.value)
    # All users have stopped. The -wal belongs to the ledger, as the backup shows: all start again.
    before = sha256(ledger, ledger + "-wal")
    assert shown(ledger, tmp_path / "shown.db") == 0
    assert sha256(ledger, ledger + "-wal") == before
    assert newest(str(tmp_path / "shown.db")) == appended
    with connect(ledger) as cache:
        assert cache.metrics().as_of == appended
        assert cache.identity().name == "newest"
        assert everything(cache) == replayed(ledger)
    with EventLog(ledger) as log:
        assert log.verify_chain().ok


RENAMER = """
import os, sqlite3, time
path, other = sys.argv[1:]
connection = sqlite3.connect(path, isolation_level=None, timeout=10)
while True:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.execute("BEGIN IMMEDIATE")
    if os.stat(path + "-wal").st_size == 0:
        break
    connection.execute("ROLLBACK")
time.sleep(0.3)
os.replace(other, path)
time.sleep(0.3)
print(time.monotonic(), flush=True)
connection.execute("ROLLBACK")
connection.close()
"""


def test_a_rename_beside_an_empty_wal_while_writers_run(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """Under the write lock, as a careful administrator would: writers that wait for it end up in the new file."""
    ledger = make(str(tmp_path / "ledger.db"), "Old", 100)
    other = make(str(tmp_path / "other.db"), "New", 300)
    daemon = start_daemon(ledger, *NEVER)
    crew = {f"log{number}": (EVENT_LOG, 0.005) for number in range(3)}
    with working(ledger, reader=(READER, 0.005), **crew) as processes, connect(ledger) as cache:
        head = newest(ledger)
        until(lambda: newest(ledger) > head + 50, "all write")
        renamer = ledgers.python(RENAMER, ledger, other)
        released = float(renamer.communicate(timeout=30)[0])
        until(lambda: cache.identity().name == "New", "followed")
        until(lambda: newest(ledger) > 400, "they write on")
        results = {name: worker.end() for name, worker in processes.items()}
    held = contents(ledger)
    for name in crew:
        result = results[name]
        assert result["failure"] is None
        late = [token for ended, _, token in result["done"] if ended >= released]
        assert late, name
        assert [token for token in late if token not in held] == []
    reader = results["reader"]
    assert (reader["wrong"], reader["failure"], reader["names"]) == ([], None, ["Old", "New"])
    assert reader["stands"][1] - released < limits.REPLACEMENT_NOTICED_S
    with connect(ledger) as cache, EventLog(ledger) as log:
        assert everything(cache) == replayed(ledger)
        assert log.verify_chain().ok
        daemon.wait_published(cache.metrics().as_of)
        assert daemon.stats()["problem"] is None
        with connect(ledger, consistency="snapshot") as published:
            until(lambda: everything(published) == replayed(ledger), "what is published equals a replay")


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_deleted_and_created_again(tmp_path: Path, journal: str, start_daemon: StartDaemon) -> None:
    """Meanwhile all say that it is not there; then all go on with the new one, which nobody's end harms."""
    ledger = make(str(tmp_path / "ledger.db"), "Old", 300, journal)
    daemon = start_daemon(ledger, *NEVER)
    crew = {"log": (EVENT_LOG, 0.002), "foreign": (FOREIGN, 0.002), "reader": (READER, 0.002)}
    with connect(ledger) as cache, EventLog(ledger) as log, working(ledger, **crew) as processes:
        head = newest(ledger)
        until(lambda: newest(ledger) > head + 50 and cache.metrics().as_of > head + 50, "all write")
        for suffix in ("", "-wal", "-shm"):
            Path(ledger + suffix).unlink(missing_ok=True)

        def is_missing() -> bool:
            try:
                cache.metrics()
            except errors.LedgerNotFoundError:
                return True
            return False

        until(is_missing, deadline_s=limits.REPLACEMENT_NOTICED_S)
        with pytest.raises(errors.LedgerNotFoundError):
            log.append("user", "nowhere")
        until(lambda: "no such file" in (daemon.stats()["problem"] or ""), "the daemon says so")
        made = make(str(tmp_path / "made.db"), "New", 20, journal)
        os.rename(made, ledger)
        until(lambda: name_of(cache) == "New", deadline_s=limits.REPLACEMENT_NOTICED_S)
        event_id = log.append("user", "to the new one")
        assert event_id > 61
        assert everything(cache)["identity"].startswith("('New'")
        until(lambda: newest(ledger) > event_id + 20, "the writer goes on")
        # Who still has the deleted file open ends; the new one, its -wal and its events stay.
        processes["foreign"].end()
        assert "to the new one" in contents(ledger)
        results = {name: processes[name].end() for name in ("log", "reader")}
        assert results["reader"]["wrong"] == []
        assert results["reader"]["names"] == ["Old", "New"]
        assert results["log"]["done"][-1][2] in contents(ledger)
        assert not any(token.startswith("foreign") for token in contents(ledger))
        assert everything(cache) == replayed(ledger)
        assert log.verify_chain().ok
        daemon.wait_published(cache.metrics().as_of)
        until(lambda: daemon.stats()["problem"] is None, "the daemon has recovered")
        with connect(ledger, consistency="snapshot") as published:
            until(lambda: everything(published) == replayed(ledger), "what is published equals a replay")


def name_of(cache: object) -> object:
    """The name that a read gives; None while there is nothing to read."""
    try:
        return cache.identity().name  # type: ignore[attr-defined]
    except errors.LedgerNotFoundError:
        return None


STRANGER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
try:
    connection.execute("SELECT count(*) FROM events").fetchall()
except sqlite3.DatabaseError:
    pass  # It reads by the index that is there; so do we without the look.
print("open", flush=True)
sys.stdin.readline()
connection.close()
"""


def test_an_index_that_old_users_left_is_waited_for(tmp_path: Path) -> None:
    """The last user of the old file is gone, and a program that came in between keeps its index: the new file, read by
    it, looks malformed until nobody has it open for a moment.
    """
    ledger = make(str(tmp_path / "ledger.db"), "Old", 10)
    other = make(str(tmp_path / "other.db"), "New", 3_000)
    expected = replayed(other)
    with ledgers.python(STRANGER, ledger) as old:
        assert old.stdout is not None
        assert old.stdout.readline() == "open\n"
        # What is written through the -wal and worked into the file leaves the file's size in the index.
        with EventLog(ledger) as log:
            log.append("user", "by the old index")
        assert os.stat(ledger + "-wal").st_size == 0
        os.replace(other, ledger)
        between = ledgers.python(STRANGER, ledger)
        assert between.stdout is not None
        assert between.stdout.readline() == "open\n"
        old.communicate("\n", timeout=30)
    (before,) = sha256(ledger)
    with pytest.raises(errors.NotALedgerError, match="malformed"):
        connect(ledger, timeout=0.1)
    assert sha256(ledger) == [before]
    with between:
        timer = threading.Timer(0.3, between.communicate, ["\n"])
        timer.start()
        with connect(ledger) as cache:
            assert everything(cache) == expected
            assert cache.append("user", "by the right one") == cache.metrics().as_of
        timer.join()
    with EventLog(ledger) as log:
        assert log.verify_chain().ok
