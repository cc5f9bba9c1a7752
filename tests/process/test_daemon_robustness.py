"""The daemon and its clients when files, directories and processes go away or are damaged."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import lmdb
import pytest

from pmm_shm import limits
from pmm_shm.errors import CommandError, DaemonAbsentError, DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.store import boot
from pmm_shm.store.environment import DamagedStoreError, KeyCursor, Transaction, close, open_reader
from pmm_shm.store.snapshot import Attachment, LmdbBase, SnapshotReader
from pmm_shm.store.writer import StoreWriter
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import check_listening
from pmm_shm_client import connect, connect_async
from pmm_shm_client.commands import call
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import make_ledger
from tests.support.polling import DEADLINE_S, until


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with EventLog(path) as log:
        log.append_many([("commitment_open", f"t{i}", {"cid": f"c{i}", "text": "x" * 100}) for i in range(300)])
    return path


def _publish(ledger: Path) -> None:
    """Leave what a daemon leaves that was killed."""
    with ForkedDaemon(ledger) as daemon, connect(ledger) as cache:
        until(lambda: cache.stats()["daemon"] is not None, "the daemon")
        cache.wait_for(300, 10)
        daemon.kill()


def _ended(ledger: Path) -> tuple[int, list[str]]:
    """Exit code and stderr of a daemon that is expected to end by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "pmm_cached", str(ledger)], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stderr.strip().splitlines()


# The instance directory.


def test_daemon_ends_when_its_directory_is_gone(ledger: Path) -> None:
    instance = Instance.of(ledger)
    with ForkedDaemon(ledger) as first, connect(ledger) as cache:
        # Out of the way first: the daemon may be making a file in it.
        shutil.rmtree(instance.directory.rename(instance.directory.with_name("removed")))
        assert len(cache.commitments().open) == 300
        until(lambda: not first.is_alive, "the daemon to end")
        assert first.stop() == 1
        assert not instance.directory.exists()


def test_daemon_leaves_what_is_its_successors(ledger: Path) -> None:
    instance = Instance.of(ledger)
    with ForkedDaemon(ledger) as first:
        first.freeze()
        instance.directory.rename(instance.directory.with_name("old"))
        with ForkedDaemon(ledger) as second:
            first.thaw()
            until(lambda: not first.is_alive, "the first daemon to end")
            assert first.stop() == 1
            assert json.loads(instance.boot_file.read_text())["clean"] is False
            assert call(instance, protocol.PING, {}, 2.0)["pid"] == second.pid
            assert second.stop() == 0
    assert json.loads(instance.boot_file.read_text())["clean"] is True


# Dead readers.


def test_daemon_frees_what_a_dead_reader_pins(ledger: Path) -> None:
    with ForkedDaemon(ledger):
        instance = Instance.of(ledger)
        code = (
            "import os, sys; from pmm_shm.instance.paths import Instance\n"
            "from pmm_shm.store.environment import open_reader\n"
            "env = open_reader(Instance.of(sys.argv[1]).directory)\n"
            "with env.read() as t: t.get(b'x'); os.kill(os.getpid(), 9)"
        )
        dead = subprocess.run([sys.executable, "-c", code, str(ledger)], check=False)
        assert dead.returncode == -signal.SIGKILL
        environment = open_reader(instance.directory)
        assert environment is not None

        def pins() -> bool:
            fields = [line.split() for line in environment.env.readers().splitlines()]
            return any(f[2].isdigit() for f in fields if len(f) == 3 and f[0].isdigit())

        assert pins()
        until(lambda: not pins(), "the daemon to clear the dead reader", limits.DEAD_READERS_CHECK_S + 3)
        close(environment)


# A damaged environment.


