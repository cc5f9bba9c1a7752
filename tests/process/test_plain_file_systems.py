"""File systems without sockets or permissions, such as exFAT: the ledger works there, the shared state is elsewhere."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import lmdb
import pytest
from click.testing import CliRunner

from pmm_cached.instance_lock import InstanceLock
from pmm_shm.errors import DaemonError, StoreError
from pmm_shm.instance import file_systems
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.backup import backup
from pmm_shm.ledger.restore import restore
from pmm_shm.ledger.sqlite_errors import translated
from pmm_shm.store.environment import store_error
from pmm_shm_cli.doctor import diagnose, gather
from pmm_shm_cli.main import cli
from pmm_shm_client import connect
from tests.support.daemons import environment, run_python
from tests.support.hazards import fill
from tests.support.mounts import in_mount_namespace

# A daemon whose system calls in one folder end as they do on such a file system.
DAEMON = """
import os, pathlib, socket, sys
from pmm_cached.main import main
from pmm_shm.instance import file_systems
from pmm_shm.ledger.backup import backup
from pmm_shm.ledger.restore import restore
folder, kind, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv = ["pmm-cached", sys.argv[4]]
if kind:
    real = file_systems._mounted_at
    file_systems._mounted_at = lambda path: (kind, "") if path.startswith(folder) else real(path)
if number:
    class Socket(socket.socket):
        def bind(self, address):
            raise OSError(number, os.strerror(number))
    socket.socket = Socket
else:
    real_mkdir = os.mkdir
    def mkdir(path, mode=0o777, **options):
        real_mkdir(path, mode, **options)
        real_chmod(path, 0o777)
    real_chmod, os.mkdir = os.chmod, mkdir
    os.chmod = lambda *_, **__: None
    if sys.version_info < (3, 11):
        # Its `pathlib` took them when it was imported.
        pathlib._NormalAccessor.mkdir = staticmethod(os.mkdir)
        pathlib._NormalAccessor.chmod = staticmethod(os.chmod)
main()
"""


@pytest.mark.parametrize(
    ("kind", "number", "named"),
    [
        ("exfat", errno.EIO, "exFAT, a file system without sockets"),
        ("vfat", errno.EPERM, "FAT, a file system without sockets"),
        ("fuse.somebodys", errno.ENOSYS, "fuse.somebodys, a file system without sockets"),
        ("ntfs3", errno.EOPNOTSUPP, "NTFS, a file system without sockets"),
        ("fuseblk", 0, "exFAT or NTFS (fuseblk), a file system without permissions"),
        ("fuse.drive", 0, "fuse.drive, a file system without permissions"),
    ],
)
def test_a_daemon_says_what_the_file_system_lacks_and_leaves_nothing(
    ledger: str, tmp_path: Path, kind: str, number: int, named: str
) -> None:
    fill(ledger, 3)
    before = {one.name for one in tmp_path.iterdir()}
    ended = run_python(DAEMON, str(tmp_path), kind, str(number), ledger)
    remedy = "set PMM_SHM_DIR to a directory on another disk, for the daemon and all workers"
    assert (ended.returncode, ended.stderr) == (1, f"pmm-cached: {ledger}-cache: it is on {named}; {remedy}\n")
    assert {one.name for one in tmp_path.iterdir()} - before <= {"ledger.db-wal", "ledger.db-shm"}


def test_what_another_program_left_there_is_not_trusted_and_the_remedy_helps(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No chmod, no group and no move helps: everybody may write everything."""
    fill(ledger, 3)
    directory = Path(f"{ledger}-cache")
    directory.mkdir()
    directory.chmod(0o777)
    monkeypatch.setattr(file_systems, "_mounted_at", lambda path: ("vfat", "/dev/sdb1"))
    with connect(ledger) as cache:
        assert cache.metrics().as_of == 3
        with pytest.raises(DaemonError, match="it is on FAT, a file system without permissions; set PMM_SHM_DIR"):
            cache.wait_for(4, 0.1)
    status = json.loads(CliRunner().invoke(cli, ["status", ledger, "--json"]).stdout)
    assert [one["command"] for one in status["remedies"]] == ["export PMM_SHM_DIR=/var/cache/pmm"]
    findings = [one for one in diagnose(gather(ledger, 1.0)) if one.severity != "ok"]
    by_check = {one.check: one for one in findings}
    assert by_check["state-file-system"].severity == "error"
    assert by_check["state-file-system"].command.startswith("export PMM_SHM_DIR=")
    assert by_check["daemon"].command.startswith("export PMM_SHM_DIR=")
    assert "umask=077" in by_check["ledger-mode"].remedy
    said = " ".join(one.command for one in findings if one.check != "sqlite-version")
    assert not any(word in said for word in ("chmod", "usermod", "mv "))


def test_other_file_systems_are_not_plain(tmp_path: Path) -> None:
    assert file_systems.plain_file_system(tmp_path) is None
    assert file_systems.plain_file_system(tmp_path / "missing") is None
    assert file_systems.kind_of("/proc") == "proc"


