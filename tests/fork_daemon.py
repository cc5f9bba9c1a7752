"""Real daemon processes that start in milliseconds: forked from a server that has imported all and opened nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pmm_shm_client.commands import call

from pmm_shm.endpoints import find_endpoints
from pmm_shm.errors import DaemonError
from pmm_shm.paths import Instance
from pmm_shm.protocol import PING

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["pmm_cached.main"])


def _serve(arguments: list[str]) -> None:
    from pmm_cached.main import main

    sys.argv = ["pmm-cached", *arguments]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr = nowhere
        main()


class ForkedDaemon:
    """One daemon for one ledger; a context manager that leaves nothing behind."""

    def __init__(self, ledger: Path, *options: str) -> None:
        self.ledger = ledger
        self._process = _server.Process(target=_serve, args=([*options, str(ledger)],))
        self._process.start()
        wait_until(self._answers, "the daemon to answer")

    def _answers(self) -> bool:
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
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.002)
