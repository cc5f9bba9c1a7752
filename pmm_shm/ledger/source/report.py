"""What the follower of a replica has reported last, as the daemon and programs read it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

REPORT_FILE = "replicator.json"
LOCK_FILE = "replicator.lock"
_BYTES_MAX = 64 << 10


class ReplicaStatus(NamedTuple):
    """A follower's state.

    Attributes:
        pid: of the follower's process; `is_running` says whether it lives.
        name: of the ledger in PostgreSQL.
        server: host and port of the server that it follows; None before the first connection.
        timeline: of that server; it grows with each promotion.
        head_id, source_head_id: the newest event of the replica and of the source, as of the last look.
        lag_events: how many events the replica is behind, as of the last look.
        lag_ms: for how long it has been behind, or could not look; 0 where it is not behind.
        looked_ms: how long ago it has confirmed the source's head; None if never.
        forks: how often events were taken back.
        lost_files: where events that were taken back are kept.
        difference: where the replica differs from the source, as an audit found; None if nowhere.
        problem: what the follower waits for; None if nothing.
    """

    pid: int
    is_running: bool
    name: str
    server: str | None
    timeline: int
    head_id: int
    source_head_id: int
    lag_events: int
    lag_ms: int
    looked_ms: int | None
    forks: int
    lost_files: tuple[str, ...]
    difference: str | None
    problem: str | None


def read_status(directory: Path, clock: Any = time.monotonic) -> ReplicaStatus | None:
    """The last report of the follower in an instance directory; None if there is none that can be read."""
    try:
        with open(directory / REPORT_FILE, "rb") as file:
            values = json.loads(file.read(_BYTES_MAX))
        now = clock()
        looked, since = values["looked_monotonic"], values["behind_since_monotonic"]
        looked_ms = None if looked is None else max(0, int((now - float(looked)) * 1_000))
        is_behind = since is not None or looked is None or values["problem"] is not None
        behind_since = next(one for one in (since, looked, values["started_monotonic"]) if one is not None)
        return ReplicaStatus(
            pid=int(values["pid"]),
            is_running=_is_running(int(values["pid"])),
            name=str(values["name"]),
            server=None if values["server"] is None else str(values["server"]),
            timeline=int(values["timeline"]),
            head_id=int(values["head_id"]),
            source_head_id=int(values["source_head_id"]),
            lag_events=max(0, int(values["source_head_id"]) - int(values["head_id"])),
            lag_ms=max(0, int((now - float(behind_since)) * 1_000)) if is_behind else 0,
            looked_ms=looked_ms,
            forks=int(values["forks"]),
            lost_files=tuple(map(str, values["lost_files"])),
            difference=None if values["difference"] is None else str(values["difference"]),
            problem=None if values["problem"] is None else str(values["problem"]),
        )
    except (OSError, ValueError, TypeError, KeyError, StopIteration):
        return None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
