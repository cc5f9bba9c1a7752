"""What workers report of themselves: the sums of all, whatever is lost, doubled, forged or forked."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from pmm_cached.workers import started_at
from pmm_shm import limits
from pmm_shm.instance.paths import Instance, file_id
from pmm_shm.wire.endpoints import recorded_endpoints
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import answers, daemons
from tests.support.reports import counters, packed
from tests.support.waiting import at_most

# The table.


def test_a_process_is_told_from_the_next_one_of_its_pid() -> None:
    assert started_at(os.getpid()) == started_at(os.getpid()) is not None
    child = os.fork()
    if child == 0:
        os._exit(0)
    daemons.until(lambda: started_at(child) is None, "a process that nobody waited for does not live")
    os.waitpid(child, 0)


# With a daemon.


def workers_of(daemon: daemons.Daemon) -> dict[str, int]:
    return daemon.stats()["workers"]  # type: ignore[no-any-return]


def until_counted(daemon: daemons.Daemon, **expected: int) -> None:
    def counted() -> bool:
        found = workers_of(daemon)
        return all(found[name] == count for name, count in expected.items())

    daemons.until(counted, f"{expected} are counted")


def test_the_daemon_has_the_sums_of_all_processes(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    code = """
import sys
from pmm_shm_client import connect
cache = connect(sys.argv[1])
for _ in range(10):
    cache.metrics(), cache.stage(), cache.identity()
assert "zmq" not in sys.modules and "numpy" not in sys.modules
cache.close()
cache.close()
assert "zmq" not in sys.modules
"""
    for _ in range(3):
        assert daemons.run_python(code, ledger, forked=False).returncode == 0
    until_counted(daemon, live=0, seen=3, metrics_hits=54, metrics_misses=6, projection_hits=27, projection_misses=3)


def test_reports_come_after_misses_and_no_more_often_than_they_may(
    ledger: str, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        for number in range(3):
            cache.append("user", str(number), {})
            cache.metrics()
        assert workers_of(daemon)["seen"] == 0
        cache._reporter.due = 0.0
        for _ in range(5):
            cache.metrics()
        # Hits do not even look whether a report is due.
        assert cache._reporter.due == 0.0
        cache.append("user", "one more", {})
        cache.metrics()
        until_counted(daemon, seen=1, live=1, metrics_hits=5, metrics_misses=4)
        assert cache._reporter.due > time.monotonic() + limits.REPORT_EVERY_S - 1
        # A vector that nobody has computed yet is a miss, too.
        cache._reporter.due = 0.0
        cache.embed("a text")
        until_counted(daemon, embedding_misses=1)
    until_counted(daemon, live=0)


def test_the_child_of_a_fork_is_another_worker(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        for _ in range(5):
            cache.metrics()
        cache._reporter.report()
        until_counted(daemon, seen=1, metrics_hits=4, metrics_misses=1)
        child = os.fork()
        if child == 0:
            try:
                cache.metrics(), cache.metrics()
                cache.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        until_counted(daemon, live=1, seen=2)
        found = workers_of(daemon)
        assert found["metrics_hits"] + found["metrics_misses"] == 7


def test_a_worker_that_was_killed_is_not_alive_and_stays_counted(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    ended = daemons.run_python(
        "import os, signal, sys; from pmm_shm_client import connect; cache = connect(sys.argv[1]); cache.metrics(); "
        "cache._reporter.report(); os.kill(os.getpid(), signal.SIGKILL)",
        ledger,
    )
    assert ended.returncode == -signal.SIGKILL
    until_counted(daemon, live=0, seen=1, metrics_misses=1)


def test_nothing_waits_or_fails_where_nobody_takes_reports(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        cache.metrics()
        cache._reporter.report()
        daemon = start_daemon(ledger)
        daemon.freeze()
        with at_most(5.0):
            for _ in range(2_000):
                cache._reporter._reported = {}
                cache._reporter.report()
        cache._reporter.due = 0.0
        cache.append("user", "while it stands", {})
        assert answers.everything(cache) == answers.replayed(ledger)
        daemon.thaw()
        until_counted(daemon, live=1, seen=1)
        daemon.kill()
        cache._reporter.due = 0.0
        cache.append("user", "while it is dead", {})
        assert answers.everything(cache) == answers.replayed(ledger)


def test_who_reports_nonsense_is_counted_and_nothing_else(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    path = recorded_endpoints(Instance.of(ledger)).reports
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for data in (b"", b"\xc1", b"x" * 50_000, packed(worker="me"), packed() + b"\0" * limits.REPORT_BYTES_MAX):
            sender.sendto(data, path)
        sender.sendto(packed(counted=counters(metrics_hits=3), ledger=file_id(ledger)), path)
    until_counted(daemon, seen=1, live=1, metrics_hits=3)
    assert daemon.stats()["malformed_messages"] == 5
    assert daemon.stats()["health"] == "healthy"
