"""Whose daemon it is: told by device and inode of ledger and directory, never by a path or a record that was copied."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm.errors import DaemonAbsentError, SnapshotUnavailableError
from pmm_shm.instance.paths import Instance, file_id
from pmm_shm.store import boot
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import find_endpoints, recorded_endpoints
from pmm_shm_client import Cache, EventLog, connect, connect_async
from pmm_shm_client.commands import call
from tests.support import answers, command
from tests.support.fork_daemon import ForkedDaemon
from tests.support.mounts import in_mount_namespace
from tests.support.polling import until

EVENTS = 50


def fill(ledger: Path, text: str = "event") -> None:
    with EventLog(ledger) as log:
        log.append_many([("user", f"{text} {number}", {}) for number in range(EVENTS)])


def copied(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ledger whose daemon runs and has published it all."""
    ledger = tmp_path_factory.mktemp("original") / "a.db"
    fill(ledger)
    with ForkedDaemon(ledger), connect(ledger) as cache:
        assert cache.wait_for(EVENTS, 20.0) == EVENTS
        assert cache.verify()
        yield ledger


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy of the whole folder, made while everything runs; then the original goes on."""
    copied(original.parent, tmp_path / "copy")
    with connect(original) as cache:
        cache.wait_for(cache.append("user", "only in the original"), 20.0)
    return tmp_path / "copy" / "a.db"


def refuses_all(cache: Cache) -> None:
    for ask in (lambda: cache.wait_for(10_000, 1.0), cache.invalidate):
        with pytest.raises(DaemonAbsentError, match="no daemon serves it"):
            ask()
    assert cache.stats()["daemon"] is None


def test_a_copy_of_the_folder_has_no_daemon(original: Path, copy: Path) -> None:
    rebuilds = _numbers(original)["rebuilds"]
    with connect(copy) as cache:
        refuses_all(cache)
        assert answers.everything(cache) == answers.replayed(str(copy))
        # LMDB's files were copied while they were written: they count for nothing.
        with pytest.raises(SnapshotUnavailableError):
            cache.metrics(consistency="snapshot")

    async def listen() -> None:
        async with await connect_async(copy) as cache:
            await anext(cache.announcements())

    with pytest.raises(DaemonAbsentError):
        asyncio.run(listen())
    assert command.run("status", str(copy)).code == 3
    assert _numbers(original)["rebuilds"] == rebuilds


def test_verify_looks_at_the_copy_itself(copy: Path) -> None:
    with connect(copy) as cache:
        assert cache.verify()
    with sqlite3.connect(copy) as handle:
        handle.execute("UPDATE events SET content = 'forged' WHERE id = 7")
    handle.close()
    with connect(copy) as cache:
        report = cache.verify()
    assert not report
    assert report.difference == "the hash chain is broken at event 7"
    ran = command.run("verify", str(copy))
    assert ran.code != 0
    assert "event 7" in ran.out + ran.err


def test_the_daemon_of_a_copy_serves_the_copy(original: Path, copy: Path) -> None:
    with ForkedDaemon(copy) as daemon, connect(copy) as cache:
        newest = cache.append("user", "only in the copy")
        assert cache.wait_for(newest, 20.0) == newest
        assert cache.metrics(consistency="snapshot").as_of == newest
        assert cache.stats()["daemon"]["pid"] == daemon.pid
        assert cache.verify().as_of == newest
        assert answers.everything(cache) == answers.replayed(str(copy))
    assert _numbers(original)["as_of"] > 0


def test_a_copied_record_of_sockets_elsewhere_leads_to_nobody(tmp_path: Path) -> None:
    """Under a long path the sockets are elsewhere, under absolute paths."""
    ledger = tmp_path / ("long" * 30) / "a.db"
    ledger.parent.mkdir()
    fill(ledger)
    with ForkedDaemon(ledger) as daemon:
        instance = Instance.of(ledger)
        assert Path(find_endpoints(instance).commands).parent != instance.directory
        copied(ledger.parent, tmp_path / "copy")
        with connect(tmp_path / "copy" / "a.db") as cache:
            refuses_all(cache)
        # No remedy may name the pid of the original's daemon either.
        with pytest.raises(DaemonAbsentError):
            recorded_endpoints(Instance.of(tmp_path / "copy" / "a.db"))
        # The directory itself may move, and its daemon with it.
        ledger.parent.rename(tmp_path / "moved")
        assert find_endpoints(Instance.of(tmp_path / "moved" / "a.db")).pid == daemon.pid


def test_a_copy_in_the_place_of_the_original_is_not_served_by_its_daemon(tmp_path: Path) -> None:
    ledger = tmp_path / "one" / "a.db"
    ledger.parent.mkdir()
    fill(ledger)
    with ForkedDaemon(ledger), connect(ledger) as before:
        until(lambda: before.stats()["daemon"]["as_of"] == EVENTS, "all is published")
        copied(tmp_path / "one", tmp_path / "two")
        (tmp_path / "one").rename(tmp_path / "old")
        (tmp_path / "two").rename(tmp_path / "one")
        with connect(ledger) as cache:
            refuses_all(cache)
        # The daemon's own path has another ledger now: no request means that one here.
        with connect(tmp_path / "old" / "a.db") as cache:
            refuses_all(cache)


def test_a_ledger_that_was_replaced_keeps_its_daemon(tmp_path: Path) -> None:
    ledger, other = tmp_path / "a.db", tmp_path / "other.db"
    fill(ledger)
    fill(other, "another")
    with ForkedDaemon(ledger) as daemon, connect(ledger) as cache:
        assert cache.wait_for(EVENTS, 20.0) == EVENTS
        before = file_id(ledger)
        EventLog(ledger).close()
        os.replace(other, ledger)
        assert file_id(ledger) != before
        newest = cache.append("user", "in the new file")
        assert cache.wait_for(newest, 20.0) == newest
        assert cache.stats()["daemon"]["pid"] == daemon.pid


def test_a_mark_without_a_clean_stop_counts_in_its_own_directory_only(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    for is_clean in (False, True):
        boot.mark(one / "boot.json", is_clean=is_clean)
        shutil.copy(one / "boot.json", two / "boot.json")
        assert boot.is_trusted(one / "boot.json")
        assert boot.is_openable(one / "boot.json")
        assert boot.is_trusted(two / "boot.json") is boot.is_openable(two / "boot.json") is is_clean


# Containers: one volume under two paths, two volumes under one path.

ANOTHER_PATH = """
import json, os, subprocess, sys
from pmm_shm.instance.paths import Instance
from pmm_shm_client import commands, connect
folder, mounted = sys.argv[1:]
os.mkdir(mounted)
subprocess.run(["mount", "--bind", folder, mounted], check=True)
subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
with connect(mounted + "/a.db") as cache:
    newest = cache.append("user", "from the container")
    said = [cache.wait_for(newest, 20.0) == newest, cache.metrics(consistency="snapshot").as_of == newest]
    # Not `cache.stats()`, which gives up after a second.
    pid = commands.call(Instance.of(mounted + "/a.db"), "ping", {}, 20.0)["pid"]
    print(json.dumps({"said": said, "pid": pid, "verified": cache.verify().as_of == newest}))
