"""The facts that `status` and `top` show of a ledger and its daemon, if one runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pmm_shm.errors import DaemonAbsentError, DaemonError, StoreError
from pmm_shm.instance.paths import Instance
from pmm_shm_terminal.options import with_shape

DAEMON_ANSWERS_S = 2.0
# A healthy daemon is some hundred microseconds behind: ask again before reporting a lag.
_LOOKS = 5
_LOOK_AGAIN_S = 0.05
_ENTRIES_MAX = 20_000


class Asked(NamedTuple):
    """The daemon's numbers, or the failure to ask it."""

    numbers: dict[str, Any] | None
    failure: DaemonError | None

    @property
    def health(self) -> str:
        """Healthy, lagging, degraded or absent."""
        if self.numbers is not None:
            return str(self.numbers["health"])
        return "absent" if isinstance(self.failure, DaemonAbsentError) else "degraded"

    @property
    def problems(self) -> list[str | Exception]:
        """Why it is not healthy: the daemon's reasons, or the failure to ask it."""
        if self.numbers is not None:
            return list(self.numbers["health_reasons"])
        return [] if self.failure is None else [self.failure]


def ask(instance: Instance, timeout_s: float, head: int | None = None) -> Asked:
    """Ask the daemon, and again while it has not reached `head`."""
    from pmm_shm.wire import protocol
    from pmm_shm_client import commands

    try:
        for look in range(_LOOKS):
            numbers: dict[str, Any] = commands.call(instance, protocol.STATS, {}, timeout_s)
            if head is None or numbers["as_of"] >= head or look + 1 == _LOOKS:
                break
            time.sleep(_LOOK_AGAIN_S)
    except DaemonError as error:
        return Asked(None, error)
    return Asked(numbers, None)


def with_remedies(
    instance: Instance, problems: Iterable[str | Exception], shape: str | None = None
) -> list[dict[str, str | None]]:
    """Each problem as a dict of `problem` and `command`: what to type, None without a known remedy.

    Parameters:
        shape: as `with_shape`.
    """
    from pmm_shm.instance.file_systems import existing_part, plain_file_system
    from pmm_shm.remedies import remedy, remedy_for

    pid = recorded_pid(instance)
    found = []
    for problem in problems:
        known = remedy_for(problem, ledger=instance.ledger, directory=instance.directory, daemon=pid)
        if isinstance(problem, DaemonAbsentError) and plain_file_system(existing_part(instance.directory)):
            # A daemon would not start there.
            known = remedy("move-state")
        command = with_shape(known.command, shape) if known and known.command else None
        found.append({"problem": str(problem), "command": command})
    return found


def is_indexed(numbers: dict[str, Any] | None) -> bool:
    """Whether a daemon keeps words or vectors of events, which it does for the log of another program if asked."""
    return numbers is not None and bool(numbers["words"]["kinds"] or numbers["embeddings"]["tables"])


def published(instance: Instance) -> tuple[int | None, dict[str, dict[str, Any]]]:
    """The published state, also that of a daemon that has ended.

    Returns:
        (as_of, folds): the newest event in it, None if nothing is published; and by name "version", "entries", "bytes"
        and "is_complete", which is false if there are more entries than were counted.
    """
    from pmm_shm.store.snapshot import SnapshotReader

    reader = SnapshotReader(instance)
    try:
        with reader.begin() as snapshot:
            if snapshot is None or snapshot.header.is_void or not snapshot.header.folds:
                return None, {}
            sizes = snapshot.state_sizes(_ENTRIES_MAX)
            folds = {
                name: {
                    "version": version,
                    "entries": sizes[name][0],
                    "bytes": sizes[name][1],
                    "is_complete": sizes[name][0] < _ENTRIES_MAX,
                }
                for name, (version, _, _) in snapshot.header.folds.items()
            }
            return snapshot.header.position.as_of, folds
    except StoreError:
        return None, {}
    finally:
        reader.close()


def recorded_pid(instance: Instance) -> int | None:
    """The pid of the last daemon; None without a record, and where it runs in another pid namespace, unseen here."""
    from pmm_shm.wire.endpoints import recorded_endpoints

    try:
        endpoints = recorded_endpoints(instance)
    except DaemonError:
        return None
    return pid_here(endpoints.commands, endpoints.pid)


def pid_here(path: str, recorded: int) -> int | None:
    """The pid of the process that listens on a socket, in this process's pid namespace: None where it has none here.
    `recorded` where nobody listens.
    """
    from pmm_shm.wire.endpoints import check_listening

    try:
        found = check_listening(path)
    except OSError:
        return recorded
    return recorded if found is None else found or None


def readers_of(daemon: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The other processes that read the published state, each with the number of commits it is behind."""
    return [
        {"pid": pid, "behind_txns": behind, "command": command_of(pid)}
        for pid, behind in (daemon or {}).get("reader_processes", ())
        if pid != os.getpid()
    ]


def workers_of(daemon: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The live processes that have reported: their numbers, `command`, and `served_rate` as of `reads_of`."""
    return [
        {**one, "served_rate": _served_rate(one), "command": command_of(one["pid"])}
        for one in (daemon or {}).get("worker_processes", ())
    ]


def reads_of(daemon: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The reads of all workers by what answered them; None without a daemon.

    `hits`: nothing was new; `caught_up`: the published state and the events after it; `replayed`: neither.
    `served_rate` is the share of the first two, served from shared memory; None without reads.
    """
    if daemon is None:
        return None
    workers = daemon["workers"]
    found: dict[str, Any] = {
        name: workers[f"projection_{name}"] + workers[f"metrics_{name}"] for name in ("hits", "caught_up", "replayed")
    }
    return {**found, "served_rate": _served_rate(found)}


def _served_rate(reads: Mapping[str, int]) -> float | None:
    served = reads["hits"] + reads["caught_up"]
    total = served + reads["replayed"]
    return served / total if total else None


def command_of(pid: int) -> str | None:
    """The command line of a process, without paths; None if it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return None
    shown = " ".join(os.path.basename(word.decode("utf-8", "replace")) for word in words[:3] if word != b"-c")
    return shown[:60] or None


def length_of(path: str) -> int | None:
    """The size of a file in bytes; None if it does not exist."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None
