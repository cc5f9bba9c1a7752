"""How the daemon is: how far behind the ledger's head, and what is wrong with it, if anything.

Looks at the ledger by itself, through a connection of its own: a follower that stands still must not be able to say
that it is at the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import LedgerError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.files import file_identity
from pmm_shm.ledger.tail import Position

State = Literal["healthy", "lagging", "degraded"]

_AHEAD = (
    "SELECT (SELECT max(id) FROM events), "
    "(SELECT count(*) FROM (SELECT 1 FROM events WHERE ? IS NULL OR id > ? LIMIT ?))"
)


class Ahead(NamedTuple):
    """What of the log is not applied.

    Attributes:
        head_id: the newest event; 0 for none.
        lag_events: how many events come behind the position, counted up to `limits.LAG_EVENTS_MAX`.
    """

    head_id: int
    lag_events: int


class HeadProbe:
    """Reads the ledger's head. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._connection = Connection(path, "ro", limits.HEAD_PROBE_S)

    def look(self, position: Position) -> Ahead | None:
        """What comes behind the position now; None where the ledger cannot be read at this moment."""
        connection = self._connection
        try:
            with connection.lock:
                if connection.identity is not None and file_identity(connection.path) != connection.identity:
                    connection.close()
                handle = connection.handle()
                parameters = (position.event_id, position.event_id, limits.LAG_EVENTS_MAX)
                head_id, count = connection.retry(lambda: handle.execute(_AHEAD, parameters).fetchall()[0])
        except LedgerError:
            return None
        return Ahead(head_id or 0, count)

    def close(self) -> None:
        self._connection.close()


class Health(NamedTuple):
    """A judgement.

    Attributes:
        health: degraded where somebody should look at it, lagging where time will tell.
        health_reasons: a line for each reason why it is not healthy.
        is_current: whether what is published follows the log; events that no fold could use, and vectors that are
            missing, do not count against that.
    """

    health: State
    health_reasons: list[str]
    is_current: bool


def assess(numbers: Mapping[str, Any]) -> Health:
    """How a daemon with these numbers is."""
    hindrances, delays, losses = _hindrances(numbers), _delays(numbers), _losses(numbers)
    state: State = "degraded" if hindrances or losses else "lagging" if delays else "healthy"
    return Health(state, hindrances + delays + losses, not hindrances and not delays)


def _hindrances(numbers: Mapping[str, Any]) -> list[str]:
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
    return found


def _delays(numbers: Mapping[str, Any]) -> list[str]:
    if not numbers["is_published"]:
        return ["what is published is being built: until then readers fold the log by themselves"]
    if numbers["lag_events"] and numbers["lag_ms"] > limits.LAG_MS_MAX:
        return [f"{numbers['lag_events']:,} events behind the head of the log, for {numbers['lag_ms']:,} ms"]
    return []


def _losses(numbers: Mapping[str, Any]) -> list[str]:
    problem = numbers["embeddings"]["problem"]
    found = [f"events get no vectors: {problem}"] if problem else []
    if numbers["quarantined"]:
        found.append(f"{numbers['quarantined']:,} times an event could not be used: the quarantine names the newest")
    return found