"""


def test_one_volume_under_two_paths_has_one_daemon(original: Path, folder: Path) -> None:
    found = in_mount_namespace(ANOTHER_PATH, str(original.parent), str(folder / "mounted"))
    assert found == {"said": [True, True], "pid": _numbers(original)["pid"], "verified": True}


SAME_PATH = """
import json, os, subprocess, sys
from pmm_shm.errors import DaemonAbsentError
from pmm_shm_client import connect
folder, other = sys.argv[1:]
subprocess.run(["mount", "--bind", other, folder], check=True)
said = []
with connect(folder + "/a.db") as cache:
    for ask in (lambda: cache.wait_for(10_000, 1.0), cache.invalidate):
        try:
            said.append(str(ask()))
        except DaemonAbsentError as error:
            said.append("absent")
    print(json.dumps({"said": said, "daemon": cache.stats()["daemon"], "text": cache.recent().messages[-1].content}))
"""


def test_two_volumes_under_one_path_do_not_share_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their instance directory is the same, because both have the same `PMM_SHM_DIR`."""
    monkeypatch.setenv("PMM_SHM_DIR", str(tmp_path / "shared"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name / "a.db", name)
    with ForkedDaemon(tmp_path / "one" / "a.db"):
        found = in_mount_namespace(SAME_PATH, str(tmp_path / "one"), str(tmp_path / "two"))
    assert found == {"said": ["absent", "absent"], "daemon": None, "text": f"two {EVENTS - 1}"}


def _numbers(ledger: Path) -> dict[str, object]:
    numbers: dict[str, object] = call(Instance.of(ledger), protocol.STATS, {}, 5.0)
    return numbers
