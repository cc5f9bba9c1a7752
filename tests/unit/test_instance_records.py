"""Damaged records in the instance directory mean that nothing is known."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pmm_cached.instance_lock import InstanceLock
from pmm_cached.watch import LedgerWatch
from pmm_shm.errors import DaemonAbsentError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.store import boot
from pmm_shm.store.writer import StoreWriter
from pmm_shm.wire.endpoints import find_endpoints
from tests.support.golden_cases import make_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with EventLog(path) as log:
        log.append_many([("commitment_open", f"t{i}", {"cid": f"c{i}", "text": "x" * 100}) for i in range(300)])
    return path


# The instance directory.


def test_instance_lock_knows_its_file(ledger: Path) -> None:
    instance = Instance.of(ledger)
    lock = InstanceLock(instance)
    try:
        assert lock.is_held()
        instance.lock_file.rename(instance.lock_file.with_name("other"))
        assert not lock.is_held()
        instance.lock_file.touch()
        assert not lock.is_held()
    finally:
        lock.release()


# Dead readers.


def test_without_inotify_the_slow_poll_finds_changes(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gives each user a few only, and other programs may have them all."""

    def none_left(**_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("pmm_cached.watch.INotify", none_left)
    watch = LedgerWatch(str(ledger))
    assert "max_user_instances" in str(watch.problem)
    watch.refresh()
    assert watch.wait(0.01) is False
    watch.wake()
    began = time.monotonic()
    assert watch.wait(30.0) is False
    assert time.monotonic() - began < 10.0
    watch.close()


# A damaged environment.


def test_mark_of_damage_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    boot.mark_damaged(path)
    assert not boot.is_trusted(path)
    assert not boot.is_openable(path)
    boot.mark(path, is_clean=False)
    assert boot.is_trusted(path)
    assert boot.is_openable(path)


@pytest.mark.parametrize("opening", ["0", "2", "false", "null", '"1"', "[1]", "1.5"])
def test_mark_of_another_shape_is_not_trusted(tmp_path: Path, opening: str) -> None:
    path = tmp_path / "boot.json"
    path.write_text(f'{{"boot_id": "{boot.boot_id()}", "clean": true, "openings": {opening}}}')
    assert not boot.is_trusted(path)
    assert not boot.is_openable(path)


def test_damage_found_while_it_runs_is_remade_at_the_next_start(ledger: Path) -> None:
    instance = Instance.of(ledger)
    writer = StoreWriter(instance)
    writer.mark_damaged()
    writer.close()
    assert not boot.is_trusted(instance.boot_file)


# Damaged records.


def _as_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def _surrogate(path: Path) -> None:
    path.write_text('{"commands": "\\ud800", "admin": "a", "announcements": "b", "pid": 1}')


def _infinite(path: Path) -> None:
    path.write_text('{"commands": "a", "admin": "a", "announcements": "b", "pid": 1e999}')


@pytest.mark.parametrize("damage", [_as_directory, _deep, _surrogate, _infinite])
def test_damaged_record_of_endpoints_means_no_daemon(ledger: Path, damage: Callable[[Path], None]) -> None:
    instance = Instance.of(ledger)
    instance.directory.mkdir()
    damage(instance.endpoints_file)
    with pytest.raises(DaemonAbsentError):
        find_endpoints(instance)


@pytest.mark.parametrize("damage", [_as_directory, _deep])
def test_damaged_boot_mark_is_not_trusted(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(tmp_path / "boot.json")
    assert not boot.is_trusted(tmp_path / "boot.json")
