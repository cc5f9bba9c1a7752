"""Ledgers for the tests of programs that use pmm-shm: in a folder that is removed, with a daemon or without one.

For pytest, module `pytest_plugin` has fixtures, which are there wherever pmm-shm is installed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmm_shm import limits
from pmm_shm.errors import DaemonRunningError, DaemonTimeoutError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client.autostart import end_daemon, is_running, last_line, spawn_daemon

_START_S = 30.0


@contextmanager
def temporary_ledger(*, daemon: bool = False) -> Iterator[str]:
    """The path of a new, empty ledger, with a daemon if asked for; afterwards daemon, ledger and folder are gone.

    Raises:
        DaemonError: the daemon does not start.
    """
    # Not a folder of the test framework: its path may be too long for sockets, and it stays.
    folder = tempfile.mkdtemp(prefix="pmm-")
    path = os.path.join(folder, "agent.db")
    try:
        EventLog(path).close()
        if daemon:
            with running_daemon(path):
                yield path
        else:
            yield path
    finally:
        shutil.rmtree(Instance.of(path).directory, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_daemon(ledger: str) -> Iterator[None]:
    """A daemon for a ledger, within the `with` block; its embedder is that of `PMM_EMBEDDER`.

    Raises:
        DaemonRunningError: another one serves the ledger.
        DaemonTimeoutError: it does not start; the message ends with the last line of its log.
    """
    instance = Instance.of(ledger)
    if is_running(instance):
        raise DaemonRunningError(f"{instance.ledger}: a daemon already serves it")
    with tempfile.TemporaryDirectory(prefix="pmm-log-") as folder:
        log = Path(folder, "daemon.log")
        # A test run that is killed leaves it behind, until nobody has used it for so long.
        process = spawn_daemon(instance.ledger, log, "--idle-exit", f"{limits.AUTOSTART_IDLE_EXIT_S:g}")
        try:
            deadline_s = time.monotonic() + _START_S
            while not is_running(instance, 0.5):
                if process.poll() is not None or time.monotonic() >= deadline_s:
                    raise DaemonTimeoutError(f"{instance.ledger}: the daemon did not start: {last_line(log)}")
                time.sleep(0.01)
            yield
        finally:
            end_daemon(process)
