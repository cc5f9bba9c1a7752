"""Containers that share a volume, each with a pid namespace of its own: several processes have the same pid."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.instance.paths import Instance
from pmm_shm.store import boot
from tests.support.command import run
from tests.support.daemons import DEADLINE_S, environment, until
from tests.support.fork_daemon import ForkedDaemon
from tests.support.hazards import fill

WORKER = """
import json, os, sys
from pmm_shm_client import connect
cache = connect(sys.argv[1])
while (line := sys.stdin.readline()):
    try:
        answer = {"append": lambda: cache.append("user", "hello"), "exact": lambda: cache.metrics().as_of,
            "snapshot": lambda: cache.metrics(consistency="snapshot").as_of, "pid": os.getpid,
            "folded": lambda: cache._reader.events_folded, "close": cache.close}[line.strip()]()
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""
SAID = "a process of another pid namespace has the same pid, "


def pid_namespace(command: list[str], before: str = "") -> list[str]:
    """The command line that runs `command` as pid 1 of a new pid namespace, or behind `before`. Skips without root."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a pid namespace needs root and unshare(1)")
    start = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*start, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no pid namespaces here")
    return [*start, *command] if not before else [*start, "sh", "-c", f'{before}; "$@"; exit $?', "sh", *command]


class Worker:
    """A worker in a pid namespace of its own."""

    def __init__(self, ledger: str, before: str = "") -> None:
        command = pid_namespace([sys.executable, "-c", WORKER, ledger], before)
        self._process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self, word: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture
def filled(ledger: str) -> str:
    fill(ledger, 50)
    return ledger


def status_of(ledger: str) -> Any:
    return json.loads(run("status", ledger, "--json")[1])


@pytest.mark.parametrize(("before", "pid"), [("", 1), ("sleep 0", 3)])
def test_a_worker_with_anothers_pid_reads_exactly_and_says_why_it_is_slow(filled: str, before: str, pid: int) -> None:
    """Pid 1 as in containers, and another: the exact read goes on, error, status and doctor name cause and remedy."""
    with ForkedDaemon(Path(filled)), Worker(filled, before) as first, Worker(filled, before) as second:
        assert first("pid") == second("pid") == pid
        assert first("exact") == 50
        until(lambda: first("snapshot") == 50, "the state is published")
        assert second("exact") == 50
        said = second("snapshot")
        assert said.startswith(f"SnapshotUnavailableError: {filled}-cache: {SAID}{pid},")
        assert "pid: host" in said
        assert "shareProcessNamespace" in said
        # Its children have the same pids in each container.
        assert "init process" not in said
        assert second("append") == second("exact") == first("exact") == 51
        # Not replayed again and again.
        folded = second("folded")
        assert second("append") == second("exact") == 52
        assert second("folded") <= folded + 1
        found = status_of(filled)
        assert found["health"] == "degraded"
        assert found["reasons"][0].startswith("1 worker has the same pid as a process of another pid namespace")
        assert found["daemon"]["is_current"]
        findings = json.loads(run("doctor", filled, "--json")[1])["findings"]
        (same,) = (one for one in findings if one["check"] == "same-pid")
        assert f"have the same pid, {pid}, each in another pid namespace" in same["found"]
        assert "pid: host" in same["remedy"]
        second("close")
        until(lambda: status_of(filled)["health"] == "healthy", "the worker that left is forgotten")


@contextmanager
def contained_daemon(ledger: str) -> Iterator[subprocess.Popen[bytes]]:
    command = pid_namespace([sys.executable, "-m", "pmm_cached", ledger])
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    try:
        until(lambda: run("status", ledger)[0] in (0, 4), "the daemon answers")
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def test_a_daemon_and_a_worker_that_are_both_pid_1(filled: str) -> None:
    """The published state is the daemon's alone; a process of the machine's own namespace reads it as ever."""
    with contained_daemon(filled), Worker(filled) as worker:
        assert worker("exact") == 50
        assert SAID in worker("snapshot")
        assert worker("append") == worker("exact") == 51
        assert "pid namespace" in status_of(filled)["reasons"][0]
        assert run("read", filled, "metrics", "--consistency", "wait")[0] == 0


def test_what_to_type_about_a_daemon_elsewhere_names_no_process_of_this_namespace(filled: str) -> None:
    """Its record says pid 1, which is another process here: `kill 1` would be fatal advice."""
    with contained_daemon(filled) as daemon:
        inner = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text(encoding="utf-8").split()[0]
        os.kill(int(inner), signal.SIGSTOP)
        try:
            found = json.loads(run("status", filled, "--json", "--timeout", "0.3")[1])
            (remedy,) = found["remedies"]
            assert remedy["command"].startswith(f"kill -CONT {inner}  #")
            command = [sys.executable, "-m", "pmm_shm_cli", "status", filled, "--json", "--timeout", "0.3"]
            beside = subprocess.run(
                pid_namespace(command), env=environment(), capture_output=True, text=True, check=False
            )
            assert json.loads(beside.stdout)["remedies"][0]["command"].startswith("kill -CONT DAEMON  #")
        finally:
            os.kill(int(inner), signal.SIGCONT)


def test_a_daemon_that_finds_its_pid_taken_says_so_and_spoils_nothing(filled: str) -> None:
    """A worker, pid 1, outlives the first daemon; the next daemons are pid 1 of other containers. They start again and
    again, and the store, with its text vectors, is not taken for one that crashes daemons.
    """
    instance = Instance.of(filled)
    with Worker(filled) as worker:
        with ForkedDaemon(Path(filled)) as daemon:
            until(lambda: worker("snapshot") == 50, "the state is published")
            assert daemon.stop() == 0
        before = os.stat(instance.data_file).st_ino
        command = pid_namespace([sys.executable, "-m", "pmm_cached", filled])
        for _ in range(3):
            ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
            assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
            assert ended.stderr.startswith(f"pmm-cached: {filled}-cache: {SAID}1,")
        assert boot.openings(instance.boot_file) == 0
        with ForkedDaemon(Path(filled)):
            assert os.stat(instance.data_file).st_ino == before
            assert worker("append") == worker("exact") == 51