def test_environment_is_made_anew_after_two_daemons_that_did_not_open_it(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One may have been killed by anybody, and what is in there may have cost money."""
    instance = Instance.of(ledger)
    _publish(ledger)
    before = instance.data_file.stat().st_ino
    os.link(instance.data_file, instance.directory / "kept")  # So that the inode is not taken again.

    def crash(*_: object) -> None:
        assert not boot.is_trusted(instance.boot_file)
        raise KeyboardInterrupt

    def start_and_crash() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("pmm_shm.store.making.open_writer", crash)
            with pytest.raises(KeyboardInterrupt):
                StoreWriter(instance)
        with SnapshotReader(instance).begin() as snapshot:
            assert snapshot is None

    def open_well() -> int:
        StoreWriter(instance).close()
        assert boot.is_trusted(instance.boot_file)
        return instance.data_file.stat().st_ino

    for _ in range(2):
        start_and_crash()
        assert open_well() == before
    start_and_crash()
    start_and_crash()
    assert open_well() != before


def test_truncated_data_file_is_made_anew(ledger: Path) -> None:
    instance = Instance.of(ledger)
    _publish(ledger)
    os.truncate(instance.data_file, 8192)
    with pytest.raises(DamagedStoreError, match="truncated"):
        open_reader(instance.directory)
    with connect(ledger) as cache:
        assert len(cache.commitments().open) == 300
        with ForkedDaemon(ledger):
            cache.wait_for(300, 10)
            assert cache.verify(timeout=10).ok


class _Damaged:
    """A transaction whose pages are damaged. (LMDB itself ends the process at some kinds of damage.)"""

    def get(self, _: bytes) -> bytes | None:
        raise lmdb.CorruptedError("page")

    def cursor(self) -> KeyCursor:
        raise lmdb.PageNotFoundError("page")


def test_errors_of_lmdb_do_not_leak(ledger: Path) -> None:
    _publish(ledger)
    base = LmdbBase(Attachment(cast(Transaction, _Damaged())), 1)
    with pytest.raises(DamagedStoreError):
        base.get(b"x")
    with pytest.raises(DamagedStoreError):
        list(base.scan(b"x"))
    reader = SnapshotReader(Instance.of(ledger))
    with contextlib.suppress(DamagedStoreError), reader.begin() as snapshot:
        assert snapshot is not None
        base.get(b"x")
    assert isinstance(reader.locator.failure, DamagedStoreError)
    with reader.begin() as snapshot:
        assert snapshot is None
    reader.close()


def test_error_of_a_transaction_is_no_snapshot(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(ledger)
    reader = SnapshotReader(Instance.of(ledger))

    def fail(*_: object) -> None:
        raise lmdb.CorruptedError("page")

    monkeypatch.setattr(reader, "_decoded", fail)
    with reader.begin() as snapshot:
        assert snapshot is None
    assert isinstance(reader.locator.failure, DamagedStoreError)
    reader.close()


# Damaged records.


@pytest.mark.parametrize("path", ["\ud800", "a\0b", "/nowhere/at/all"])
def test_bad_socket_path_is_an_os_error(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        check_listening(path)


@pytest.mark.parametrize("name", ["boot.json", "endpoints.json", "commands.sock", "data.mdb", "daemon.lock"])
def test_directory_in_the_place_of_a_file_is_one_line(name: str) -> None:
    # A short path, for where it is over the limit the sockets lie elsewhere.
    with tempfile.TemporaryDirectory() as place:
        ledger = Path(place) / "pmm.db"
        make_ledger(ledger)
        directory = Instance.of(ledger).directory
        directory.mkdir()
        (directory / name).mkdir()
        code, lines = _ended(ledger)
    assert code == 1
    assert len(lines) == 1, lines
    assert lines[0].startswith("pmm-cached: ")


# Commands when the daemon ends.


def _in_thread(action: Callable[[], object], outcome: list[BaseException]) -> threading.Thread:
    def run() -> None:
        try:
            action()
        except DaemonError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def until_taken(daemon: ForkedDaemon, before: int, count: int) -> None:
    """Wait until the daemon has `count` commands more than `before`, beside these looks, which are commands, too."""
    looks = itertools.count(1)
    until(lambda: daemon.stats()["commands"] >= before + next(looks) + count, "the commands arrive")


def test_command_ends_with_the_daemon(ledger: Path) -> None:
    outcome: list[BaseException] = []
    with ForkedDaemon(ledger) as daemon:
        instance = Instance.of(ledger)
        before = daemon.stats()["commands"]
        thread = _in_thread(
            lambda: call(instance, protocol.WAIT, {"event_id": 10_000, "timeout_ms": 60_000}, 60.0), outcome
        )
        until_taken(daemon, before, 1)
        daemon.kill()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert isinstance(outcome[0], DaemonAbsentError)


def test_command_is_not_the_next_daemons(ledger: Path) -> None:
    outcome: list[BaseException] = []
    with ForkedDaemon(ledger) as daemon:
        instance = Instance.of(ledger)
        before = daemon.stats()["commands"]
        thread = _in_thread(
            lambda: call(instance, protocol.WAIT, {"event_id": 10_000, "timeout_ms": 60_000}, 60.0), outcome
        )
        until_taken(daemon, before, 1)
        daemon.kill()
        with ForkedDaemon(ledger):
            thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert isinstance(outcome[0], DaemonAbsentError)


def test_awaited_command_ends_with_the_daemon(ledger: Path) -> None:
    async def run(daemon: ForkedDaemon) -> None:
        async with await connect_async(ledger) as cache:
            before = daemon.stats()["commands"]
            waiting = asyncio.create_task(cache.wait_for_async(10_000, 60.0))
            await asyncio.to_thread(until_taken, daemon, before, 1)
            daemon.kill()
            with pytest.raises(DaemonAbsentError):
                await asyncio.wait_for(waiting, DEADLINE_S)

    with ForkedDaemon(ledger) as daemon:
        asyncio.run(run(daemon))


def test_queued_jobs_are_answered_when_the_daemon_stops(ledger: Path) -> None:
    with EventLog(ledger) as log:
        for start in range(0, 200_000, 20_000):
            log.append_many([("user", f"u{i}", {}) for i in range(start, start + 20_000)])
    outcome: list[BaseException] = []
    instance = Instance.of(ledger)
    with ForkedDaemon(ledger, "--verify-every", "0") as daemon:
        # Where nothing is published yet, there is nothing to verify.
        assert call(instance, protocol.WAIT, {"event_id": 200_000, "timeout_ms": 60_000}, 65.0)["reached"]
        before = daemon.stats()["commands"]
        threads = [_in_thread(lambda: call(instance, protocol.VERIFY, {"fold": None}, 30.0), outcome)]
        # The long one is the first.
        until_taken(daemon, before, 1)
        before = daemon.stats()["commands"]
        threads += [
            _in_thread(lambda: call(instance, protocol.INVALIDATE, {"fold": "stage"}, 30.0), outcome),
            _in_thread(lambda: call(instance, protocol.VERIFY, {"fold": "stage"}, 30.0), outcome),
        ]
        until_taken(daemon, before, 2)
        assert daemon.stop() == 0
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
    assert [type(error) for error in outcome] == [CommandError] * 3
    assert all("stops" in str(error) for error in outcome)
