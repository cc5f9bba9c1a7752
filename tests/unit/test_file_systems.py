"""Network file systems are refused, by their type, before anything is opened or made; local ones pass."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pmm_cached.instance_lock import InstanceLock
from pmm_shm.errors import LedgerNotFoundError, LedgerUnreadableError, LedgerUnwritableError, StoreError
from pmm_shm.instance import file_systems
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm_client import EventLog, connect
from tests.support import ledgers

EXT4, TMPFS, OVERLAY = 0xEF53, 0x01021994, 0x794C7630


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let a folder, and what is below it, lie on a file system of this type; gives the list of folders asked about."""

    def pretend(folder: Path, number: int, mounts: str = "") -> list[str]:
        asked: list[str] = []
        real = file_systems.type_number

        def type_number(directory: str) -> int | None:
            asked.append(directory)
            is_below = Path(directory).is_relative_to(folder)
            return number if is_below else real(directory)

        monkeypatch.setattr(file_systems, "type_number", type_number)
        monkeypatch.setattr(file_systems, "mounts", lambda: mounts)
        return asked

    return pretend


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def one_line(error: BaseException, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize(("number", "name"), file_systems.NETWORK.items())
def test_every_network_file_system_is_refused_by_name(
    tmp_path: Path, on: Callable[..., list[str]], number: int, name: str
) -> None:
    """Hazard 23: an existing ledger is neither opened nor changed, and a new one is not made."""
    path = ledgers.build(tmp_path / "ledger.db", 3)
    before = names(tmp_path)
    on(tmp_path, number)
    with pytest.raises(LedgerUnreadableError) as caught:
        connect(path)
    one_line(caught.value, path, f" {name}, a network file system", "local disk")
    with pytest.raises(LedgerUnwritableError) as refused:
        EventLog(tmp_path / "new.db")
    one_line(refused.value, str(tmp_path / "new.db"), f" {name}, a network file system", "local disk")
    with pytest.raises(LedgerNotFoundError):
        connect(tmp_path / "absent.db")
    assert names(tmp_path) == before


@pytest.mark.parametrize("number", [EXT4, TMPFS, OVERLAY, 0, 0x12345678])
def test_other_file_systems_pass_at_one_system_call_per_open(
    tmp_path: Path, on: Callable[..., list[str]], number: int
) -> None:
    """Hazard 23: what is local, or not known, is a ledger's place."""
    asked = on(tmp_path, number)
    path = ledgers.build(tmp_path / "ledger.db", 3)
    connection = Connection(path, "ro")
    with connection.lock:
        connection.handle()
        connection.handle()
    assert asked == [str(tmp_path)]
    connection.close()
    with connect(path) as cache:
        assert cache.append("user", "local") == cache.metrics().as_of == 4


MOUNT = "91 27 {device} / {folder} rw,relatime - {kind} {source} rw,user_id=0,group_id=0"


@pytest.mark.parametrize(
    ("kind", "source", "name"),
    [
        ("fuse.sshfs", "user@host:/home", "sshfs"),
        ("fuse.glusterfs", "server:/volume", "glusterfs"),
        ("fuse.s3fs", "s3fs", "s3fs"),
        ("fuse.rclone", "remote:", "rclone"),
        ("fuse", "https://example.org/dav", "https://example.org/dav"),
        ("fuse.mergerfs", "a:b", None),
        ("fuseblk", "/dev/sdb1", None),
        ("fuse", "something", None),
        ("virtiofs", "shared", None),
    ],
)
def test_of_fuse_the_table_of_mounts_tells(
    tmp_path: Path, on: Callable[..., list[str]], kind: str, source: str, name: str | None
) -> None:
    """Hazard 23: FUSE has one type for all; the subtype of this device's mount decides."""
    path = ledgers.build(tmp_path / "ledger.db", 3)
    device = os.stat(tmp_path).st_dev
    this = MOUNT.format(device=f"{os.major(device)}:{os.minor(device)}", folder=tmp_path, kind=kind, source=source)
    other = MOUNT.format(device="0:99999", folder="/elsewhere", kind="fuse.sshfs", source="elsewhere:")
    on(tmp_path, file_systems.FUSE, f"{other}\nnot a line\n{this}\n")
    assert file_systems.network_file_system(tmp_path) == name
    if name is None:
        connect(path).close()
        return
    with pytest.raises(LedgerUnreadableError) as caught:
        connect(path)
    one_line(caught.value, path, name)


def test_an_instance_directory_on_a_network_file_system_is_refused_before_it_is_made(
    ledger: str, tmp_path: Path, on: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard 23: what decides is the nearest folder that is there."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("PMM_SHM_DIR", str(shared / "not" / "yet"))
    on(shared, 0x6969)
    with pytest.raises(StoreError) as caught:
        InstanceLock(Instance.of(ledger))
    one_line(caught.value, str(shared), "NFS", "PMM_SHM_DIR", "local disk")
    assert names(shared) == set()
