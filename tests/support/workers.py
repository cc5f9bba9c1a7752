"""Workers on one ledger, as processes: each says at its end what it did.

Ledgers made by `make` carry a name: their first event adopts it, and the commitments that follow have ids made of it.
So a state that is half of one ledger and half of another shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pmm_shm.ledger.eventlog import EventLog
from tests.support import ledgers
from tests.support.daemons import DEADLINE_S, environment

PROMISES = 40

_COMMON = """
import json, sqlite3, sys, threading, time
path, name, pause_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
def events():
    number = 0
    while not stop.is_set():
        token = f"{name}-{number}"
        kind, meta = [("user", {}), ("commitment_open", {"cid": token, "text": token}), ("reflection", {})][number % 3]
        yield kind, token, meta
        number += 1
        stop.wait(pause_s)
done, failure = [], None
"""

EVENT_LOG = f"""{_COMMON}
from pmm_shm.errors import LedgerNotFoundError, LedgerReplacedError
from pmm_shm.ledger.eventlog import EventLog
log = EventLog(path, create=False)
print("ready", flush=True)
for kind, token, meta in events():
    try:
        event_id = log.append(kind, token, meta)
    except LedgerNotFoundError:
        continue
    except LedgerReplacedError as error:
        failure = str(error)
        break
    done.append((time.monotonic(), event_id, token))
stop.wait()
log.close()
print(json.dumps({{"done": done, "failure": failure}}), flush=True)
"""

FOREIGN = f"""{_COMMON}
connection = sqlite3.connect(path, isolation_level=None, timeout=5)
connection.execute("SELECT count(*) FROM events").fetchall()
print("ready", flush=True)
insert = "INSERT INTO events (ts, kind, content, meta) VALUES ('2026-01-01T00:00:00Z', ?, ?, ?)"
for kind, token, meta in events():
    try:
        event_id = connection.execute(insert, (kind, token, json.dumps(meta))).lastrowid
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            failure = str(error)
            break
        continue
    done.append((time.monotonic(), event_id, token))
stop.wait()
connection.close()
print(json.dumps({{"done": done, "failure": failure}}), flush=True)
"""

READER = f"""{_COMMON}
from pmm_shm.errors import LedgerNotFoundError, LedgerReplacedError
from pmm_shm_client import connect
PROMISES = {PROMISES}
cache = connect(path)
print("ready", flush=True)
names, wrong, reads, stands = [], [], 0, []
while not stop.is_set():
    try:
        frame = cache.frame()
    except LedgerNotFoundError:
        continue
    except LedgerReplacedError as error:
        failure = str(error)
        break
    reads += 1
    commitments = frame.commitments()
    cids = [cid for cid in (*commitments.open, *commitments.expired) if cid.startswith("base-")]
    adopted = frame.identity().name
    if cids != [f"base-{{adopted}}-{{number}}" for number in range(PROMISES)] or frame.as_of < PROMISES + 1:
        wrong.append((adopted, frame.as_of, cids[:3], len(cids)))
    if not names or names[-1] != adopted:
        names.append(adopted)
        stands.append(time.monotonic())
    stop.wait(pause_s)
stop.wait()
cache.close()
print(json.dumps({{"names": names, "stands": stands, "wrong": wrong, "reads": reads, "failure": failure}}), flush=True)
"""


def make(path: str, name: str, notes: int, journal: str = "wal") -> str:
    """A ledger with this name, `PROMISES` commitments, and so many events more."""
    ledgers.build(path, 0, journal=journal)
    with EventLog(path) as log:
        log.append("identity_adopt", name, {"name": name, "confidence": 0.95})
        promises = [(f"base-{name}-{number}", f"text {number}") for number in range(PROMISES)]
        log.append_many([("commitment_open", text, {"cid": cid, "text": text}) for cid, text in promises])
        log.append_many([("user", f"{name} says {number}", {"pad": "x" * 200}) for number in range(notes)])
    return path


class Worker:
    """One process; `end` tells it to stop and gives what it did."""

    def __init__(self, code: str, path: str, name: str, pause_s: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, path, name, str(pause_s)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def end(self) -> dict[str, Any]:
        out, _ = self.process.communicate("\n", timeout=DEADLINE_S)
        assert self.process.returncode == 0
        return json.loads(out)  # type: ignore[no-any-return]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def working(path: str, **codes: tuple[str, float]) -> Iterator[dict[str, Worker]]:
    """Processes by name, each with its code and its pause in seconds; those that still run at the end are killed."""
    workers = {name: Worker(code, path, name, pause_s) for name, (code, pause_s) in codes.items()}
    try:
        for worker in workers.values():
            worker.wait_ready()
        yield workers
    finally:
        for worker in workers.values():
            if worker.process.poll() is None:
                worker.kill()


def contents(path: str) -> set[str]:
    """The texts of all events."""
    return {row[0] for row in ledgers.execute(path, "SELECT content FROM events")}


def journal_of(path: str) -> str:
    """SQLite's name of the ledger's journal mode."""
    return str(ledgers.execute(path, "PRAGMA journal_mode")[0][0])


def skip_without_root() -> None:
    """For tests that mount something."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
