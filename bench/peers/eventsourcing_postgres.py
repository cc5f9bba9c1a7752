"""The PostgreSQL recorder of pyeventsourcing: events of one aggregate in a table, which readers poll.

It computes no hashes, and its readers have no local copy: each look is a query.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from bench.peers import MissingPeerError


class Recorder:
    """Appends to and reads from the recorder's table over one connection; one aggregate for each instance.

    Parameters:
        port: of a server on this machine.
        commit: `synchronous_commit` of its connection.

    Raises:
        MissingPeerError: it is not installed.
    """

    name = "eventsourcing"

    def __init__(self, port: int, commit: str = "on") -> None:
        try:
            from eventsourcing.persistence import StoredEvent
            from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
        except ImportError as error:
            raise MissingPeerError(f"eventsourcing[postgres] is not installed: {error}") from None
        self._event = StoredEvent
        self._datastore = PostgresDatastore("postgres", "127.0.0.1", port, "owner", "")
        self.recorder = PostgresApplicationRecorder(self._datastore)
        self.recorder.create_table()
        with self._datastore.get_connection() as connection:
            connection.execute(f"SET SESSION synchronous_commit = {commit}")
        self._aggregate = uuid4()
        self._version = 0

    def append(self, states: list[bytes]) -> list[int]:
        """Write one event for each state in one transaction; their ids."""
        events = [
            self._event(self._aggregate, version, "user", state) for version, state in enumerate(states, self._version)
        ]
        self._version += len(states)
        return list(self.recorder.insert_events(events) or ())

    def events_after(self, event_id: int, limit: int) -> list[Any]:
        """What a polling reader asks for."""
        return list(self.recorder.select_notifications(event_id, limit, inclusive_of_start=False))

    def close(self) -> None:
        self._datastore.close()
