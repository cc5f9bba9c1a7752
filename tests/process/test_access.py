"""Who may use what a daemon publishes: modes and owners of the instance directory, and other users of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from pmm_cached.commands import CommandServer
from pmm_shm.errors import DaemonError, InstanceDirectoryError, SnapshotUnavailableError, StoreError
from pmm_shm.instance.access import check_directory
from pmm_shm.instance.making import make_directory
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_client import Cache, connect
from tests.conftest import StartDaemon
from tests.support import answers, daemons, ledgers
from tests.support.daemons import environment, until

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="another user can be made by root only")
OTHER_UID, OTHER_GID, GROUP = 54_321, 54_321, 54_322

# What a process of another user can do, as one JSON object; all is imported before the privileges go.
AS_OTHER = """
import json, os, sys
import pmm_cached.main, zmq
import pmm_shm_client.embeddings
from pmm_shm_client import connect
from pmm_shm.wire import protocol
from pmm_shm.errors import PmmShmError
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_client import commands

ledger, uid, gid, *groups = sys.argv[1], *map(int, sys.argv[2:])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)

def attempt(action):
    try:
        return action()
    except (PmmShmError, OSError) as error:
        return f"{type(error).__name__}: {error}"

cache = connect(ledger)
instance = cache._instance
def stats():
    return commands.call(instance, protocol.STATS, {}, 5.0)["pid"]
def opened(name, flags):
    os.close(os.open(instance.directory / name, flags))
    return "opened"
found = {
    "exact": attempt(lambda: cache.metrics().as_of),
    "snapshot": attempt(lambda: cache.metrics(consistency="snapshot").as_of),
    "folded": cache._reader.events_folded,
    "stats": attempt(stats),
    "invalidate": attempt(lambda: cache.invalidate(timeout=2.0)),
    "verify": attempt(lambda: bool(cache.verify(timeout=2.0))),
    "make": attempt(lambda: opened("planted", os.O_CREAT | os.O_RDWR)),
    "unlink": attempt(lambda: os.unlink(instance.directory / "admin.sock")),
    "write data": attempt(lambda: opened("data.mdb", os.O_RDWR)),
    "read data": attempt(lambda: opened("data.mdb", os.O_RDONLY)),
    "hold lock": attempt(lambda: opened("daemon.lock", os.O_RDONLY)),
}
print(json.dumps(found))
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="pmm-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def make_ledger(folder: Path, mode: int = 0o644, gid: int = -1) -> str:
    path = folder / "ledger.db"
    with EventLog(path) as log:
        log.append("identity_adopt", "Ada", {})
        log.append("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": 0.4}})
    # Without a WAL, whoever may read the file can read the ledger.
    ledgers.execute(path, "PRAGMA journal_mode = delete")
    os.chown(path, -1, gid)
    path.chmod(mode)
    return str(path)


def as_other(ledger: str, *groups: int, uid: int = OTHER_UID, gid: int = OTHER_GID) -> dict[str, Any]:
    ended = daemons.run_python(AS_OTHER, ledger, *map(str, (uid, gid, *groups)))
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)  # type: ignore[no-any-return]


def mode_of(path: str | os.PathLike[str]) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# Modes.


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_every_file_has_its_mode_whatever_the_umask(shared: Path, umask: int, start_daemon: StartDaemon) -> None:
    ledger = make_ledger(shared, 0o640)
    before = os.umask(umask)
    try:
        daemon = start_daemon(ledger)
    finally:
        os.umask(before)
    directory = daemon.instance.directory
    assert mode_of(directory) == 0o2750
    # The daemon answers before it has made its index of words.
    until((directory / "words.db-journal").exists)
    assert {entry.name: oct(mode_of(entry)) for entry in directory.iterdir()} == {
        "admin.sock": "0o600",
        "announcements.sock": "0o660",
        "boot.json": "0o640",
        "commands.sock": "0o660",
        "reports.sock": "0o660",
        "daemon.lock": "0o600",
        "data.mdb": "0o640",
        "endpoints.json": "0o640",
        "words.db": "0o640",
        "words.db-journal": "0o640",
        "lock.mdb": "0o660",
    }
    assert daemon.stop() == 0
    assert mode_of(directory / "boot.json") == 0o640


