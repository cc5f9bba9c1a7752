"""The events that a published event table does not have yet: read from the log, and searched with rows made here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.errors import SnapshotUnavailableError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.freshness import Mark
from pmm_shm.ledger.tail import Position
from pmm_shm.store.environment import FileId
from pmm_shm.vectors.event_table import EventTableRecord
from pmm_shm.vectors.events import EventText, EventTextReader
from pmm_shm.vectors.nearest import SearchRows

Vectors = dict[str, NDArray[np.float32] | None]
"""Text to vector; None for a text that has none."""


class NewEvents(NamedTuple):
    """The events that a table in one state does not have.

    Attributes:
        identity, record: of the environment and of the table: the state.
        end: the last event that was read.
        mark: of the ledger, if `end` was the head of the log; otherwise None.
        rows: of the events that are not in the table.
    """

    identity: FileId
    record: EventTableRecord
    end: Position
    mark: Mark | None
    rows: SearchRows

    @classmethod
    def none(cls, identity: FileId, record: EventTableRecord) -> NewEvents:
        """Nothing read yet."""
        rows = SearchRows.of(np.empty(0, np.int64), np.empty((0, record.dimension), np.float32))
        return cls(identity, record, record.newest, None, rows)

    @property
    def as_of(self) -> int:
        """A search takes into account every event up to this one; with a backlog, none beyond its beginning."""
        return self.end.as_of if self.record.newer is None else self.record.position.as_of

    def with_rows(self, texts: list[EventText], vectors: Mapping[str, NDArray[np.float32] | None]) -> NewEvents:
        """The same with the rows of more events; a text without a vector gets no row."""
        texts = [one for one in texts if one.vector is not None or vectors[one.text] is not None]
        if not texts:
            return self
        ids = np.concatenate((self.rows.ids, np.array([one.event_id for one in texts], np.int64)))
        found = [vectors[one.text] if one.vector is None else one.vector for one in texts]
        order = np.argsort(ids)
        matrix = np.concatenate((self.rows.vectors, np.array(found, np.float32)))
        return self._replace(rows=SearchRows.of(ids[order], matrix[order]))


def read_new_events(
    connection: Connection, known: NewEvents, mark: Mark, parts: list[SearchRows], until_id: int | None, rows_max: int
) -> tuple[list[EventText], NewEvents, bool]:
    """Read on in the log: the events found, the new end, and whether it is the head of the log or `until_id`.

    Parameters:
        mark: of the ledger, taken before the call.
        parts: all rows of the table.
        rows_max: for the known rows and the events found together.

    Raises:
        LedgerError: the ledger cannot be read.
        SnapshotUnavailableError: the log does not continue the table.
    """
    reader = EventTextReader(connection, known.record.kinds, known.record.name)
    texts: dict[int, EventText] = {}
    end = known.end
    while True:
        room = rows_max - len(known.rows) - len(texts)
        # Even without room, because the log may have lost what was read before.
        read = reader.read(end, min(room, limits.TAIL_ROWS_MAX), until_id)
        if not read.is_anchored:
            raise SnapshotUnavailableError(
                f"{connection.path}: the log does not continue the published table of model {known.record.name!r}; "
                "pmm-cached will rebuild it"
            )
        end = read.position
        texts.update((one.event_id, one) for one in _not_in([*parts, known.rows], read.texts))
        if read.is_complete or len(known.rows) + len(texts) >= rows_max:
            break
    is_head = read.is_complete and until_id is None
    return list(texts.values()), known._replace(end=end, mark=mark if is_head else None), read.is_complete


def _not_in(parts: Iterable[SearchRows], texts: list[EventText]) -> list[EventText]:
    """The events without a row: the table may have events beyond its position, and later events name earlier ones."""
    ids = np.array([one.event_id for one in texts], np.int64)
    is_missing = np.ones(len(texts), bool)
    for rows in parts if texts else ():
        is_missing &= ~rows.living(ids)
    return [one for one, is_wanted in zip(texts, is_missing.tolist(), strict=True) if is_wanted]
