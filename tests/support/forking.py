"""Real processes that start in milliseconds: forked from a server that has imported all and opened nothing."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any
from unittest import mock

from tests.support.ledgers import checkout_path

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["pmm_cached.main", "pmm_shm.ledger.eventlog"])
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the system kill this process when the fork server ends, and it ends with the test run: however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def in_child(target: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """A process that runs `target`, a function of a module."""
    # The server must find this checkout's packages, whatever is installed, and it has the variables of its start.
    with mock.patch.dict(os.environ, {"PYTHONPATH": checkout_path()}):
        forkserver.ensure_running()
    process = server.Process(target=_run, args=(dict(os.environ), target, arguments))
    process.start()
    return process


def _run(variables: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    target(*arguments)


class ForkedProgram:
    """`pmm-cached` with these arguments in a forked process, used like `subprocess.Popen`; its streams go to a file."""

    def __init__(self, arguments: list[str], output: str) -> None:
        self._process = in_child(_serve, arguments, output)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("pmm-cached", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(arguments: list[str], output: str) -> None:
    from pmm_cached.main import main

    end_with_parent()
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    sys.argv = ["pmm-cached", *arguments]
    main()
