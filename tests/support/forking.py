"""Real processes that start in milliseconds: forked from a server that has imported all and opened nothing."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.process
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from typing import Any
from unittest import mock

from tests.support.ledgers import checkout_path

server = multiprocessing.get_context("forkserver")
# With what runs in the child: it is looked up there by its module.
server.set_forkserver_preload(
    [
        "pmm_cached.main",
        "pmm_cached.event_tables",
        "pmm_shm.ledger.eventlog",
        "pmm_shm_cli.main",
        "tests.support.fork_daemon",
        "tests.support.frozen",
    ]
)
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
    """A program in a forked process, used like `subprocess.Popen`.

    Parameters:
        entry: "module:function" of what runs it.
        arguments: its name and arguments, as `sys.argv` has them.
        streams: files for stdin, stdout and stderr.
        folder: where it runs.
    """

    def __init__(
        self,
        entry: str,
        arguments: list[str],
        streams: tuple[str, str, str],
        folder: str | os.PathLike[str] = os.curdir,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._process = in_child(_run_program, entry, arguments, streams, os.path.abspath(folder), variables)
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
            raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run_program(
    entry: str,
    arguments: list[str],
    streams: tuple[str, str, str],
    folder: str,
    variables: Mapping[str, str] | None,
) -> None:
    end_with_parent()
    os.chdir(folder)
    if variables is not None:
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:0] = variables.get("PYTHONPATH", "").split(os.pathsep)
    for number, path in enumerate(streams):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if encoding := os.environ.get("PYTHONIOENCODING"):
        for file in (sys.stdin, sys.stdout, sys.stderr):
            file.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    sys.argv = arguments
    pkgutil.resolve_name(entry)()
