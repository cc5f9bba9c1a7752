"""`pmm-shm backup`: a whole copy beside writers and the daemon, or no file at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pmm_shm import errors
from pmm_shm.ledger import backup as backing_up
from pmm_shm.ledger import new_file
from pmm_shm.ledger.backup import backup
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from tests.conftest import StartDaemon
from tests.support import forking, ledgers, workers
from tests.support.daemons import DEADLINE_S, environment, run_python, until
from tests.support.restoring import AS_NOBODY, BUSY, dead_writer, without_table
from tests.support.workers import EVENT_LOG, FOREIGN, PROMISES, contents, journal_of, make, working

JOURNALS = ("wal", "delete")
HEAD = PROMISES + 1


def cli(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return forking.run("pmm_shm_cli.main:main", ["pmm-shm", *arguments], environment(**env))


def temporary_files(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".new")]


def schema(path: str) -> list[tuple[str]]:
    return ledgers.execute(path, "SELECT sql FROM sqlite_master ORDER BY name")


# The copy.


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_copy_holds_every_byte_and_restores(tmp_path: Path, journal: str) -> None:
    ledger = make(str(tmp_path / "ledger.db"), "Old", 300, journal)
    ledgers.execute(ledger, "DELETE FROM events WHERE id IN (7, 9)")
    file = str(tmp_path / "backup.db")
    done = backup(ledger, file)
    size_bytes = os.stat(file).st_size
    assert done == backing_up.BackedUp(ledger, file, HEAD + 298, HEAD + 300, size_bytes)
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert ledgers.raw_rows(file) == ledgers.raw_rows(ledger)
    assert schema(file) == schema(ledger)
    # Without side files, so one file is the whole backup.
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith("backup")) == ["backup.db"]
    rows = ledgers.raw_rows(ledger)
    with EventLog(ledger) as log:
        log.append("user", "later")
    restore(file, ledger, chain=False)
    assert ledgers.raw_rows(ledger) == rows
    assert journal_of(ledger) == journal


@pytest.mark.parametrize("hashed", [True, False])
def test_hostile_rows_are_kept(tmp_path: Path, hashed: bool) -> None:
    ledger, file = ledgers.build_hostile(tmp_path / "ledger.db", hashed=hashed), str(tmp_path / "backup.db")
    backup(ledger, file)
    types = "SELECT id, typeof(kind), typeof(content), typeof(meta) FROM events"
    assert ledgers.raw_rows(file) == ledgers.raw_rows(ledger)
    assert ledgers.execute(file, types) == ledgers.execute(ledger, types)


def test_ids_are_kept_where_they_are_not_rowids(tmp_path: Path) -> None:
    ledger, file = str(tmp_path / "ledger.db"), str(tmp_path / "backup.db")
    connection = ledgers.connect(ledger)
    connection.execute("CREATE TABLE events (id INT PRIMARY KEY, ts, kind, content, meta)")
    connection.executemany("INSERT INTO events VALUES (?, 't', 'k', '', '{}')", [(2,), (40,), (41,), (900,)])
    connection.execute("DELETE FROM events WHERE id = 40")
    connection.close()
    assert backup(ledger, file).head_id == 900
    assert ledgers.raw_rows(file) == ledgers.raw_rows(ledger)


@pytest.mark.parametrize("journal", JOURNALS)
def test_it_ends_beside_writers_and_the_daemon(tmp_path: Path, journal: str, start_daemon: StartDaemon) -> None:
    """Ten appends a second, which keep SQLite's stepped backup starting again for ever."""
    ledger, file = str(tmp_path / "ledger.db"), str(tmp_path / "backup.db")
    ledgers.build(ledger, 0, journal=journal)
    # Another table makes the file large: the daemon would have to embed events.
    ledgers.execute(ledger, "CREATE TABLE padding AS SELECT randomblob(60000000)")
    daemon = start_daemon(ledger, "--verify-every", "0")
    with working(ledger, log=(EVENT_LOG, 0.1), foreign=(FOREIGN, 0.1)) as processes:
        until(lambda: len(contents(ledger)) > 20, "writers write")
        began = time.monotonic()
        done = backup(ledger, file)
        assert time.monotonic() - began < 20
        results = {name: worker.end() for name, worker in processes.items()}
    for result in results.values():
        assert result["failure"] is None
        assert result["done"]
    assert ledgers.raw_rows(file) == [row for row in ledgers.raw_rows(ledger) if row[0] <= done.head_id]
    daemon.wait_published(ledgers.execute(ledger, "SELECT max(id) FROM events")[0][0])
    assert daemon.stats()["problem"] is None


