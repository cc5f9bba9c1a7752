"""Full disks, read-only ones, maps that are full, power losses, and files that others have mapped.

The disks are real ones: small file systems in memory, which only root can mount.
"""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import DaemonAbsentError, DaemonError, LedgerUnwritableError, PmmShmError
from pmm_shm.instance.paths import Instance
from pmm_shm.store.environment import close, open_reader
from pmm_shm.wire import protocol
from pmm_shm_client import EventLog, commands, connect
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.daemons import environment, run_daemon, until
from tests.support.fork_daemon import ForkedDaemon

PACKAGES = ("pmm_shm", "server", "client")
NEVER = ("--verify-every", "0")
PAGE_BYTES = 4_096


def opens(start: int, count: int, text_bytes: int = 300) -> list[tuple[str, str, dict[str, Any]]]:
    """Commitments that stay open, so that their number says how many events there are."""
    return [
        ("commitment_open", "", {"cid": f"c{number}", "text": "t" * text_bytes})
        for number in range(start, start + count)
    ]


def append(ledger: str, start: int, count: int, text_bytes: int = 300) -> None:
    with EventLog(ledger) as log:
        log.append_many(opens(start, count, text_bytes))


def published(ledger: str) -> int:
    with connect(ledger, consistency="snapshot") as cache:
        return cache.metrics().as_of


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, free_bytes: int = 0) -> None:
        """Leave so much room, in whole pages."""
        with open(self._filler, "ab", buffering=0) as file:
            while (room := self.room_bytes()) > free_bytes:
                file.write(b"x" * min(room - free_bytes, 1 << 20))
        assert self.room_bytes() == free_bytes

    def free(self) -> None:
        self._filler.unlink()

    def room_bytes(self) -> int:
        numbers = os.statvfs(self.folder)
        return numbers.f_bavail * numbers.f_frsize

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """2 MiB, mounted for the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0755", "pmm-shm-test", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"a file system can be mounted by root only, and where that is allowed: {done.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


READER = """
import os, sys
from pmm_shm_client import connect
exact, published = connect(sys.argv[1]), connect(sys.argv[1], consistency="snapshot")
reads = 0
print("reads", flush=True)
while not os.path.exists(sys.argv[2]):
    for cache in (exact, published):
        frame = cache.frame()
        assert len(frame.commitments().open) == frame.as_of, (len(frame.commitments().open), frame.as_of)
    reads += 1
print(reads, exact._reader.replays, exact._reader.snapshots.locator.failure, flush=True)
"""


class Reader:
    """A process that reads all the time, exact and snapshot, and compares the number of events with the answer."""

    def __init__(self, ledger: str, stop: Path) -> None:
        self._stop = stop
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, ledger, str(stop)], env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "reads\n"

    def end(self) -> None:
        self._stop.touch()
        out, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, "a reader died, or read a wrong answer"
        reads, replays, failure = out.strip().split(maxsplit=2)
        assert int(reads) > 0
        assert (replays, failure) == ("0", "None")


@pytest.fixture
def read_on(tmp_path: Path) -> Iterator[Callable[[str], Reader]]:
    readers: list[Reader] = []

    def start(ledger: str) -> Reader:
        readers.append(Reader(ledger, tmp_path / "stop"))
        return readers[-1]

    yield start
    for reader in readers:
        reader.process.kill()
        reader.process.communicate()


# A full disk.


def test_a_full_disk_below_the_store_leaves_the_old_snapshot(
    ledger: str,
    disk: Disk,
    start_daemon: StartDaemon,
    read_on: Callable[[str], Reader],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 16: the daemon says that it cannot publish, nobody gets a SIGBUS, and all goes on when there is room."""
    monkeypatch.setenv("PMM_SHM_DIR", str(disk.folder))
    append(ledger, 0, 100)
    daemon = start_daemon(ledger, *NEVER)
    reader = read_on(ledger)
    disk.fill()
    append(ledger, 100, 2_000)
    numbers = until(lambda: (found := daemon.stats())["problem"] and found, "the daemon says so")
    assert str(daemon.instance.directory) in numbers["problem"]
    assert "No space left" in numbers["problem"]
    assert numbers["health"] == "degraded"
    before = published(ledger)
    assert before < 2_100
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        # A new reader needs a place in the table of readers, and its pages.
        latecomer = read_on(ledger)
        append(ledger, 2_100, 10)
        assert cache.metrics().as_of == 2_110
        assert published(ledger) == before
        disk.free()
        daemon.wait_published(2_110)
        until(lambda: daemon.stats()["problem"] is None, "the daemon has recovered")
        assert cache.verify().ok
        assert everything(cache) == replayed(ledger)
    reader.end()
    latecomer.end()
    assert published(ledger) == 2_110


