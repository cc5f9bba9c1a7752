"""Daemons that are forked for a time, or to die at a crash point."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pmm_shm import crash_points
from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm.wire.protocol import PING
from pmm_shm_client.commands import call
from tests.support.forking import end_with_parent, in_child
from tests.support.polling import pause

UNKNOWN_POINT = 86
"""Exit code of a process that reached a crash point which is not registered."""


DiesAt = tuple[str, int]
"""A crash point, and when it is reached for which time, from 1."""


def die_at(point: str, time_of: int) -> None:
    """Let this process kill itself when it reaches a crash point."""
    left = time_of

    def hook(reached: str) -> None:
        nonlocal left
        if reached not in crash_points.POINTS:
            os._exit(UNKNOWN_POINT)
        if reached == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    crash_points.install(hook)


def _serve(arguments: list[str], dies_at: DiesAt | None, log: str) -> None:
    from pmm_cached.main import main

    end_with_parent()
    if dies_at is not None:
        die_at(*dies_at)
    sys.argv = ["pmm-cached", *arguments]
    with open(log, "a", encoding="utf-8") as nowhere:
        sys.stderr = nowhere
        main()


def serve_at(instant: float, arguments: list[str], errors: str) -> None:
    """`pmm-cached` in this process, from an instant of the monotonic clock on; what it says goes to a file."""
    while time.monotonic() < instant:
        pass
    _serve(arguments, None, errors)


class ForkedDaemon:
    """One daemon for one ledger; a context manager that leaves nothing behind.

    Parameters:
        dies_at: where it kills itself; it is not waited for then.
        log: a file for its log.
        waits: until it answers.
    """

    def __init__(
        self,
        ledger: Path,
        *options: str,
        dies_at: DiesAt | None = None,
        log: str | os.PathLike[str] = os.devnull,
        waits: bool = True,
    ) -> None:
        self.ledger = ledger
        self._process = in_child(_serve, [*options, str(ledger)], dies_at, os.fspath(log))
        if dies_at is None and waits:
            wait_until(self.answers, "the daemon to answer")

    def answers(self) -> bool:
        """Whether it takes commands already; fails where it has ended."""
        assert self._process.is_alive(), f"the daemon ended with {self._process.exitcode}"
        try:
            find_endpoints(Instance.of(self.ledger))
            call(Instance.of(self.ledger), PING, {}, 1.0)
        except DaemonError:
            return False
        return True

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def join(self, timeout_s: float) -> int | None:
        """The exit code; None where it has not ended by then."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def suspend(self) -> None:
        """SIGSTOP, and wait until it stands: it may still answer meanwhile."""
        os.kill(self.pid, signal.SIGSTOP)
        state = Path(f"/proc/{self.pid}/stat")
        wait_until(
            lambda: state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T", "the daemon to stand"
        )

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> int | None:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int | None:
        if self._process.is_alive():
            os.kill(self.pid, number)
            # One that was suspended goes on, to end; one that was killed may be gone already.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
        self._process.join(10)
        assert not self._process.is_alive(), "the daemon does not end"
        return self._process.exitcode

    def __enter__(self) -> ForkedDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self.kill()
        self._process.close()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Poll `condition` until it holds; fail after `timeout_s`."""
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        assert waited_s < timeout_s, f"waited {timeout_s:g} s in vain for {what}"
        pause(waited_s)
