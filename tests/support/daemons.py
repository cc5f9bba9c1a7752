"""Real daemons as subprocesses, for the promises that are about them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm_client import commands
from tests.support import forking, ledgers
from tests.support.crash import DiesAt
from tests.support.forking import ForkedProgram
from tests.support.polling import DEADLINE_S, until


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment with the checkout's packages on PYTHONPATH; a change to None removes."""
    result = {**os.environ, "PYTHONPATH": ledgers.checkout_path()}
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result


def with_path(folder: str | os.PathLike[str]) -> dict[str, str]:
    """An `environment` in which Python also finds what is installed in `folder`."""
    return environment(PYTHONPATH=os.pathsep.join([os.fspath(folder), environment()["PYTHONPATH"]]))


def run_daemon(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`pmm-cached` run to its end, for commands that must fail."""
    return forking.run("pmm_cached.main:main", ["pmm-cached", *arguments], env or environment(), timeout_s=DEADLINE_S)


def run_python(
    code: str, *arguments: str, env: Mapping[str, str] | None = None, forked: bool = True
) -> subprocess.CompletedProcess[str]:
    """A process that runs `code` to its end.

    It is forked from one that has imported everything, unless it must be an interpreter of its own (`forked=False`):
    for what it imports or warns of, for its settings, memory and end.
    """
    if forked:
        return forking.run(
            "tests.support.forking:run_code", ["-c", code, *arguments], env or environment(), timeout_s=DEADLINE_S
        )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that nobody waited for yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def serving(ledger: str) -> list[int]:
    """Pids of the daemons that were started for this ledger, by whomever, those that are about to exit included."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and is_alive(int(folder.name)):
            try:
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(ledger) in arguments and any(
                part.endswith((b"pmm-cached", b"pmm_cached")) for part in arguments
            ):
                found.append(int(folder.name))
    return found


def end(pid: int) -> None:
    """Kill a process that this test caused, and wait until it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    until(lambda: not is_alive(pid), f"process {pid} ends")


class Daemon:
    """One `pmm-cached`; use `start_daemon` of `conftest.py`, which cleans up, or `ForkedDaemon`.

    It is forked, which takes a fifth of the time, unless it must be an interpreter of its own (`forked=False`): as
    `/proc` shows it, with the scheduling of its parent, imports included.

    Parameters:
        log: a file for its log; one beside the ledger by default, in JSON.
        dies_at: a crash point where it kills itself, and when it is reached for which time.
    """

    process: subprocess.Popen[bytes] | ForkedProgram

    def __init__(
        self,
        ledger: str | os.PathLike[str],
        *options: str,
        env: Mapping[str, str] | None = None,
        forked: bool = True,
        log: str | os.PathLike[str] | None = None,
        dies_at: DiesAt | None = None,
    ) -> None:
        self.ledger = Path(ledger)
        self.instance = Instance.of(ledger)
        self.log = Path(f"{self.instance.ledger}.log-{time.monotonic_ns()}" if log is None else log)
        arguments = [*(("--log-format", "json") if log is None else ()), *options, os.fspath(ledger)]
        if forked:
            entry = "pmm_cached.main:main"
            if dies_at is not None:
                entry, arguments = "tests.support.crash:die_in_daemon", [*map(str, dies_at), *arguments]
            streams = (os.devnull, str(self.log), str(self.log))
            self.process = ForkedProgram(entry, ["pmm-cached", *arguments], streams, variables=env or environment())
        else:
            with open(self.log, "wb") as file:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "pmm_cached", *arguments],
                    env=env or environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
        self.pid = self.process.pid

    def call(self, command: str, args: Mapping[str, Any] | None = None, timeout_s: float = DEADLINE_S) -> Any:
        """One command of the protocol."""
        return commands.call(self.instance, command, args or {}, timeout_s)

    def stats(self) -> dict[str, Any]:
        """The daemon's own numbers."""
        return self.call(protocol.STATS)  # type: ignore[no-any-return]

    def wait_ready(self) -> None:
        """Until it answers and has published what the ledger's head is now."""
        self.wait_answering()
        self.wait_published(ledgers.execute(self.instance.ledger, "SELECT coalesce(max(id), 0) FROM events")[0][0])

    def wait_answering(self, deadline_s: float = DEADLINE_S) -> None:
        """Until it takes commands."""
        until(self.answers, "the daemon answers", deadline_s)

    def wait_published(self, event_id: int) -> None:
        """Until it has published `event_id`."""
        answer = self.call(protocol.WAIT, {"event_id": event_id, "timeout_ms": int(DEADLINE_S * 1_000)}, DEADLINE_S + 5)
        assert answer["reached"], self.log.read_text(encoding="utf-8")

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def answers(self) -> bool:
        """Whether it takes commands already; fails where it has ended."""
        assert self.is_alive, self.log.read_text(encoding="utf-8") or f"it ended with {self.process.poll()}"
        try:
            self.call(protocol.PING, timeout_s=1.0)
        except DaemonError:
            return False
        return True

    def join(self, timeout_s: float) -> int | None:
        """The exit code; None where it has not ended by then."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> int:
        """SIGTERM, also for a frozen one; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.thaw()
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL, whatever state it is in."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def freeze(self) -> None:
        """SIGSTOP, and wait until it stands: it may still answer meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{self.pid}/stat")
        until(lambda: state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T", "the daemon stands")

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)
