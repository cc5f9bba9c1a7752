"""What the daemon tells a service manager: the protocol by itself, then a real daemon and a real socket."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_cached.logs import configure
from pmm_cached.notify import Notifier, StatusReporter
from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_cli import synthetic
from pmm_shm_client import connect
from pmm_shm_client.autostart import start_daemon as autostart
from pmm_shm_client.commands import call
from tests.conftest import StartDaemon
from tests.support import answers, daemons, ledgers
from tests.support.managers import Manager
from tests.support.sites import Site
from tests.support.user_folds import FREEZING

STOP_S = 2.0
# For the process to be seen to have ended, on a busy machine.
MARGIN_S = 0.5


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    manager = Manager(folder)
    yield manager
    manager.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def received(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(1 << 16).decode())
        except BlockingIOError:
            return found


@pytest.fixture(params=["path", "abstract"])
def listener(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """A datagram socket, and its address as NOTIFY_SOCKET has it."""
    address = str(folder / "notify") if request.param == "path" else f"@{folder}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address if request.param == "path" else "\0" + address[1:])
        listener.setblocking(False)
        yield listener, address


# The protocol.


def test_each_state_is_one_datagram(listener: tuple[socket.socket, str]) -> None:
    end, address = listener
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.status("healthy, as of event 7")
    notifier.stopping()
    notifier.close()
    assert received(end) == ["READY=1", "STATUS=healthy, as of event 7", "STOPPING=1"]


def test_nothing_comes_behind_stopping(listener: tuple[socket.socket, str]) -> None:
    end, address = listener
    clock = Clock()
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}, clock)
    notifier.stopping()
    clock.now += 10
    notifier.status("healthy")
    notifier.feed()
    notifier.close()
    assert received(end) == ["STOPPING=1"]


def test_threads_that_tell_at_once_send_no_empty_message(folder: Path) -> None:
    manager = Manager(folder)
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    threads = [threading.Thread(target=many, args=(tell,)) for tell in (notifier.feed, notifier.feed, notifier.ready)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    manager.close()
    notifier.close()
    assert {frozenset(message.states) for message in manager.messages} == {frozenset({"READY"})}


def many(action: Callable[[], None]) -> None:
    for _ in range(5_000):
        action()


def test_the_watchdog_is_fed_once_in_half_of_its_time(listener: tuple[socket.socket, str]) -> None:
    end, address = listener
    clock = Clock()
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000"}, clock)
    for _ in range(101):
        notifier.feed()
        clock.now += 0.25
    assert received(end) == ["WATCHDOG=1"] * 5
    clock.now += 3_600
    assert received(end) == []
    notifier.feed()
    assert received(end) == ["WATCHDOG=1"]
    notifier.close()


def test_without_a_watchdog_progress_is_nobodys_business(listener: tuple[socket.socket, str]) -> None:
    end, address = listener
    clock = Clock()
    notifier = Notifier({"NOTIFY_SOCKET": address}, clock)
    for _ in range(10):
        clock.now += 1_000
        notifier.feed()
    assert received(end) == []
    notifier.close()


def test_a_manager_that_does_not_read_delays_nothing_and_misses_nothing(listener: tuple[socket.socket, str]) -> None:
    end, address = listener
    notifier = Notifier({"NOTIFY_SOCKET": address})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"X=1", end.getsockname())
    caller = threading.Thread(target=lambda: (notifier.ready(), notifier.status("old"), notifier.status("new")))
    caller.start()
    caller.join(daemons.DEADLINE_S)
    assert not caller.is_alive()
    assert set(received(end)) == {"X=1"}
    notifier.feed()
    assert received(end) == ["READY=1\nSTATUS=new"]
    notifier.feed()
    assert received(end) == []
    notifier.close()


def test_no_text_becomes_an_assignment(listener: tuple[socket.socket, str]) -> None:
    end, address = listener
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.status("degraded\nMAINPID=1\r\x00\x1b[2J\u2028" + "\ud800" + "x" * 10_000)
    (message,) = received(end)
    assert message.startswith("STATUS=degraded MAINPID=1")
    assert not set(message) & set("\n\r\x00\x1b\u2028")
    assert len(message) < 1_000
    notifier.close()


def test_a_status_is_told_when_it_is_new(listener: tuple[socket.socket, str]) -> None:
    end, address = listener
    numbers: dict[str, Any] = {"health": "healthy", "as_of": 1, "lag_events": 0, "health_reasons": []}
    notifier = Notifier({"NOTIFY_SOCKET": address})
    reporter = StatusReporter(notifier, lambda: numbers, configure("json", "error"))
    for as_of in (1, 1, 2):
        numbers["as_of"] = as_of
        reporter.report()
    assert received(end) == ["STATUS=healthy, as of event 1", "STATUS=healthy, as of event 2"]
    # It was never started: there is nothing to wait for.
    assert reporter.stop(0.0)
    notifier.close()


# A daemon.


def test_ready_means_that_it_answers(ledger: str, manager: Manager, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, env=manager.environment(), wait=False)
    manager.wait_for("READY")
    assert call(Instance.of(ledger), protocol.PING, {}, daemons.DEADLINE_S)["pid"] == daemon.pid
    manager.wait_for("STATUS", "healthy, as of event 0")
    with EventLog(ledger) as log:
        for _ in range(3):
            log.append("user", "hello", {})
    manager.wait_for("STATUS", "healthy, as of event 3")
    assert not manager.of("STOPPING")
    assert daemon.stop() == 0
    manager.wait_for("STOPPING")
    assert [len(manager.of(name)) for name in ("READY", "STOPPING", "WATCHDOG")] == [1, 1, 0]
    names = [name for message in manager.messages for name in message.states]
    assert names.index("READY") < names.index("STATUS")
    assert names[-1] == "STOPPING"


def test_an_abstract_socket_serves_as_well(ledger: str, start_daemon: StartDaemon) -> None:
    manager = Manager(None)
    try:
        start_daemon(ledger, env=manager.environment(), wait=False)
        manager.wait_for("READY")
    finally:
        manager.close()


def test_readiness_does_not_wait_for_a_rebuild(tmp_path: Path, manager: Manager, start_daemon: StartDaemon) -> None:
    path = tmp_path / "ledger.db"
    synthetic.generate(path, 30_000, 7)
    daemon = start_daemon(str(path), env=manager.environment(), wait=False)
    manager.wait_for("READY")
    first = manager.wait_for("STATUS").states["STATUS"]
    assert first.startswith("lagging, as of event 0, 30000 behind; the published state is being built")
    daemon.wait_ready()
    manager.wait_for("STATUS", "healthy, as of event 30000")


def test_the_watchdog_is_fed_while_nothing_happens(ledger: str, manager: Manager, start_daemon: StartDaemon) -> None:
    # The slow poll is far longer than the watchdog's time.
    start_daemon(ledger, "--slow-poll-ms", "60000", env=manager.environment(watchdog_s=1.0))
    daemons.until(lambda: len(manager.of("WATCHDOG")) >= 5, "five signs of life")
    times = [message.at for message in manager.of("WATCHDOG")]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    # Twice a second; a busy machine delays, the first one too, and nothing makes it more often.
    assert (times[4] - times[0]) / 4 > 0.3
    assert sorted(gaps)[len(gaps) // 2] < 0.9


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_the_watchdog_starves_when_a_fold_hangs(
    ledger: str, tmp_path: Path, manager: Manager, how: str, start_daemon: StartDaemon
) -> None:
    site = Site(tmp_path / "site")
    site.install(FREEZING, "freezing = tool_use:Freezing")
    daemon = start_daemon(ledger, env={**site.environment, **manager.environment(1.0), **only_path(site)})
    manager.wait_for("WATCHDOG")
    with connect(ledger) as cache:
        cache.append("freeze", how, {})
        # The status that a person sees changes, three seconds after the fold began to hang.
        seen_at = manager.wait_for("STATUS", "has not moved").at
        assert [one for one in manager.of("WATCHDOG") if one.at > seen_at - 1.0] == []
        # The manager's answer: the log says where it hung, and readers go on.
        os.kill(daemon.pid, signal.SIGABRT)
        assert daemon.process.wait(daemons.DEADLINE_S) == -signal.SIGABRT
        assert "tool_use.py" in daemon.log.read_text(encoding="utf-8")
        assert answers.everything(cache) == answers.replayed(ledger)


def only_path(site: Site) -> dict[str, str]:
    return {"PYTHONPATH": site.environment["PYTHONPATH"], "PYTHONDONTWRITEBYTECODE": "1"}


def test_a_stopped_process_does_not_feed_the_watchdog(ledger: str, manager: Manager, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, env=manager.environment(0.4))
    manager.wait_for("WATCHDOG")
    daemon.freeze()
    manager.settle()
    count = len(manager.of("WATCHDOG"))
    time.sleep(1.0)
    manager.settle()
    assert len(manager.of("WATCHDOG")) == count
    daemon.thaw()
    daemons.until(lambda: len(manager.of("WATCHDOG")) > count, "it goes on")


def test_rebuild_verification_and_trouble_do_not_starve_the_watchdog(
    tmp_path: Path, manager: Manager, start_daemon: StartDaemon
) -> None:
    path = tmp_path / "ledger.db"
    synthetic.generate(path, 60_000, 7)
    daemon = start_daemon(str(path), env=manager.environment(watchdog_s=2.0))
    daemon.call(protocol.VERIFY, {"fold": None})
    with connect(path) as cache:
        cache.invalidate()
    moved = path.rename(tmp_path / "elsewhere.db")
    manager.wait_for("STATUS", "no such file")
    count = len(manager.of("WATCHDOG"))
    daemons.until(lambda: len(manager.of("WATCHDOG")) >= count + 3, "it lives, and says so")
    moved.rename(path)
    manager.wait_for("STATUS", "healthy")
    times = [message.at for message in manager.messages if {"READY", "WATCHDOG"} & set(message.states)]
    assert max(later - sooner for sooner, later in itertools.pairwise(times)) < 2.0


def test_an_autostarted_daemon_does_not_speak_for_its_starter(
    ledger: str, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in manager.environment(0.2).items():
        monkeypatch.setenv(name, value)
    autostart(ledger)
    pid = find_endpoints(Instance.of(ledger)).pid
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert not [one for one in environment if one.startswith((b"NOTIFY_", b"WATCHDOG_"))]
    finally:
        daemons.end(pid)
    assert manager.messages == []


# The end.


@pytest.mark.parametrize("when", ["idle", "rebuild", "verification"])
def test_sigterm_ends_it_within_two_seconds(
    tmp_path: Path, manager: Manager, when: str, start_daemon: StartDaemon
) -> None:
    path = tmp_path / "ledger.db"
    if when == "idle":
        ledgers.build(path, 30)
    elif when == "rebuild":
        # Enough that it is still at it when it is asked.
        ledgers.build_many(path, 400_000)
    else:
        synthetic.generate(path, 100_000, 7)
    daemon = start_daemon(str(path), env=manager.environment(), wait=when != "rebuild")
    busy: threading.Thread | None = None
    if when == "rebuild":
        manager.wait_for("READY")
        daemons.until(lambda: daemon.stats()["rebuilding"], "it rebuilds")
        time.sleep(0.3)
        assert daemon.stats()["rebuilding"]
    elif when == "verification":
        busy = threading.Thread(target=_verify, args=(daemon,), daemon=True)
        busy.start()
        time.sleep(0.3)
        assert busy.is_alive()
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < STOP_S + MARGIN_S
    manager.wait_for("STOPPING")
    if busy is not None:
        busy.join(daemons.DEADLINE_S)


def _verify(daemon: daemons.Daemon) -> None:
    try:
        daemon.call(protocol.VERIFY, {"fold": None})
    except DaemonError:
        return