# A real one.


ON_EXFAT = """
import json, os, subprocess, sys
image, folder, state = sys.argv[1:]
loop = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
device = loop.stdout.strip()
mounted = subprocess.run(["mount.exfat-fuse", device, folder], capture_output=True, text=True)
if not device or mounted.returncode:
    print(loop.stderr or mounted.stderr, file=sys.stderr)
    sys.exit(77)
from pmm_shm_client import EventLog, connect
try:
    ledger = folder + "/a.db"
    with EventLog(ledger) as log:
        log.append("user", "hello")
    said = {}
    with connect(ledger) as cache:
        said["read"] = [cache.append("user", "again"), cache.metrics().as_of]
        try:
            connect(ledger, autostart=True)
        except Exception as error:
            said["autostart"] = f"{type(error).__name__}: {error}"
    subprocess.run(["rm", "-rf", ledger + "-cache"])
    daemon = subprocess.run([sys.executable, "-m", "pmm_cached", ledger], capture_output=True, text=True, timeout=20)
    said["daemon"] = [daemon.returncode, daemon.stderr]
    doctor = [sys.executable, "-m", "pmm_shm_cli", "doctor", ledger, "--json"]
    said["doctor"] = json.loads(subprocess.run(doctor, capture_output=True, text=True).stdout)["findings"]
    os.environ["PMM_SHM_DIR"] = state
    with connect(ledger, autostart=True) as cache:
        pid = cache.stats()["daemon"]["pid"]
        said["elsewhere"] = cache.wait_for(2)
    os.kill(pid, 15)
    os.waitpid(pid, 0)
    print(json.dumps(said))
    sys.stdout.flush()
finally:
    subprocess.run(["umount", "-l", folder])
    subprocess.run(["losetup", "-d", device])
"""


def test_a_real_exfat_stick(tmp_path: Path) -> None:
    """The kernel's own answers: appends and reads work, daemon and doctor name the file system and the remedy."""
    if os.getuid() != 0 or not all(map(shutil.which, ("mkfs.exfat", "mount.exfat-fuse", "losetup"))):
        pytest.skip("mounting exFAT needs root, mkfs.exfat and mount.exfat-fuse (exfatprogs, exfat-fuse)")
    image, folder, state = tmp_path / "image", tmp_path / "stick", tmp_path / "state"
    folder.mkdir()
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run(["mkfs.exfat", str(image)], check=True, capture_output=True, env=environment())
    found: dict[str, Any] = in_mount_namespace(ON_EXFAT, str(image), str(folder), str(state))
    assert found["read"] == [2, 2]
    code, said = found["daemon"]
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith(f"pmm-cached: {folder}/a.db-cache: it is on exFAT or NTFS (fuseblk), a file system without")
    assert "PMM_SHM_DIR" in said
    assert "PMM_SHM_DIR" in found["autostart"]
    errors = [one for one in found["doctor"] if one["severity"] == "error"]
    assert [one["check"] for one in errors] == ["state-file-system"]
    assert json.dumps(found["doctor"]).count("usermod") == 0
    assert found["elsewhere"] == 2


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_takes_backups_and_restores(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A restore to where no ledger is makes it, and never over a file that somebody else has made meanwhile."""
    fill(ledger, 5)

    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    copy, made = str(tmp_path / "copy.db"), str(tmp_path / "made.db")
    backup(ledger, copy)
    restore(copy, made)
    with connect(made) as cache, connect(ledger) as original:
        assert cache.frame().metrics() == original.frame().metrics()
    assert not [one for one in tmp_path.iterdir() if "restoring" in one.name or one.name.startswith(".")]


def test_a_file_system_that_refuses_modes_takes_restores(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux's FAT refuses a mode that it cannot store, also to the owner."""
    fill(ledger, 5)
    backup(ledger, tmp_path / "copy.db")
    fill(ledger, 1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    restored = restore(tmp_path / "copy.db", ledger)
    assert restored.safety_copy is not None
    restore(tmp_path / "copy.db", tmp_path / "made.db")
    for path, newest in ((ledger, 5), (restored.safety_copy, 6), (tmp_path / "made.db", 5)):
        with connect(path) as cache:
            assert cache.metrics().as_of == newest


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_taken_for_another_daemon(
    ledger: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fill(ledger, 1)

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match="a file system without locks; set PMM_SHM_DIR"):
        InstanceLock(Instance.of(ledger))


def test_a_file_system_without_shared_memory_is_named(tmp_path: Path) -> None:
    """As FUSE without a page cache, and some shared folders of virtual machines."""
    error = store_error(tmp_path, lmdb.Error(f"{tmp_path}: {os.strerror(errno.ENODEV)}"))
    assert "a file system without shared memory; set PMM_SHM_DIR" in str(error)
    unmapped = sqlite3.OperationalError("disk I/O error")
    unmapped.sqlite_errorname = "SQLITE_IOERR_SHMMAP"  # type: ignore[misc]
    assert "its -shm cannot be mapped" in str(translated(unmapped, "a.db", is_reader=True))