def test_autostart_makes_the_same_directory_and_a_private_log(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    ledger = make_ledger(shared)
    with connect(ledger, autostart=True) as cache:
        pid = cache.stats()["daemon"]["pid"]
        directory = Instance.of(ledger).directory
        assert (mode_of(directory), mode_of(directory / "daemon.log")) == (0o2750, 0o600)
        # Another daemon that is started at once writes its lines there, too.
        flags = int(Path(f"/proc/{pid}/fdinfo/2").read_text().split("flags:")[1].split()[0], 8)
        assert flags & os.O_APPEND
    daemons.end(pid)


@pytest.mark.parametrize(
    ("ledger_mode", "expected"), [(0o600, 0o2700), (0o640, 0o2750), (0o644, 0o2750), (0o604, 0o2700)]
)
def test_nobody_reads_the_state_of_a_ledger_that_is_not_his_to_read(
    shared: Path, ledger_mode: int, expected: int
) -> None:
    instance = Instance.of(make_ledger(shared, ledger_mode))
    make_directory(instance)
    assert mode_of(instance.directory) == expected
    # A ledger that is closed later on closes its state with the daemon's next start.
    os.chmod(instance.ledger, 0o600)
    make_directory(instance)
    assert mode_of(instance.directory) == 0o2700


@pytest.mark.parametrize(("folder_mode", "expected"), [(0o700, 0o2700), (0o710, 0o2750), (0o701, 0o2700)])
def test_nobody_reads_the_state_of_a_ledger_in_a_folder_that_is_closed_to_him(
    shared: Path, monkeypatch: pytest.MonkeyPatch, folder_mode: int, expected: int
) -> None:
    """The ledger's own mode is not all: an instance directory elsewhere would be open to the whole group."""
    home = shared / "home"
    (home / "deep").mkdir(parents=True)
    monkeypatch.setenv("PMM_SHM_DIR", str(shared / "elsewhere"))
    instance = Instance.of(make_ledger(home / "deep", 0o644))
    home.chmod(folder_mode)
    make_directory(instance)
    assert mode_of(instance.directory) == expected
    home.chmod(0o700)
    make_directory(instance)
    assert mode_of(instance.directory) == 0o2700


@needs_root
def test_the_group_is_the_ledgers_or_the_one_that_was_chosen(shared: Path) -> None:
    def group_of(instance: Instance) -> tuple[int, int]:
        make_directory(instance)
        found = os.stat(instance.directory).st_gid, mode_of(instance.directory) & 0o070
        shutil.rmtree(instance.directory)
        return found

    instance = Instance.of(make_ledger(shared, 0o640, GROUP))
    assert group_of(instance) == (GROUP, 0o050)
    os.chown(shared, -1, OTHER_GID)
    shared.chmod(0o2755)
    # The folder hands on a group whose members may not read the ledger.
    assert group_of(instance) == (GROUP, 0o050)
    os.chmod(instance.ledger, 0o644)
    assert group_of(instance) == (OTHER_GID, 0o050)


def test_a_directory_that_is_too_open_is_narrowed_before_anything_is_made(
    shared: Path, start_daemon: StartDaemon
) -> None:
    ledger = make_ledger(shared)
    directory = Instance.of(ledger).directory
    directory.mkdir()
    directory.chmod(0o777)
    (directory / "daemon.log").touch(0o666)
    with pytest.raises(InstanceDirectoryError, match="may write it"):
        check_directory(Instance.of(ledger))
    daemon = start_daemon(ledger, wait=False)
    daemons.until(lambda: mode_of(directory) & ~stat.S_ISGID == 0o750, "the directory is narrowed")
    daemon.wait_ready()
    assert mode_of(directory / "daemon.log") & 0o022 == 0
    check_directory(daemon.instance)


def test_sockets_are_bound_under_their_mode(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard 12: a chmod behind the bind leaves a gap."""
    seen: dict[str, tuple[int, list[int]]] = {}
    bind = zmq.Socket.bind

    def watched(self: zmq.Socket[bytes], address: str) -> Any:
        umask = os.umask(0)
        os.umask(umask)
        result = bind(self, address)
        seen[Path(address).name] = (0o777 & ~umask, [mode_of(address.removeprefix("ipc://"))])
        return result

    monkeypatch.setattr(zmq.Socket, "bind", watched)
    from pmm_shm.wire.endpoints import choose_endpoints

    instance = Instance.of(ledger)
    make_directory(instance)
    texts: Any = type("Texts", (), {"has": lambda *_: False})
    status: Any = type("Status", (), {"embeddings": None, "workers": None})
    endpoints = choose_endpoints(instance)
    server = CommandServer(endpoints, texts, texts, status, texts, bool, print)
    server.start()
    server.stop()
    assert seen == {
        "commands.sock": (0o660, [0o660]),
        "admin.sock": (0o600, [0o600]),
        "announcements.sock": (0o660, [0o660]),
    }


# What stands there already.


def link_away(directory: Path, outside: Path) -> None:
    directory.rmdir()
    directory.symlink_to(outside)


def link_data(directory: Path, outside: Path) -> None:
    (outside / "precious").write_text("precious")
    (directory / "data.mdb").symlink_to(outside / "precious")


def link_record(directory: Path, outside: Path) -> None:
    (outside / "precious").write_text("precious")
    (directory / "endpoints.json.new").symlink_to(outside / "precious")


def a_file(directory: Path, outside: Path) -> None:
    directory.rmdir()
    directory.write_text("not a directory")


def foreign_directory(directory: Path, outside: Path) -> None:
    os.chown(directory, OTHER_UID, -1)


def foreign_data(directory: Path, outside: Path) -> None:
    (directory / "data.mdb").write_bytes(b"")
    os.chown(directory / "data.mdb", OTHER_UID, -1)


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (link_away, "a symbolic link"),
        (link_data, "a symbolic link"),
        (link_record, "a symbolic link"),
        (a_file, "not a directory"),
        pytest.param(foreign_directory, "belongs to user", marks=needs_root),
        pytest.param(foreign_data, "belongs to user", marks=needs_root),
    ],
)
def test_what_somebody_planted_is_refused_in_one_line(
    shared: Path, tmp_path: Path, plant: Callable[[Path, Path], None], complaint: str
) -> None:
    ledger = make_ledger(shared)
    instance = Instance.of(ledger)
    instance.directory.mkdir()
    plant(instance.directory, tmp_path)
    ended = daemons.run_daemon(ledger)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert complaint in ended.stderr
    assert all(file.read_text() == "precious" for file in tmp_path.glob("precious"))
    with connect(ledger) as cache:
        assert cache.metrics().as_of == 2


@needs_root
def test_clients_trust_only_those_who_could_change_the_ledger_anyway(shared: Path, start_daemon: StartDaemon) -> None:
    ledger = make_ledger(shared)
    daemon = start_daemon(ledger)
    directory = daemon.instance.directory
    os.chown(directory, OTHER_UID, -1)
    for read in (lambda cache: cache.metrics(consistency="snapshot"), lambda cache: cache.wait_for(3)):
        with connect(ledger) as cache, pytest.raises((StoreError, DaemonError), match="belongs to user"):
            read(cache)
        with connect(ledger) as cache:
            assert answers.everything(cache) == answers.replayed(ledger)
            assert cache._reader.events_folded == 2
    # The owner of the ledger could write there what he likes, too.
    os.chown(ledger, OTHER_UID, -1)
    with connect(ledger) as cache:
        assert cache.metrics(consistency="snapshot").as_of == 2
    directory.chmod(0o770)
    with connect(ledger) as cache, pytest.raises(SnapshotUnavailableError, match="may write it"):
        cache.metrics(consistency="snapshot")


@needs_root
@pytest.mark.parametrize(("mode_above", "is_trusted"), [(0o755, True), (0o1777, False)])
def test_the_owner_of_a_folder_that_anybody_could_have_made_is_not_trusted(
    shared: Path, monkeypatch: pytest.MonkeyPatch, mode_above: int, is_trusted: bool
) -> None:
    base = shared / "above" / "base"
    base.mkdir(parents=True)
    monkeypatch.setenv("PMM_SHM_DIR", str(base))
    instance = Instance.of(make_ledger(shared))
    make_directory(instance)
    for path in (base, instance.directory):
        os.chown(path, OTHER_UID, -1)
    base.parent.chmod(mode_above)
    with contextlib.nullcontext() if is_trusted else pytest.raises(InstanceDirectoryError, match="belongs to user"):
        check_directory(instance)


# Another user.


@needs_root
def test_another_user_without_the_group_can_neither_read_nor_command(shared: Path, start_daemon: StartDaemon) -> None:
    ledger = make_ledger(shared)
    start_daemon(ledger)
    found = as_other(ledger)
    # The ledger itself is everybody's to read here: exact answers, by a replay.
    assert (found["exact"], found["folded"]) == (2, 2)
    assert found["snapshot"].startswith("SnapshotUnavailableError: ")
    assert "no permission" in found["snapshot"]
    for command in ("stats", "invalidate", "verify"):
        assert found[command].startswith("DaemonError: "), command
        assert "no permission" in found[command]
    for deed in ("make", "unlink", "write data", "read data", "hold lock"):
        assert found[deed].startswith("PermissionError: "), deed


@needs_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_another_user_in_the_group_can_read_and_not_administer(
    shared: Path, umask: int, start_daemon: StartDaemon
) -> None:
    ledger = make_ledger(shared, 0o640, GROUP)
    before = os.umask(umask)
    try:
        daemon = start_daemon(ledger)
    finally:
        os.umask(before)
    found = as_other(ledger, GROUP)
    assert (found["exact"], found["snapshot"], found["folded"]) == (2, 2, 0)
    assert found["stats"] == daemon.pid
    assert found["read data"] == "opened"
    for command in ("invalidate", "verify"):
        assert found[command].startswith("CommandError: "), command
        assert "own user" in found[command]
    for deed in ("make", "unlink", "write data", "hold lock"):
        assert found[deed].startswith("PermissionError: "), deed
    assert daemon.stats()["rebuilds"] == 1


@needs_root
def test_sockets_elsewhere_are_for_the_same_users(
    shared: Path, monkeypatch: pytest.MonkeyPatch, start_daemon: StartDaemon
) -> None:
    monkeypatch.setenv("TMPDIR", str(shared))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared))
    deep = shared / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    daemon = start_daemon(make_ledger(deep, 0o640, GROUP))
    admin = Path(find_endpoints(daemon.instance).admin)
    assert admin.parent.parent == shared / f"pmm-shm-{os.geteuid()}"
    assert (mode_of(admin.parent.parent), mode_of(admin.parent), mode_of(admin)) == (0o711, 0o2750, 0o600)
    found = as_other(daemon.instance.ledger, GROUP)
    assert (found["snapshot"], found["stats"]) == (2, daemon.pid)
    assert found["verify"].startswith("CommandError: ")
    private = start_daemon(make_ledger(deep.parent, 0o600))
    admin = Path(find_endpoints(private.instance).admin)
    assert (admin.parent.parent, mode_of(admin.parent)) == (shared / "pmm-shm", 0o2700)
    assert daemon.stop() == private.stop() == 0


def test_somebody_elses_folder_for_sockets_is_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(shared))
    (shared / f"pmm-shm-{os.geteuid()}").symlink_to(tmp_path)
    deep = shared / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    ended = daemons.run_daemon(make_ledger(deep))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "a symbolic link" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_sockets_elsewhere_that_are_not_the_daemons_any_more_are_not_asked(
    shared: Path, monkeypatch: pytest.MonkeyPatch, start_daemon: StartDaemon
) -> None:
    """Who clears away old temporary files leaves the names to anybody."""
    for name in ("TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(shared))
    deep = shared / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    daemon = start_daemon(make_ledger(deep))
    sockets = Path(find_endpoints(daemon.instance).commands).parent
    for folder in (sockets, sockets.parent):
        mode = mode_of(folder)
        folder.chmod(0o777)
        with pytest.raises(DaemonError, match="may write it"):
            find_endpoints(daemon.instance)
        folder.chmod(mode)
        if IS_ROOT:
            os.chown(folder, OTHER_UID, -1)
            with pytest.raises(DaemonError, match="belongs to user"):
                find_endpoints(daemon.instance)
            os.chown(folder, 0, -1)
            folder.chmod(mode)
    assert find_endpoints(daemon.instance).pid == daemon.pid


@needs_root
def test_a_group_that_was_given_to_the_daemon_can_read(shared: Path) -> None:
    ledger = make_ledger(shared)
    process = subprocess.Popen(
        [sys.executable, "-m", "pmm_cached", ledger],
        env=environment(),
        group=GROUP,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(ledger) as cache:
            daemons.until(lambda: published(cache) == 2)
        found = as_other(ledger, GROUP)
        assert (found["exact"], found["snapshot"], found["stats"]) == (2, 2, process.pid)
    finally:
        process.kill()
        process.wait()


def published(cache: Cache) -> int:
    with contextlib.suppress(SnapshotUnavailableError):
        return cache.metrics(consistency="snapshot").as_of
    return 0


@needs_root
def test_a_lock_table_that_a_reader_may_not_write_is_a_clear_error(shared: Path, start_daemon: StartDaemon) -> None:
    """Hazard 10: LMDB's readers register in lock.mdb; without that, LMDB would read corrupt pages."""
    ledger = make_ledger(shared, 0o640, GROUP)
    daemon = start_daemon(ledger)
    (daemon.instance.directory / "lock.mdb").chmod(0o640)
    found = as_other(ledger, GROUP)
    assert (found["exact"], found["folded"]) == (2, 2)
    assert "write permission on lock.mdb: share a group" in found["snapshot"]


@needs_root
def test_the_administrative_socket_asks_who_connects(shared: Path, start_daemon: StartDaemon) -> None:
    """Even where its mode was opened by hand, it takes commands of the daemon's user and of root alone."""
    ledger = make_ledger(shared, 0o644, GROUP)
    daemon = start_daemon(ledger)
    admin = find_endpoints(daemon.instance).admin
    os.chmod(admin, 0o666)
    os.chmod(daemon.instance.directory, 0o755)
    code = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[3]))
with socket.socket(socket.AF_UNIX) as one:
    one.settimeout(5)
    one.connect(sys.argv[1])
    print(len(one.recv(10)))
"""
    # ZeroMQ greets whom it lets in, and hangs up on others.
    for uid, greeting in ((OTHER_UID, "0"), (0, "10")):
        ended = daemons.run_python(code, admin, str(OTHER_GID), str(uid))
        assert ended.stdout.strip() == greeting, ended.stderr
    assert daemon.call(protocol.VERIFY, {"fold": None})["ok"]


def test_a_listening_socket_in_an_untrusted_directory_is_not_asked(ledger: str) -> None:
    """What a stranger's daemon says of the ledger counts for nothing; nobody connects to it."""
    instance = Instance.of(ledger)
    instance.directory.mkdir()
    path = instance.directory / "commands.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        record = {"commands": str(path), "admin": str(path), "announcements": str(path), "pid": 1}
        instance.endpoints_file.write_text(json.dumps(record))
        instance.directory.chmod(0o777)
        with connect(ledger) as cache:
            assert cache.stats()["daemon"] is None
            with pytest.raises(DaemonError, match="may write it"):
                cache.wait_for(1)
        with pytest.raises(BlockingIOError):
            listener.accept()
