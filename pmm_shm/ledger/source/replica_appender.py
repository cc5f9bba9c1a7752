"""Appends by a worker on a replica: to PostgreSQL, and then a wait until the replica has them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pmm_shm import limits
from pmm_shm.errors import LedgerError, NotALedgerError, ReplicaLaggingError
from pmm_shm.ledger.append import ExpectedHead
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.new_events import NewEvent
from pmm_shm.ledger.opening import Schema
from pmm_shm.ledger.replicas import ReplicaRecord, is_replica, read_record
from pmm_shm.ledger.source.appending import SourceAppender
from pmm_shm.ledger.source.server import Server
from pmm_shm.ledger.sqlite_errors import sleep_between

_WAIT_S_MIN, _WAIT_S_MAX = 0.0002, 0.002
_TIMELINE_SQL = "SELECT timeline FROM pmm_replica"
_HASH_SQL = "SELECT hash FROM events WHERE id = ?"


class ReplicaAppender:
    """Appends to the source of one replica; thread-safe, safe across fork.

    Parameters:
        reader: a read-only connection to the replica.
        timeout_s: how long to wait for other writers, for a lost server, and for the replica.

    Raises:
        NotALedgerError: the ledger has no readable record of its source.
    """

    def __init__(self, reader: Connection, timeout_s: float) -> None:
        self._reader = reader
        self._timeout_s = timeout_s
        with reader.lock:
            handle = reader.handle()
            self._schema: Schema = reader.schema
            record = reader.retry(lambda: read_record(handle, reader.path))
        if record is None:
            raise NotALedgerError(f"{reader.path}: a replica without a record of its source")
        self.record: ReplicaRecord = record
        self.server = self.new_server()
        self._appender = SourceAppender(self.server, timeout_s)

    def is_current(self) -> bool:
        """Whether the ledger still is this replica, as far as its schema is known."""
        schema = self._reader.schema
        if schema is self._schema:
            return True
        if not is_replica(schema.definition):
            return False
        with self._reader.lock:
            handle = self._reader.handle()
            record = self._reader.retry(lambda: read_record(handle, self._reader.path))
        if record is None or record.identity != self.record.identity or record.dsn != self.record.dsn:
            return False
        self._schema = schema
        return True

    def append(
        self, events: Sequence[NewEvent], expected_head: ExpectedHead | None = None, *, wait: bool = True
    ) -> list[int]:
        """Append to PostgreSQL; with `wait`, return when this host's replica has the events. Returns their ids.

        Raises:
            ReplicaLaggingError: they are in PostgreSQL, and the replica has not got them within the timeout.
            LedgerError: as `SourceAppender.append`.
        """
        deadline_s = time.monotonic() + self._timeout_s
        rows = self._appender.append(events, expected_head)
        ids = [row[0] for row in rows]
        if rows and wait:
            # A late append leaves the replica a moment all the same.
            deadline_s = max(deadline_s, time.monotonic() + limits.SOURCE_GRACE_S)
            # By its hash: until a fork is resolved, a lost event may have this id here.
            self._wait_for(ids[-1], rows[-1][-1], deadline_s, tuple(ids))
        return ids

    def wait_for_head(self, timeout_s: float) -> int:
        """Return when this replica has everything that PostgreSQL has now; returns the newest event's id.

        Raises:
            SourceUnreachableError: no primary.
            ReplicaLaggingError: the replica has not got it within the timeout.
        """
        deadline_s = time.monotonic() + timeout_s
        head = self._appender.head(deadline_s)
        if head is None:
            return 0
        self._wait_for(*head, deadline_s)
        return head[0]

    def new_server(self) -> Server:
        """Another connection to the same ledger, for a purpose of its own."""
        record = self.record
        return Server(record.dsn, record.name, record.identity, record.timeline, seen_timeline=self._seen_timeline)

    def _seen_timeline(self) -> int:
        """The highest timeline that the follower has seen: a standby may have taken over."""
        with self._reader.lock:
            handle = self._reader.handle()
            rows = self._reader.retry(lambda: handle.execute(_TIMELINE_SQL).fetchall())
        return max((row[0] for row in rows), default=0)

    def _wait_for(self, event_id: int, wanted_hash: str, deadline_s: float, appended: tuple[int, ...] = ()) -> None:
        while not self._has(event_id, wanted_hash):
            if time.monotonic() >= deadline_s:
                what = "the append is in PostgreSQL" if appended else f"event {event_id} is in PostgreSQL"
                raise ReplicaLaggingError(
                    f"{self._reader.path}: {what}, and this replica has not received it in time; see `pmm-shm status`",
                    appended,
                )
            sleep_between(_WAIT_S_MIN, _WAIT_S_MAX)

    def close(self) -> None:
        """Close the connection to PostgreSQL; the next append opens it anew."""
        self._appender.close()

    def _has(self, event_id: int, wanted_hash: str) -> bool:
        """Whether the replica has the event with this hash."""
        self._reader.follow_replacement()
        with self._reader.lock:
            handle = self._reader.handle()
            try:
                rows = self._reader.retry(lambda: handle.execute(_HASH_SQL, (event_id,)).fetchall())
            except LedgerError:
                return False
        return bool(rows) and wanted_hash == rows[0][0]