@pytest.mark.parametrize("pages", [0, 1, 2, 4, 12, 20, 21, 22, 24, 32, 48])
def test_a_start_with_little_room(
    ledger: str, disk: Disk, monkeypatch: pytest.MonkeyPatch, pages: int, tmp_path: Path
) -> None:
    """It ends with one line, or serves and says that it cannot publish; with room, the next start does all."""
    monkeypatch.setenv("PMM_SHM_DIR", str(disk.folder))
    append(ledger, 0, 500)
    disk.fill(pages * PAGE_BYTES)
    instance = Instance.of(ledger)
    log = tmp_path / "log"
    with ForkedDaemon(Path(ledger), *NEVER, "--log-format", "json", log=log, waits=False) as daemon:
        until(lambda: not daemon.is_alive or _problem(instance), "it ends, or says that the disk is full")
        if not daemon.is_alive:
            assert daemon.join(0) == 1, daemon.join(0)
            last = log.read_text(encoding="utf-8").splitlines()
            assert len(last) == 1
            assert last[0].startswith(f"pmm-cached: {instance.directory}")
            assert "No space left" in last[0]
        with connect(ledger) as cache:
            assert everything(cache) == replayed(ledger)
        disk.free()
        if daemon.is_alive:
            until(lambda: not _problem(instance), "it has recovered")
            assert published(ledger) == 500
    with ForkedDaemon(Path(ledger), *NEVER), connect(ledger) as cache:
        cache.wait_for(500)
        assert cache.verify().ok
        assert published(ledger) == 500
        assert everything(cache) == replayed(ledger)


def _problem(instance: Instance) -> Any:
    try:
        return commands.call(instance, protocol.STATS, {}, 1.0)["problem"]
    except DaemonError:
        return None


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_full_disk_below_the_ledger_loses_nothing(disk: Disk, journal: str, start_daemon: StartDaemon) -> None:
    ledger = str(disk.folder / "ledger.db")
    append(ledger, 0, 100)
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    with EventLog(ledger) as log, connect(ledger) as cache:
        assert cache.metrics().as_of == 100
        disk.fill(16 * PAGE_BYTES)
        head = 100
        while disk.room_bytes():
            try:
                head = log.append_many(opens(head, 5, 2_000))[-1]
            except LedgerUnwritableError:
                break
        for _ in range(3):
            with pytest.raises(LedgerUnwritableError, match=r"ledger\.db: .*full"):
                log.append_many(opens(head, 200, 2_000))
            assert log.verify_chain().ok
            assert [event["id"] for event in log.read_all()] == list(range(1, head + 1))
            assert everything(cache) == replayed(ledger)
        disk.free()
        assert log.append_many(opens(head, 20, 2_000)) == list(range(head + 1, head + 21))
        start_daemon(ledger, *NEVER)
        assert everything(cache) == replayed(ledger)
        assert log.verify_chain().ok
        assert cache.verify().ok


# A read-only disk.


def test_a_read_only_disk_is_one_line(disk: Disk) -> None:
    ledger = str(disk.folder / "ledger.db")
    append(ledger, 0, 100)
    ledgers.execute(ledger, "PRAGMA journal_mode = delete")
    disk.make_read_only()
    done = run_daemon(ledger)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"pmm-cached: {ledger}-cache")
    assert "Read-only file system" in lines[0]
    assert "PMM_SHM_DIR" in lines[0]
    with connect(ledger) as cache, EventLog(ledger) as log:
        assert everything(cache) == replayed(ledger)
        with pytest.raises(LedgerUnwritableError):
            log.append("user", "x", {})


