"""A replica in SQLite: an ordinary ledger, with a record of its source, and triggers that let only its follower write.

The triggers call an SQL function that only the follower's connection has. Any other writer is refused by SQLite itself:
"no such function: pmm_replica_takes_appends_in_postgresql_only".
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from pmm_shm.errors import NotALedgerError

if TYPE_CHECKING:
    from uuid import UUID

GUARD = "pmm_replica_takes_appends_in_postgresql_only"
"""The SQL function that the triggers call."""

_TABLE = (
    "CREATE TABLE pmm_replica (identity TEXT NOT NULL, name TEXT NOT NULL, dsn TEXT NOT NULL, formula TEXT NOT NULL, "
    "timeline INTEGER NOT NULL, forks INTEGER NOT NULL)"
)
_OPERATIONS = ("insert", "update", "delete")
_HAS_TABLE = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'pmm_replica'"


class ReplicaRecord(NamedTuple):
    """What a replica records of its source.

    Attributes:
        identity: of the ledger in PostgreSQL.
        name: its name there.
        dsn: where it is, without a password.
        formula: of the hashes of its events.
        timeline: the highest timeline of the servers that were followed.
        forks: how often events were taken back because a server had lost them.
    """

    identity: UUID
    name: str
    dsn: str
    formula: str
    timeline: int
    forks: int


def is_replica(definition: frozenset[bytes]) -> bool:
    """Whether the schema of the table `events` is a replica's; see `Schema.definition`."""
    guard = GUARD.encode()
    return any(guard in sql for sql in definition)


def read_record(handle: sqlite3.Connection, path: str) -> ReplicaRecord | None:
    """The record of a replica; None for any other ledger.

    Raises:
        NotALedgerError: there is a record, and it cannot be read as one.
    """
    if not handle.execute(_HAS_TABLE).fetchall()[0][0]:
        return None
    rows = handle.execute(f"SELECT {', '.join(ReplicaRecord._fields)} FROM pmm_replica").fetchall()
    # Only a replica needs it.
    from uuid import UUID

    try:
        ((identity, name, dsn, formula, timeline, forks),) = rows
        return ReplicaRecord(UUID(identity), str(name), str(dsn), str(formula), int(timeline), int(forks))
    except (ValueError, TypeError, AttributeError):
        raise NotALedgerError(f"{path}: the record of its source, the table pmm_replica, is damaged") from None


def make_replica(handle: sqlite3.Connection, record: ReplicaRecord) -> None:
    """Make a ledger a replica, within the caller's transaction."""
    handle.execute(_TABLE)
    write_record(handle, record)
    for operation in _OPERATIONS:
        handle.execute(
            f"CREATE TRIGGER pmm_replica_{operation} BEFORE {operation.upper()} ON events BEGIN SELECT {GUARD}(); END"
        )


def write_record(handle: sqlite3.Connection, record: ReplicaRecord) -> None:
    """Replace the record, within the caller's transaction."""
    handle.execute("DELETE FROM pmm_replica")
    places = ", ".join("?" * len(record))
    handle.execute(f"INSERT INTO pmm_replica VALUES ({places})", (str(record.identity), *record[1:]))


def make_ordinary(handle: sqlite3.Connection) -> None:
    """Make a replica an ordinary ledger, within the caller's transaction."""
    for operation in _OPERATIONS:
        handle.execute(f"DROP TRIGGER IF EXISTS pmm_replica_{operation}")
    handle.execute("DROP TABLE IF EXISTS pmm_replica")