def test_the_command_line(tmp_path: Path) -> None:
    ledger = make(str(tmp_path / "ledger.db"), "Old", 50)
    file = str(tmp_path / "backup.db")
    done = cli("backup", ledger, file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{file}: {HEAD + 50} events of {ledger}, as of event {HEAD + 50}\n"
    assert cli("verify", file).returncode == 0
    done = cli("backup", file + "2", "--json", PMM_DB=ledger)
    size_bytes = os.stat(file).st_size
    assert json.loads(done.stdout) == {
        "ledger": ledger, "backup": file + "2", "events": HEAD + 50, "head_id": HEAD + 50, "size_bytes": size_bytes,
    }  # fmt: skip
    done = cli("backup", ledger, file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pmm-shm: {file}: exists already; choose another path\n"
    assert cli("restore", file, ledger).returncode == 0
    assert "appends wait until the copy is complete" in " ".join(cli("backup", "--help").stdout.split())


# Refused, with no file made.


def existing(file: str) -> None:
    Path(file).write_text("of another program", encoding="utf-8")


def dangling_link(file: str) -> None:
    os.symlink(file + ".target", file)
    Path(file + ".target-wal").touch()


def journal_beside(file: str) -> None:
    Path(file + "-journal").write_text("of another database", encoding="utf-8")


@pytest.mark.parametrize("occupy", [existing, dangling_link, journal_beside])
def test_an_existing_file_is_refused(tmp_path: Path, occupy: Callable[[str], None]) -> None:
    ledger, file = make(str(tmp_path / "ledger.db"), "Old", 5, "delete"), str(tmp_path / "backup.db")
    occupy(file)
    before = {name: os.lstat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}
    with pytest.raises(errors.LedgerUnwritableError, match="exists already"):
        backup(ledger, file)
    assert {name: os.lstat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)} == before


def test_a_path_that_is_not_utf_8_is_refused_in_one_line(tmp_path: Path) -> None:
    ledger, folder = make(str(tmp_path / "ledger.db"), "Old", 5), tmp_path / "backups"
    folder.mkdir()
    done = cli("backup", ledger, str(folder / os.fsdecode(b"\xff.db")))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.endswith("that is UTF-8; nothing was written\n")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, file = make(str(tmp_path / "ledger.db"), "Old", 5), tmp_path / "backup.db"
    copy = backing_up._copy

    def copy_and_write(*arguments: object) -> None:
        copy(*arguments)  # type: ignore[arg-type]
        file.write_text("newer", encoding="utf-8")

    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(backing_up, "_copy", copy_and_write)
    if not has_links:
        monkeypatch.setattr(new_file.os, "link", refuse)
    with pytest.raises(errors.LedgerUnwritableError, match="exists already"):
        backup(ledger, file)
    assert file.read_text(encoding="utf-8") == "newer"
    assert temporary_files(tmp_path) == []
    file.unlink()
    monkeypatch.setattr(backing_up, "_copy", copy)
    backup(ledger, file)
    assert ledgers.raw_rows(file) == ledgers.raw_rows(ledger)
    assert (os.stat(file).st_mode & 0o777, temporary_files(tmp_path)) == (0o600, [])


def test_what_a_killed_backup_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    ledger, file = make(str(tmp_path / "ledger.db"), "Old", 5), tmp_path / "backup.db"
    code = "import sys, time; from pmm_shm.ledger.new_file import staged\n"
    code += "with staged(sys.argv[1]) as path: print(path, flush=True); time.sleep(60)"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        living = Path(writer.stdout.readline().strip())
        backup(ledger, file)
        assert temporary_files(tmp_path) == [living.name], "a living writer keeps its file"
    finally:
        writer.kill()
        writer.communicate()
    assert living.exists()
    Path(f"{living}-journal").touch()
    # The backup itself, by a second name: its writer was killed between two steps.
    os.link(file, tmp_path / ".backup.db.0123abcd.new")
    kept = {".backup.db.note.new", ".other.db.0123abcd.new", ".backup.db.0123abcde.new"}
    for name in kept:
        (tmp_path / name).touch()
    os.symlink(file, tmp_path / ".backup.db.89abcdef.new")
    rows = ledgers.raw_rows(file)
    os.rename(file, tmp_path / "moved.db")
    backup(ledger, file)
    assert set(temporary_files(tmp_path)) == {*kept, ".backup.db.89abcdef.new"}
    assert ledgers.raw_rows(tmp_path / "moved.db") == ledgers.raw_rows(file) == rows


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.db-journal"])
@pytest.mark.parametrize("journal", JOURNALS)
def test_the_ledgers_own_files_are_refused(tmp_path: Path, name: str, journal: str) -> None:
    ledger = make(str(tmp_path / "ledger.db"), "Old", 5, journal)
    before = ledgers.raw_rows(ledger)
    with pytest.raises(errors.LedgerUnwritableError, match=rf"{name}: this is the ledger or one of its own files"):
        backup(ledger, tmp_path / name)
    assert ledgers.raw_rows(ledger) == before


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (os.unlink, errors.LedgerNotFoundError),
        (without_table, errors.NotALedgerError),
        (lambda path: Path(path).write_text("no database\n" * 100, encoding="utf-8"), errors.NotALedgerError),
        (lambda path: os.truncate(path, 0), errors.NotALedgerError),
    ],
)
def test_only_a_ledger_is_backed_up(
    tmp_path: Path, spoil: Callable[[str], None], error: type[errors.LedgerError]
) -> None:
    ledger = make(str(tmp_path / "ledger.db"), "Old", 5, "delete")
    spoil(ledger)
    with pytest.raises(error) as caught:
        backup(ledger, tmp_path / "backup.db")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "backup.db").exists()


