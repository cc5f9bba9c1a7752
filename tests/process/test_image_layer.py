"""Ledger and state in a lower layer of an overlay, as in the image of a container: the daemon writes another file.

Path, inode and a reader's map stay when the daemon's first write copies the file to the upper layer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.store import environment as environments
from pmm_shm_client import EventLog, connect
from tests.support.fork_daemon import ForkedDaemon
from tests.support.mounts import in_mount_namespace

EVENTS = 40

# Readers that began before the daemon did. Prints what they see of the daemon's commits.
IN_CONTAINER = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
from pmm_shm import limits
from pmm_shm_client import connect
folder, upper, stays = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for name in ("layers", "merged"):
    (folder / name).mkdir()
if upper == "memory":
    subprocess.run(["mount", "-t", "tmpfs", "none", folder / "layers"], check=True)
for name in ("upper", "work"):
    (folder / "layers" / name).mkdir()
options = f"lowerdir={folder}/image,upperdir={folder}/layers/upper,workdir={folder}/layers/work"
if subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, folder / "merged"]).returncode:
    sys.exit(77)
ledger = str(folder / "merged" / "a.db")
appends = "import sys; from pmm_shm_client import EventLog as L; print(L(sys.argv[1]).append('identity_adopt', 'Ada'))"
with connect(ledger) as one, connect(ledger) as two:
    before = [cache.metrics(consistency="snapshot").as_of for cache in (one, two)]
    inode = os.stat(ledger + "-cache/data.mdb").st_ino
    daemon = subprocess.Popen([sys.executable, "-m", "pmm_cached", ledger], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while one.stats()["daemon"] is None and time.monotonic() < deadline:
            time.sleep(0.01)
        errors, is_over = [], threading.Event()
        def read():
            while not is_over.is_set():
                try:
                    two.metrics(consistency="snapshot"); two.metrics(); two.embed("text")
                except Exception as error:
                    errors.append(repr(error))
        thread = threading.Thread(target=read)
        if stays == "busy":
            thread.start()
        done = subprocess.run([sys.executable, "-c", appends, ledger], check=True, stdout=subprocess.PIPE, text=True)
        newest = int(done.stdout)
        one.wait_for(newest, 20)
        time.sleep(limits.TRUST_PERIOD_S)
        deadline = time.monotonic() + 5
        while stays == "busy" and one.metrics(consistency="snapshot").as_of < newest and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = [cache.metrics(consistency="snapshot").as_of for cache in (one, two)]
        names = [one.identity().name, two.identity(consistency="snapshot").name]
        is_over.set()
        if stays == "busy":
            thread.join()
        found = {"before": before, "newest": newest, "seen": seen, "names": names, "errors": errors[:3]}
        found["verified"] = bool(one.verify())
        found["same_inode"] = os.stat(ledger + "-cache/data.mdb").st_ino == inode
        print(json.dumps(found))
    finally:
        daemon.kill()
        daemon.wait()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger and what a daemon that was stopped in good order has left."""
    folder = tmp_path_factory.mktemp("image")
    with EventLog(folder / "a.db") as log:
        log.append_many([("user", f"event {number}", {}) for number in range(EVENTS)])
    with ForkedDaemon(folder / "a.db") as daemon, connect(folder / "a.db") as cache:
        cache.wait_for(EVENTS, 20.0)
        assert daemon.stop() == 0
    return folder


def test_a_map_that_has_shown_a_commit_is_not_compared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the file that the daemon writes, and no other will take its place."""
    looks: list[Any] = []
    newest = environments._newest_meta
    monkeypatch.setattr(environments, "_newest_meta", lambda directory: looks.append(directory) or newest(directory))
    path = tmp_path / "a.db"
    with EventLog(path) as log, ForkedDaemon(path), connect(path) as cache:
        cache.wait_for(log.append("user"), 20.0)
        cache.metrics()
        environment = cache._reader.snapshots.locator.environment
        assert environment is not None
        for publishes in (False, False, True, False):
            looks.clear()
            environment.follow_copy_up()
            assert len(looks) == 1
            if publishes:
                cache.wait_for(log.append("user"), 20.0)
        looks.clear()
        environment.follow_copy_up()
        assert looks == []


@pytest.mark.parametrize("stays", ["idle", "busy"])
@pytest.mark.parametrize("upper", ["disk", "memory"])
def test_snapshots_follow_the_daemon_into_the_upper_layer(image: Path, tmp_path: Path, upper: str, stays: str) -> None:
    shutil.copytree(image, tmp_path / "image")
    found: dict[str, Any] = in_mount_namespace(IN_CONTAINER, str(tmp_path), upper, stays)
    newest = EVENTS + 1
    assert found == {
        "before": [EVENTS, EVENTS],
        "newest": newest,
        "seen": [newest, newest],
        "names": ["Ada", "Ada"],
        "errors": [],
        "verified": True,
        "same_inode": True,
    }
    # The image is as it was.
    with connect(tmp_path / "image" / "a.db") as cache:
        assert cache.metrics().as_of == EVENTS
