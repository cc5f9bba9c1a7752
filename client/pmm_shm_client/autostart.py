"""Starts the daemon as a separate program, which outlives the client."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from pmm_shm.errors import CommandError, DaemonError, DaemonTimeoutError, StoreError
from pmm_shm.instance.access import PRIVATE_MODE, make_directory, make_file
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm_client import commands

_NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def daemon_command() -> list[str]:
    """The command line of this installation's `pmm-cached`."""
    script = Path(sys.executable).with_name("pmm-cached")
    return [str(script)] if script.exists() else [sys.executable, "-m", "pmm_cached"]


def is_running(instance: Instance, timeout_s: float = 1.0) -> bool:
    """Whether a daemon answers for this ledger."""
    try:
        commands.call(instance, protocol.PING, {}, timeout_s)
    except CommandError:
        # It has another version, but it serves the ledger.
        return True
    except DaemonError:
        return False
    return True


def start_daemon(ledger: str, timeout_s: float = 10.0) -> None:
    """Start a daemon for the ledger, if none answers, and wait until it does.

    If several clients start one at once, all but one exit. The log goes to `daemon.log` in the instance directory.

    Raises:
        DaemonTimeoutError: it did not answer in time; the message ends with the last line of its log.
    """
    instance = Instance.of(ledger)
    if is_running(instance):
        return
    try:
        make_directory(instance)
        os.close(make_file(instance.log_file, PRIVATE_MODE))
        process = spawn_daemon(instance.ledger, instance.log_file, "--log-format", "json")
    except StoreError as error:
        raise DaemonError(str(error)) from error
    except OSError as error:
        raise DaemonError(f"{instance.directory}: {error.strerror}") from error
    deadline = time.monotonic() + timeout_s
    while not is_running(instance, timeout_s=0.5):
        if time.monotonic() >= deadline or process.poll() not in (None, 0, 1):
            raise DaemonTimeoutError(f"{instance.ledger}: the daemon did not start: {last_line(instance.log_file)}")
        time.sleep(0.02)
    # The daemon goes on alone: drop the handle without waiting, and without a ResourceWarning at exit.
    process.returncode = process.poll() or 0


def spawn_daemon(ledger: str, log_file: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `pmm-cached`, whatever runs already, in a session of its own; it appends to `log_file`."""
    # A service manager that started this process would take the daemon's notifications for this process's.
    environment = {name: value for name, value in os.environ.items() if name not in _NOTIFY_VARIABLES}
    # Appends, because a daemon that is started at the same time writes to it, too.
    with open(log_file, "ab") as log:
        return subprocess.Popen(
            [*daemon_command(), *options, ledger],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def last_line(path: Path) -> str:
    """The last line of a log, to say why a program ended."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "its log is empty"