@pytest.mark.parametrize("file", ["", ":memory:", "file:x.db", "folder/"])
def test_what_is_not_the_path_of_a_file(ledger: str, file: str) -> None:
    with pytest.raises(errors.ConfigError, match="give the path of a file"):
        backup(ledger, file)


def test_a_directory_that_is_missing_or_cannot_be_written(ledger: str, tmp_path: Path) -> None:
    with pytest.raises(errors.LedgerUnwritableError, match="no such directory"):
        backup(ledger, tmp_path / "no" / "backup.db")
    code = AS_NOBODY.replace("ledger.restore import restore", "ledger.backup import backup as restore")
    with tempfile.TemporaryDirectory() as folder:
        made = make(f"{folder}/ledger.db", "Old", 5, "delete")
        for path in (folder, made):
            os.chmod(path, 0o555)
        assert run_python(code, made, f"{folder}/backup.db").stdout.startswith("LedgerUnwritableError: ")
        assert os.listdir(folder) == ["ledger.db"]


def test_a_disk_without_room(tmp_path: Path) -> None:
    workers.skip_without_root()
    ledger = make(str(tmp_path / "ledger.db"), "Old", 2_000)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount")
    try:
        with pytest.raises(errors.LedgerUnwritableError, match=r"backup\.db: .*; nothing was written"):
            backup(ledger, disk / "backup.db")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


# A dead writer's journal, a busy ledger, a signal.


def test_what_a_dead_writer_left_is_rolled_back(tmp_path: Path) -> None:
    ledger = make(str(tmp_path / "ledger.db"), "Old", 300, "delete")
    before = ledgers.raw_rows(ledger)
    dead_writer(ledger)
    backup(ledger, tmp_path / "backup.db")
    assert ledgers.raw_rows(tmp_path / "backup.db") == before


def test_a_busy_ledger(tmp_path: Path) -> None:
    ledger, file = make(str(tmp_path / "ledger.db"), "Old", 5, "delete"), tmp_path / "backup.db"
    holder = ledgers.python(BUSY, ledger, "BEGIN EXCLUSIVE")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    try:
        with pytest.raises(errors.LedgerBusyError, match=ledger):
            backup(ledger, file, timeout=0.3)
    finally:
        holder.communicate("\n")
    assert sorted(os.listdir(tmp_path)) == ["ledger.db"]
    assert backup(ledger, file).events == HEAD + 5


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ledger of 140 MB, alone in its folder."""
    ledger = make(str(tmp_path_factory.mktemp("large") / "ledger.db"), "Old", 5)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200000)"
    ledgers.execute(ledger, f"CREATE TABLE padding AS {numbers} SELECT i, randomblob(700) FROM n")
    return ledger


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_a_signal_ends_it_at_once_and_leaves_no_file(large: str, number: int, code: int) -> None:
    folder = Path(large).parent
    before = set(os.listdir(folder))
    process = subprocess.Popen(
        [sys.executable, "-m", "pmm_shm_cli", "backup", large, str(folder / "backup.db")],
        env=environment(),
        stderr=subprocess.PIPE,
    )
    until(lambda: temporary_files(folder), "it copies")
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == code
    assert process.communicate() == (None, b"")
    assert set(os.listdir(folder)) <= {*before, "ledger.db-wal", "ledger.db-shm"}


def test_a_backup_that_cannot_get_its_name_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an empty file, where the file system has no hard links, nor where linking fails for another reason."""
    ledger = make(str(tmp_path / "ledger.db"), "Old", 5, "delete")

    def fails(number: int) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    for link, replace in ((errno.EIO, None), (errno.EPERM, errno.EIO)):
        monkeypatch.setattr(os, "link", fails(link))
        if replace is not None:
            monkeypatch.setattr(os, "replace", fails(replace))
        with pytest.raises(errors.LedgerUnwritableError, match="nothing was written"):
            backup(ledger, tmp_path / "backup.db")
        assert not (tmp_path / "backup.db").exists()
        assert temporary_files(tmp_path) == []
