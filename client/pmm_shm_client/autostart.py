"""Starts the daemon as a separate program, which outlives the client until it is idle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pmm_shm import flags, limits
from pmm_shm.errors import CommandError, DaemonError, DaemonTimeoutError, ResourceLimitError, StoreError
from pmm_shm.instance.making import PRIVATE_MODE, make_directory, make_file
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm_client import commands

if TYPE_CHECKING:
    from pmm_shm.ledger.shape import Shape

_NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


_PYTHON = re.compile(r"\.?(python|pypy|graalpy)[0-9.]*[dmt]*(-dbg|-wrapped)?")
_END_S = 1.0


def daemon_command() -> list[str]:
    """The command line of this installation's `pmm-cached`.

    Raises:
        DaemonError: it is not known: `sys.executable` is no Python, but a program that Python is embedded in (a frozen
            application, uWSGI), and would start itself again.
    """
    interpreter = sys.executable or ""
    script = os.path.join(os.path.dirname(interpreter), "pmm-cached")
    if os.path.isabs(script) and os.path.isfile(script) and os.access(script, os.X_OK):
        return [script]
    is_python = _PYTHON.fullmatch(os.path.basename(interpreter)) and not getattr(sys, "frozen", False)
    if is_python and os.path.isfile(interpreter) and os.access(interpreter, os.X_OK):
        return [interpreter, "-m", "pmm_cached"]
    raise DaemonError(f"this program ({interpreter or 'without a name'}) is no Python that could run pmm-cached")


def is_running(instance: Instance, timeout_s: float = 1.0) -> bool:
    """Whether a daemon answers for this ledger. Raises `ResourceLimitError`, where this process cannot ask."""
    try:
        commands.call(instance, protocol.PING, {}, timeout_s)
    except CommandError:
        # It has another version, but it serves the ledger.
        return True
    except ResourceLimitError:
        raise
    except DaemonError:
        return False
    return True


def start_daemon(ledger: str, timeout_s: float = 10.0, folds: Iterable[str] = (), shape: Shape | None = None) -> None:
    """Start a daemon for the ledger, if none answers, and wait until it does. It ends when it is idle.

    If several clients start one at once, all but one exit. The log goes to `daemon.log` in the instance directory.

    Parameters:
        folds: what it shall keep besides the built-in and the registered ones, as `package.module:attribute`.
        shape: how a table of another program is the log; it is recorded for the daemon.

    Raises:
        DaemonError: it cannot be started from here; the message has the command to type.
        DaemonTimeoutError: it did not answer in time, and was ended; the message ends with the last line of its log.
    """
    instance = Instance.of(ledger)
    if is_running(instance):
        return
    try:
        daemon_command()
    except DaemonError as error:
        import shlex

        typed = f"pmm-cached {shlex.quote(instance.ledger)}"
        raise DaemonError(f"{instance.ledger}: {error}; start it by hand: {typed}") from None
    try:
        make_directory(instance)
        os.close(make_file(instance.log_file, PRIVATE_MODE))
        if shape is not None:
            from pmm_shm.ledger.shape_record import record_shape

            record_shape(instance, shape)
    except StoreError as error:
        raise DaemonError(str(error)) from error
    except OSError as error:
        raise DaemonError(f"{instance.directory}: {error.strerror}") from error
    options = ["--log-format", "json", "--idle-exit", f"{limits.AUTOSTART_IDLE_EXIT_S:g}"]
    for fold in folds:
        options += ["--fold", fold]
    process = spawn_daemon(instance.ledger, instance.log_file, *options)
    try:
        _wait_until_running(instance, process, timeout_s)
    except BaseException:
        end_daemon(process)
        raise
    # The daemon goes on alone: drop the handle without waiting, and without a ResourceWarning at exit.
    process.returncode = process.poll() or 0


def _wait_until_running(instance: Instance, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_running(instance, timeout_s=0.5):
        # 0 and 1: perhaps because another daemon is about to serve the ledger.
        if time.monotonic() >= deadline or process.poll() not in (None, 0, 1):
            raise DaemonTimeoutError(f"{instance.ledger}: the daemon did not start: {last_line(instance.log_file)}")
        time.sleep(0.02)


def end_daemon(process: subprocess.Popen[bytes]) -> None:
    """End a program that was started in a session of its own, with all that it has started there."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(OSError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


def spawn_daemon(ledger: str, log_file: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `pmm-cached`, whatever runs already, in a session of its own; it appends to `log_file`.

    Raises:
        DaemonError: it cannot be run.
    """
    command = [*daemon_command(), *options, ledger]
    # A service manager that started this process would take the daemon's notifications for this process's. And a value
    # that is another program's must not keep the daemon from starting.
    not_its = flags.OF_READERS.union(_NOTIFY_VARIABLES)
    environment = {name: value for name, value in os.environ.items() if name not in not_its}
    # Under `pmm-shm run` every Python would look for PMM.
    environment["PMM_SHM"] = "off"
    try:
        # Appends, because a daemon that is started at the same time writes to it, too.
        with open(log_file, "ab") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        # Without a name it is none of the files: out of processes, descriptors or memory.
        raise DaemonError(f"{error.filename or command[0]}: {error.strerror}: the daemon cannot be started") from error


def last_line(path: Path) -> str:
    """The last line of a log, to say why a program ended."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "its log is empty"