def test_a_store_on_a_read_only_disk_is_one_line_and_is_read(
    ledger: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a daemon has left there can be read as before where LMDB can; reads are exact in any case."""
    monkeypatch.setenv("PMM_SHM_DIR", str(disk.folder))
    append(ledger, 0, 100)
    with ForkedDaemon(Path(ledger), *NEVER), connect(ledger) as cache:
        cache.wait_for(100)
    disk.make_read_only()
    done = run_daemon(ledger)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert str(Instance.of(ledger).directory) in done.stderr
    append(ledger, 100, 5)
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)


# A full map.


def test_the_map_grows_under_eight_readers(
    ledger: str, start_daemon: StartDaemon, read_on: Callable[[str], Reader]
) -> None:
    """Rows 7 and 8: six doublings, and each read is answered, with what is there."""
    append(ledger, 0, 20)
    daemon = start_daemon(ledger, *NEVER, "--map-size", str(1 << 16))
    readers = [read_on(ledger) for _ in range(8)]
    count, began = 20, daemon.stats()["map_growths"]
    while (growths := daemon.stats()["map_growths"] - began) < 6:
        assert count < 4_000, growths
        append(ledger, count, 40, 3_000)
        count += 40
        daemon.wait_published(count)
    for reader in readers:
        reader.end()
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        assert cache.verify().ok
    numbers = daemon.stats()
    assert numbers["problem"] is None
    assert _places(ledger) & {reader.process.pid for reader in readers} == set()


def _places(ledger: str) -> set[int]:
    """Pids in the table of readers; to look clears those of dead processes, and these left by themselves."""
    env = open_reader(Instance.of(ledger).directory)
    assert env is not None
    try:
        return {int(line.split()[0]) for line in env.env.readers().splitlines() if line.split()[0].isdigit()}
    finally:
        close(env)


# Power losses.


def kill_with_older_copy(ledger: str, start_daemon: StartDaemon) -> bytes:
    """A daemon that published 300 events and was killed at 500; what its data file was at 300."""
    append(ledger, 0, 300)
    daemon = start_daemon(ledger, *NEVER)
    until(lambda: daemon.stats()["embeddings"]["tables"], "the indexer stands")
    daemon.kill()
    older = daemon.instance.data_file.read_bytes()
    daemon = start_daemon(ledger, *NEVER)
    for start in range(300, 500, 20):
        append(ledger, start, 20)
    daemon.wait_ready()
    daemon.kill()
    return older


def put(instance: Instance, data: bytes, **mark: Any) -> None:
    """Another data file, as a disk may hold it after a power loss, and the mark beside it."""
    temporary = instance.data_file.with_name("torn")
    temporary.write_bytes(data)
    temporary.replace(instance.data_file)
    instance.data_file.with_name("lock.mdb").unlink()
    if mark:
        instance.boot_file.write_text(json.dumps(mark))


def pages_of(data: bytes) -> list[bytes]:
    return [data[start : start + PAGE_BYTES] for start in range(0, len(data), PAGE_BYTES)]


def zeroed(data: bytes, older: bytes, chance: random.Random) -> bytes:
    return b"".join(bytes(PAGE_BYTES) if chance.random() < 0.2 else page for page in pages_of(data))


def half_older(data: bytes, older: bytes, chance: random.Random) -> bytes:
    pages, others = pages_of(data), pages_of(older)
    return b"".join(
        others[number] if number < len(others) and chance.random() < 0.5 else page for number, page in enumerate(pages)
    )


def truncated(data: bytes, older: bytes, chance: random.Random) -> bytes:
    return data[: PAGE_BYTES * chance.randrange(1, len(data) // PAGE_BYTES)]


def newest_meta_only(data: bytes, older: bytes, chance: random.Random) -> bytes:
    """Both meta pages reached the disk, of the rest what was there before."""
    return data[: 2 * PAGE_BYTES] + older[2 * PAGE_BYTES :]


def half_a_meta(data: bytes, older: bytes, chance: random.Random) -> bytes:
    return data[:64] + bytes(PAGE_BYTES - 64) + data[PAGE_BYTES : PAGE_BYTES + 40] + data[2 * PAGE_BYTES - 40 :]


def nothing(data: bytes, older: bytes, chance: random.Random) -> bytes:
    return b""


TEARINGS = [zeroed, half_older, truncated, newest_meta_only, half_a_meta, nothing]
Tear = Callable[[bytes, bytes, random.Random], bytes]


def test_a_power_loss_means_a_new_store(ledger: str, start_daemon: StartDaemon) -> None:
    """Row 25: without the clean mark of this boot nothing of the file is believed, however good it looks."""
    older = kill_with_older_copy(ledger, start_daemon)
    instance = Instance.of(ledger)
    newest = instance.data_file.read_bytes()
    wanted = replayed(ledger)
    torn = [tear(newest, older, random.Random(1)) for tear in TEARINGS]
    for data in (older, newest, *torn):
        put(instance, data, boot_id="of another boot", clean=False)
        with connect(ledger) as cache, connect(ledger, consistency="snapshot") as snapshot:
            assert everything(cache) == wanted
            with pytest.raises(PmmShmError):
                snapshot.metrics()
            with ForkedDaemon(Path(ledger), *NEVER) as daemon:
                cache.wait_for(500)
                assert commands.call(instance, protocol.STATS, {}, 5.0)["rebuilds"] == 1
                assert everything(cache) == everything(snapshot) == wanted
                assert cache.verify().ok
                daemon.kill()


def test_an_older_store_that_was_stopped_well_catches_up(ledger: str, start_daemon: StartDaemon) -> None:
    """A restored backup of the directory, say: the anchor is found, and what was missed is folded, not more."""
    older = kill_with_older_copy(ledger, start_daemon)
    instance = Instance.of(ledger)
    put(instance, older, boot_id="of another boot", clean=True)
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        assert published(ledger) == 300
        with ForkedDaemon(Path(ledger), *NEVER):
            cache.wait_for(500)
            numbers = commands.call(instance, protocol.STATS, {}, 5.0)
            assert (numbers["rebuilds"], numbers["events_folded"]) == (0, 200)
            assert everything(cache) == replayed(ledger)
            assert published(ledger) == 500
            assert cache.verify().ok


def survive(ledger: str) -> list[str]:
    """Start daemons until one serves and has verified its state; what became of each."""
    instance, outcomes = Instance.of(ledger), []
    for _ in range(4):
        with ForkedDaemon(Path(ledger), *NEVER, waits=False) as daemon:
            outcome = _served(instance, daemon)
            if outcome in ("right", "wrong, rebuilt"):
                assert daemon.stop() == 0
                return [*outcomes, outcome]
            code = daemon.join(10.0)
            assert code is not None, outcome
            outcomes.append(signal.Signals(-code).name if code < 0 else f"exit {code}")
    # LMDB's own assertions end the process, and nothing tells the next start: see the architecture's weak points.
    assert set(outcomes) <= {"SIGABRT", "SIGSEGV", "SIGBUS", "exit 1"}, outcomes
    instance.boot_file.unlink()
    with ForkedDaemon(Path(ledger), *NEVER) as daemon:
        assert _served(instance, daemon) == "right"
        assert daemon.stop() == 0
    return [*outcomes, "right without boot.json"]


def _served(instance: Instance, daemon: ForkedDaemon) -> str:
    deadline = time.monotonic() + 20.0
    was_wrong = False
    while daemon.is_alive and time.monotonic() < deadline:
        try:
            commands.call(instance, protocol.PING, {}, 1.0)
            commands.call(instance, protocol.WAIT, {"event_id": 500, "timeout_ms": 5_000}, 6.0)
            report = commands.call(instance, protocol.VERIFY, {"fold": None}, 10.0)
        except DaemonAbsentError:
            time.sleep(0.005)
            continue
        except DaemonError:
            continue
        if report["ok"] and report["folds"] and report["as_of"] == 500:
            return "wrong, rebuilt" if was_wrong else "right"
        was_wrong = was_wrong or not report["ok"]
    return "ended" if not daemon.is_alive else "neither serves nor ends"


@pytest.mark.parametrize("tear", TEARINGS)
@pytest.mark.slow
def test_a_torn_store_under_the_same_boot_is_survived(ledger: str, tear: Tear, start_daemon: StartDaemon) -> None:
    """No power loss does this, a broken disk may: a start makes it anew, a verification finds it, or LMDB ends each
    daemon, until somebody removes `boot.json`.
    """
    older = kill_with_older_copy(ledger, start_daemon)
    instance = Instance.of(ledger)
    newest, mark = instance.data_file.read_bytes(), json.loads(instance.boot_file.read_text())
    for seed in range(3):
        put(instance, tear(newest, older, random.Random(seed)), **mark)
        survive(ledger)
        with connect(ledger) as cache:
            assert everything(cache) == replayed(ledger)
        assert published(ledger) == 500


# Files that others have mapped.

HOLDER = """
import hashlib, sys
from pathlib import Path
from pmm_shm.store.environment import open_reader
env = open_reader(Path(sys.argv[1]))

def digest(transaction):
    with transaction.cursor() as cursor:
        return hashlib.sha256(b"".join(key + value for key, value in cursor)).hexdigest()

with env.read() as held:
    print(digest(held), flush=True)
    for _ in sys.stdin:
        with env.read() as transaction:
            print(digest(held), digest(transaction), flush=True)
"""


def test_a_store_that_is_made_anew_leaves_old_maps_alone(ledger: str, start_daemon: StartDaemon) -> None:
    """Row 17: who reads the old file goes on reading it, to its last page."""
    append(ledger, 0, 500)
    daemon = start_daemon(ledger, *NEVER)
    daemon.kill()
    instance = daemon.instance
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(instance.directory)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdin is not None
        assert holder.stdout is not None
        digest = holder.stdout.readline().strip()
        before = instance.data_file.stat().st_ino
        instance.boot_file.write_text(json.dumps({"boot_id": "of another boot", "clean": False}))
        again = start_daemon(ledger, *NEVER)
        assert instance.data_file.stat().st_ino != before
        append(ledger, 500, 50)
        again.wait_published(550)
        holder.stdin.write("look\n")
        holder.stdin.flush()
        assert holder.stdout.readline().split() == [digest, digest]
        out, _ = holder.communicate(timeout=10)
        assert (out, holder.returncode) == ("", 0)
    finally:
        holder.kill()
        holder.communicate()


# Module to what may shorten a file there, and which: none of these is mapped by anybody.
SHORTENS = {
    "server/pmm_cached/instance_lock.py": ["ftruncate"],  # daemon.lock
    "pmm_shm/instance/access.py": ["w"],  # A temporary file, to be renamed.
    "client/pmm_shm_cli/benchmark.py": ["wb"],  # The log of a daemon on a copy.
    "client/pmm_shm_cli/commands/plot.py": ["write_bytes"],  # The figure.
    "client/pmm_shm_cli/top_view.py": ["truncate"],  # A line of text.
}


def test_nothing_shortens_a_file_in_place() -> None:
    """Row 17: a page that is gone is a SIGBUS in every process that has it mapped. Write anew, and rename."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in (ledgers.ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for what in _shortenings(node):
                    found.setdefault(str(path.relative_to(ledgers.ROOT)), []).append(what)
    assert found == SHORTENS


def _shortenings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Attribute, ast.Name)):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if name in ("truncate", "ftruncate", "O_TRUNC", "write_text", "write_bytes", "copyfile"):
            yield name
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("open", "fdopen"):
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and "w" in argument.value:
                    yield argument.value
