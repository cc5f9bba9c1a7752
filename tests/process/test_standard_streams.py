"""A daemon whose stderr takes nothing, is closed, or that has no thread for commands any more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_cached.commands import CommandServer
from pmm_cached.logs import configure
from pmm_cached.status import Status
from pmm_shm.errors import DaemonAbsentError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints
from tests.support import daemons, ledgers
from tests.support.daemons import environment, until


def close_all() -> None:
    for descriptor in (0, 1, 2):
        os.close(descriptor)


def close_stderr() -> None:
    os.close(2)


def full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def reader_gone() -> None:
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(read)


@pytest.mark.parametrize("spoil", [close_all, close_stderr, full_disk, reader_gone])
def test_a_daemon_serves_without_a_place_for_its_log(ledger: str, spoil: Callable[[], None]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "pmm_cached", ledger], env=environment(), preexec_fn=spoil)
    try:
        instance = Instance.of(ledger)
        until(lambda: answers(instance, process), "the daemon answers")
        # What it complains of must not end the thread that complains.
        for _ in range(3):
            ledgers.execute(ledger, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'x', '', '{')")
            daemons.commands.call(instance, protocol.STATS, {}, 10.0)
        if spoil is close_all:
            # SQLite, which comes first, keeps all databases away from where a library prints.
            files = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 1, 2)}
            assert files == {os.devnull}
        process.terminate()
        assert process.wait(daemons.DEADLINE_S) in (0, 120)  # 120: Python could not flush stderr at its exit.
    finally:
        process.kill()
        process.wait()


def answers(instance: Instance, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the daemon has ended"
    try:
        return bool(daemons.commands.call(instance, protocol.STATS, {}, 10.0)["is_published"])
    except DaemonAbsentError:
        return False


def test_a_daemon_does_not_go_on_without_its_thread_for_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    endpoints = Endpoints(*(str(folder / name) for name in ("commands", "admin", "announcements")), os.getpid())
    nothing: Any = type("Nothing", (), {"has": lambda *_: False})()
    server = CommandServer(endpoints, nothing, nothing, Status("x"), configure("json", "error"), bool, ended.append)

    def fail() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(server._dispatcher, "advance", fail)
    server.start()
    try:
        server.announce(1, 1)
        until(lambda: ended, "somebody is told")
    finally:
        server.stop()
    assert len(ended) == 1
    assert ended[0].startswith("commands ended: this process is out of file descriptors")


def test_a_path_that_lmdb_cannot_open_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"not-utf8-\xff")
    folder.mkdir()
    path = str(folder / "ledger.db")
    EventLog(path).close()
    ended = daemons.run_daemon(path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr
    assert "set PMM_SHM_DIR" in ended.stderr
    assert not Path(path + "-cache").exists()
