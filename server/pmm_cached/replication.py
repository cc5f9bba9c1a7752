"""Starts and supervises the follower of a log of record in PostgreSQL; the daemon itself never talks to PostgreSQL.

The follower is a process of its own, and ends with the daemon. What it reports is a file in the instance directory.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

from pmm_cached.logs import Logger
from pmm_shm import limits
from pmm_shm.errors import ConfigError, LedgerError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.replicas import read_record
from pmm_shm.ledger.source.report import REPORT_FILE, read_status

DSN_VARIABLE = "PMM_SOURCE"
_USAGE, _NEEDS_A_PERSON = 2, 5
_RETRY_S_MIN, _RETRY_S_MAX = 0.5, 10.0
_LIVED_S = 30.0
_END_S = 1.0


class Source(NamedTuple):
    """A ledger in PostgreSQL.

    Attributes:
        dsn: where the servers are, without a password.
        name: the ledger's name.
        fork_max: how many events the replica takes back by itself.
    """

    dsn: str
    name: str
    fork_max: int = limits.REPLICA_FORK_MAX


def make_replica(ledger: str, source: Source) -> None:
    """Make the replica where there is none; what it has to contain follows later.

    Raises:
        ConfigError: the data source name or the ledger's name has no meaning.
        LedgerError: PostgreSQL cannot be reached, or the file there is another ledger; nothing was changed.
    """
    with _started(ledger, source, "--prepare") as process:
        lines = process.communicate()[1].strip().splitlines()
    if process.returncode:
        reason = lines[-1].removeprefix("pmm_replicator: ") if lines else f"exit code {process.returncode}"
        raise (ConfigError if process.returncode == _USAGE else LedgerError)(reason)


class Replication:
    """Keeps the follower of one replica running, in a thread.

    Parameters:
        source: what to follow.
    """

    def __init__(self, instance: Instance, source: Source, log: Logger) -> None:
        self._instance = instance
        self._source = source
        self._log = log
        self._is_stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._started = time.monotonic()
        self._last_line: str | None = None
        self._needs_a_person = False
        self._thread = threading.Thread(target=self._supervise, name="replication", daemon=True)

    def start(self) -> None:
        with contextlib.suppress(OSError):
            # Of an earlier follower, perhaps before a reboot.
            (self._instance.directory / REPORT_FILE).unlink()
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the follower. Returns whether it has ended."""
        self._is_stopping.set()
        with self._lock:
            process = self._process
            if process is not None and process.poll() is None:
                process.terminate()
        self._thread.join(timeout_s)
        if process is not None and process.poll() is None:
            # A batch that is killed is rolled back.
            process.kill()
        return not self._thread.is_alive()

    def numbers(self) -> dict[str, Any]:
        """The state of the replica, for the stats command."""
        status = read_status(self._instance.directory)
        if status is None:
            absent_ms = int((time.monotonic() - self._started) * 1_000)
            return {
                "name": self._source.name,
                "is_running": False,
                "lag_events": 0,
                "lag_ms": absent_ms,
                "looked_ms": None,
            } | {
                "server": None,
                "timeline": 0,
                "source_head_id": None,
                "forks": 0,
                "lost_files": [],
                "difference": None,
                "problem": self._last_line,
                "needs_a_person": self._needs_a_person,
            }
        numbers = status._asdict() | {
            "lost_files": list(status.lost_files),
            "problem": status.problem or (None if status.is_running else self._last_line),
            "needs_a_person": self._needs_a_person,
        }
        del numbers["pid"], numbers["head_id"]
        return numbers

    def _supervise(self) -> None:
        pause_s = _RETRY_S_MIN
        while not self._is_stopping.is_set():
            began = time.monotonic()
            code = self._run_once(self._source)
            if self._is_stopping.is_set():
                return
            self._needs_a_person = code == _NEEDS_A_PERSON
            self._log.error("the follower of the source ended", exit_code=code, reason=self._last_line)
            pause_s = _RETRY_S_MIN if time.monotonic() - began > _LIVED_S else min(2 * pause_s, _RETRY_S_MAX)
            self._is_stopping.wait(_RETRY_S_MAX if self._needs_a_person else pause_s)

    def _run_once(self, source: Source) -> int:
        try:
            with self._lock:
                if self._is_stopping.is_set():
                    return 0
                self._process = process = _started(self._instance.ledger, source, "--ends-with-parent")
        except OSError as error:
            self._last_line = f"the follower cannot be started: {error.strerror}"
            return 1
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._last_line = line.strip().removeprefix("pmm_replicator: ")
                self._log.warning("source", message=self._last_line)
        return process.wait()


def problems(replica: dict[str, Any] | None) -> list[str]:
    """What somebody has to look at."""
    if replica is None:
        return []
    if replica["difference"]:
        return [
            f"the replica differs from its source {replica['name']!r}: {replica['difference']}; one of them was edited"
        ]
    stands_ms = _stands_still_ms(replica)
    if replica["needs_a_person"] or stands_ms > limits.REPLICA_DEGRADED_MS:
        return [_why(replica, stands_ms)]
    return []


def delays(replica: dict[str, Any] | None) -> list[str]:
    """What may pass."""
    if replica is None or problems(replica):
        return []
    stands_ms = _stands_still_ms(replica)
    if stands_ms > limits.REPLICA_LAG_MS_MAX or replica["problem"] or not replica["is_running"]:
        return [_why(replica, stands_ms)]
    if replica["lag_events"] and replica["lag_ms"] > limits.LAG_MS_MAX:
        return [
            f"the replica is {replica['lag_events']:,} events behind its source {replica['name']!r}, for "
            f"{replica['lag_ms']:,} ms"
        ]
    return []


def _stands_still_ms(replica: dict[str, Any]) -> int:
    looked_ms: int | None = replica["looked_ms"]
    return int(replica["lag_ms"]) if looked_ms is None else looked_ms


def _why(replica: dict[str, Any], stands_ms: int) -> str:
    if replica["needs_a_person"]:
        return f"the source {replica['name']!r} is not followed: {replica['problem']}"
    reason = replica["problem"] or (
        "its follower stands still" if replica["is_running"] else "its follower does not run"
    )
    return f"the source {replica['name']!r} was not confirmed for {stands_ms:,} ms: {reason}"


def _started(ledger: str, source: Source, option: str) -> subprocess.Popen[str]:
    """The follower's program; what it has to say is on its stderr."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "pmm_replicator", ledger, "--name", source.name),
            *("--fork-max", str(source.fork_max), option),
        ],
        # Not on the command line: that is for everybody to read.
        env={**os.environ, DSN_VARIABLE: source.dsn},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def recorded_source(ledger: str) -> Source | None:
    """The source that a replica records; None for any other ledger."""
    connection = Connection(ledger, "ro", limits.FOLLOWER_WAIT_S)
    try:
        with connection.lock:
            handle = connection.handle()
            record = connection.retry(lambda: read_record(handle, ledger))
    except LedgerError:
        return None
    finally:
        connection.close()
    return None if record is None else Source(record.dsn, record.name)
