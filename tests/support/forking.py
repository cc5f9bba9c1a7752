"""Real processes that start in milliseconds: forked from a server that has imported all and opened nothing."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import multiprocessing.process
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType
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
        "tests.support.crash",
        "tests.support.forking",
        "tests.support.frozen",
    ]
)
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the system kill this process when the fork server ends, and it ends with the test run: however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def in_child(target: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """A process that runs `target`, a function of a module."""
    # The server must find this checkout's packages, whatever is installed. It keeps the variables of its start, and a
    # test that starts processes by itself gets them: none may be of the test that happens to be the first.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PMM_")}
    with mock.patch.dict(os.environ, {**variables, "PYTHONPATH": checkout_path()}, clear=True):
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


def run(
    entry: str,
    arguments: Sequence[str],
    variables: Mapping[str, str] | None = None,
    folder: str | os.PathLike[str] = os.curdir,
    input: str = "",
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """A forked program to its end, with the parameters of `ForkedProgram`; both its streams are text."""
    with tempfile.TemporaryDirectory(prefix="pmm-run-") as streams:
        paths = [Path(streams, name) for name in ("in", "out", "err")]
        for path in paths:
            path.write_text(input if path.name == "in" else "", encoding="utf-8")
        stdin, stdout, stderr = map(str, paths)
        program = ForkedProgram(entry, list(arguments), (stdin, stdout, stderr), folder, variables)
        try:
            code = program.wait(timeout_s)
        finally:
            program.kill()
        out, err = (path.read_text(encoding="utf-8") for path in paths[1:])
    return subprocess.CompletedProcess([entry, *arguments], code, out, err)


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
        time.tzset()
        first = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = first + [path for path in sys.path if path not in first]
    for number, path in enumerate(streams):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if encoding := os.environ.get("PYTHONIOENCODING"):
        for file in (sys.stdin, sys.stdout, sys.stderr):
            file.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    sys.argv = arguments
    try:
        pkgutil.resolve_name(entry)()
    finally:
        atexit._run_exitfuncs()


def run_code() -> None:
    """The program whose text is the first argument, as `python -c` runs it."""
    code = sys.argv.pop(1)
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), main.__dict__)
