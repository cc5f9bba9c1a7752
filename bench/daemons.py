"""Daemons and other processes of the benchmarks, in this checkout."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from pmm_shm.errors import DaemonAbsentError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm_client import commands

_ROOT = Path(__file__).resolve().parent.parent
_DEADLINE_S = 30.0


def environment() -> dict[str, str]:
    """This process's environment, with the packages of the checkout on PYTHONPATH."""
    checkout = [str(_ROOT / folder) for folder in ("server", "client", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*checkout, os.environ.get("PYTHONPATH", "")])}


def until(condition: Callable[[], bool], what: str, deadline_s: float = _DEADLINE_S) -> None:
    """Wait until `condition` holds; AssertionError if it does not within the deadline."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.005)


def execute(path: str | os.PathLike[str], sql: str) -> list[Any]:
    """The rows of one statement, by a separate connection, as another program would have them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


class Daemon:
    """One `pmm-cached` for a ledger; the caller stops or kills it."""

    def __init__(self, ledger: str, *options: str) -> None:
        self._instance = Instance.of(ledger)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pmm_cached", *options, ledger],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    def call(self, command: str, args: Mapping[str, Any] | None = None, timeout_s: float = _DEADLINE_S) -> Any:
        """The result of one command of the protocol."""
        return commands.call(self._instance, command, args or {}, timeout_s)

    def wait_answering(self, deadline_s: float = _DEADLINE_S) -> None:
        """Until it takes commands."""
        until(self._answers, "the daemon answers", deadline_s)

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.wait(_DEADLINE_S)

    def freeze(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{self.pid}/stat")
        until(lambda: state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T", "the daemon is stopped")

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"the daemon ended with {self._process.returncode}"
        try:
            self.call(protocol.PING)
        except DaemonAbsentError:
            return False
        return True
