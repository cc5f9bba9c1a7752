"""Full disks, read-only ones, maps that are full, power losses, and files that others have mapped.

The disks are real ones: small file systems in memory, which only root can mount.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmm_shm.errors import LedgerUnwritableError, PmmShmError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm_client import EventLog, commands, connect
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.daemons import environment, run_daemon, until
from tests.support.fork_daemon import ForkedDaemon
from tests.support.torn_stores import (
    NEVER,
    PAGE_BYTES,
    TEARINGS,
    _places,
    _problem,
    append,
    kill_with_older_copy,
    opens,
    published,
    put,
)


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
import os, sys, time
from pmm_shm_client import connect
exact, published = connect(sys.argv[1]), connect(sys.argv[1], consistency="snapshot")
reads = 0
print("reads", flush=True)
while not os.path.exists(sys.argv[2]):
    for cache in (exact, published):
        frame = cache.frame()
        assert len(frame.commitments().open) == frame.as_of, (len(frame.commitments().open), frame.as_of)
    reads += 1
    # Eight of them would leave the daemon no processor.
    time.sleep(0.001)
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


# Power losses.


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
