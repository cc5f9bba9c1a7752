"""The daemon's health: how far it is behind the ledger's head, and what is wrong with it.

The head is read over a separate connection, so that a follower that hangs cannot report itself as up to date.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pmm_cached import replication
from pmm_shm import limits
from pmm_shm.errors import LedgerError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.rows import ID_MIN
from pmm_shm.ledger.tail import Position

HealthState = Literal["healthy", "lagging", "degraded"]

_LAG = (
    "SELECT (SELECT max(id) FROM events), "
    f"(SELECT count(*) FROM (SELECT 1 FROM events WHERE id > coalesce(?, {ID_MIN}) LIMIT ?))"
)


class HeadProbe:
    """Reads the ledger's head. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._connection = Connection(path, "ro", limits.HEAD_PROBE_S)

    def lag_behind(self, position: Position) -> tuple[int, int] | None:
        """(id of the newest event or 0, number of events after `position` up to `limits.LAG_EVENTS_MAX`).

        None if the ledger cannot be read now, because it is busy, say.
        """
        connection = self._connection
        try:
            with connection.lock:
                if not connection.is_at_path():
                    connection.close()
                handle = connection.handle()
                parameters = (position.event_id, limits.LAG_EVENTS_MAX)
                head_id, count = connection.retry(lambda: handle.execute(_LAG, parameters).fetchall()[0])
        except LedgerError:
            return None
        # A text among the ids: the follower refuses the ledger.
        return (head_id or 0, count) if type(head_id) is int or head_id is None else None

    def close(self) -> None:
        self._connection.close()


class Health(NamedTuple):
    """The health of a daemon.

    Attributes:
        health: degraded if somebody has to act, lagging if it may recover unaided.
        health_reasons: one line for each reason why it is not healthy.
        is_current: whether the published state follows the log. Quarantined events and missing vectors do not count.
    """

    health: HealthState
    health_reasons: list[str]
    is_current: bool


def assess(numbers: Mapping[str, Any]) -> Health:
    """The health of a daemon with these numbers."""
    problems, delays, losses = _problems(numbers), _delays(numbers), _losses(numbers)
    state: HealthState = "degraded" if problems or losses else "lagging" if delays else "healthy"
    return Health(state, problems + delays + losses, not problems and not delays)


def _problems(numbers: Mapping[str, Any]) -> list[str]:
    found = [numbers["problem"]] if numbers["problem"] else []
    if numbers["heartbeat_age_ms"] > limits.HEARTBEAT_MS_MAX:
        found.append(
            f"the follower has not moved for {numbers['heartbeat_age_ms']:,} ms: if that lasts, restart the daemon"
        )
    if numbers["rebuild_waits_for_pid"] is not None:
        found.append(
            f"a rebuild waits for process {numbers['rebuild_waits_for_pid']}, which holds an old snapshot: stop it, or "
            "let it go on"
        )
    return found + replication.problems(numbers.get("replica"))


def _delays(numbers: Mapping[str, Any]) -> list[str]:
    if not numbers["is_published"]:
        return ["the published state is being built; until then readers fold the log themselves"]
    if numbers["lag_events"] and numbers["lag_ms"] > limits.LAG_MS_MAX:
        return [f"{numbers['lag_events']:,} events behind the head of the log, for {numbers['lag_ms']:,} ms"]
    return replication.delays(numbers.get("replica"))


def _losses(numbers: Mapping[str, Any]) -> list[str]:
    problem = numbers["embeddings"]["problem"]
    found = [f"events get no vectors: {problem}"] if problem else []
    word_problem = numbers.get("words", {}).get("problem")
    if word_problem:
        found.append(f"the index of words is not kept: {word_problem}")
    colliding = numbers.get("same_pid_workers", 0)
    if colliding:
        subject = "1 worker has" if colliding == 1 else f"{colliding:,} workers have"
        found.append(
            f"{subject} the same pid as a process of another pid namespace, and cannot read the published state: share "
            "the pid namespace (docker: pid: host; Kubernetes: shareProcessNamespace: true)"
        )
    if numbers["quarantined"]:
        found.append(f"{numbers['quarantined']:,} times an event could not be used; the quarantine lists the newest")
    return found
