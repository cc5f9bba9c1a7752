"""Network file systems are refused, by their type, before anything is opened or made; local ones pass."""

from __future__ import annotations

from pathlib import Path

from pmm_shm.instance import file_systems
from pmm_shm.instance.paths import Instance
from tests.conftest import StartDaemon
from tests.support.daemons import environment, run_python
from tests.support.mounts import in_mount_namespace

EXT4, TMPFS, OVERLAY = 0xEF53, 0x01021994, 0x794C7630


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


DAEMON = """
import sys
from pmm_cached.main import main
from pmm_shm.instance import file_systems
folder = sys.argv.pop(1)
real = file_systems.type_number
file_systems.type_number = lambda directory: 0x6969 if directory.startswith(folder) else real(directory)
main()
"""


def test_a_daemon_refuses_with_one_line_and_exit_code_1(ledger: str, tmp_path: Path) -> None:
    """Hazard 23: a ledger on NFS, and a local one whose instance directory is to lie there."""
    refused = run_python(DAEMON, str(tmp_path), ledger)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"pmm-cached: {ledger}: it is on NFS, a network file system")
    shared = tmp_path / "shared"
    shared.mkdir()
    refused_too = run_python(DAEMON, str(shared), ledger, env=environment(PMM_SHM_DIR=str(shared)))
    assert (refused_too.returncode, refused_too.stdout) == (1, "")
    assert refused_too.stderr.startswith(f"pmm-cached: {shared}")
    assert len(refused.stderr.splitlines()) == len(refused_too.stderr.splitlines()) == 1
    assert names(shared) == set()
    assert not Instance.of(ledger).directory.exists()


# Real mounts.


FUSE_MOUNT = """
import json, os, subprocess, sys
from pmm_shm.instance.file_systems import network_file_system
from pmm_shm_client import EventLog, connect
from tests.support.fuse_stand_in import STATFS, FuseStandIn
folder, kind, source = sys.argv[1:]
try:
    stand_in = FuseStandIn(folder, kind, source, "ledger.db")
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(77)
said = []
for attempt in (lambda: connect(folder + "/ledger.db"), lambda: EventLog(folder + "/new.db")):
    try:
        attempt()
        said.append("opened")
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
daemon = [sys.executable, "-m", "pmm_cached", folder + "/ledger.db"]
ended = subprocess.run(daemon, capture_output=True, text=True)
print(json.dumps({"name": network_file_system(folder), "said": said, "statfs": stand_in.requests[STATFS],
    "forbidden": stand_in.forbidden(), "daemon": [ended.returncode, ended.stderr]}))
sys.stdout.flush()
os._exit(0)
"""


def test_a_real_fuse_mount_is_known_by_its_subtype(tmp_path: Path) -> None:
    """Hazard 23: the kernel's own answers, and nothing but looks reaches the file system."""
    found = in_mount_namespace(FUSE_MOUNT, str(tmp_path), "fuse.sshfs", "user@host:/home")
    assert found["name"] == "sshfs"
    assert found["forbidden"] == {}
    assert found["statfs"] == 4
    read, made = found["said"]
    assert read.startswith("LedgerUnreadableError: ")
    assert made.startswith("LedgerUnwritableError: ")
    assert " sshfs, a network file system" in read
    assert " sshfs, a network file system" in made
    code, stderr = found["daemon"]
    assert (code, len(stderr.splitlines())) == (1, 1)
    assert " sshfs, a network file system" in stderr


LOCAL_MOUNTS = """
import json, os, subprocess, sys
from pmm_shm.instance.file_systems import network_file_system, type_number
from pmm_shm_client import EventLog, connect
from tests.support.answers import everything, replayed
base = sys.argv[1]
def mount(*arguments):
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        sys.exit(77)
mount("-t", "tmpfs", "tmpfs", base)
for name in ("lower", "upper", "work", "merged"):
    os.mkdir(f"{base}/{name}")
mount("-t", "overlay", "overlay", "-o", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work",
    f"{base}/merged")
found = {}
for folder in (base, f"{base}/merged"):
    path = f"{folder}/ledger.db"
    with EventLog(path) as log:
        log.append("user", "hello")
    with connect(path, autostart=True) as cache:
        cache.wait_for(cache.append("autonomy_tick"))
        published = cache.metrics(consistency="snapshot").as_of
        found[hex(type_number(folder))] = [everything(cache) == replayed(path), published]
        os.kill(cache.stats()["daemon"]["pid"], 9)
print(json.dumps(found))
"""


def test_tmpfs_and_overlayfs_pass(tmp_path: Path) -> None:
    """Hazard 23: with a daemon that publishes there."""
    found = in_mount_namespace(LOCAL_MOUNTS, str(tmp_path))
    assert found == {hex(TMPFS): [True, 2], hex(OVERLAY): [True, 2]}


def test_the_folders_of_this_machine_are_asked_for_real(ledger: str, start_daemon: StartDaemon) -> None:
    """Hazard 23: statfs(2) itself, without a stand-in."""
    assert file_systems.type_number("/proc") == 0x9FA0
    assert file_systems.type_number("/absent/folder") is None
    assert file_systems.network_file_system("/absent/folder") is None
    start_daemon(ledger)
