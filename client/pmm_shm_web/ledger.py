"""The read-only connection behind the lists of events; statements are short, and each call sees one ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.fetch import Batch, fetch_batch
from pmm_shm.ledger.opening import Schema
from pmm_shm.ledger.rows import RawRow
from pmm_shm_client.reader import Reader

_T = TypeVar("_T")


class LedgerQueries:
    """Bounded statements over the ledger. Thread-safe; `epoch` changes whenever the file at its path may be another."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._log = EventLog(path, timeout=timeout_s, create=False)
        self._reader = Reader(self._log.path, timeout_s, "auto", self._log.recover, self._reset)
        self.path = self._log.path
        self.epoch = 0
        self._indexed_for: Schema | None = None
        self._is_indexed = False

    def _reset(self) -> None:
        # Also called by the constructor of the reader's connection hooks, before there is an epoch.
        self.epoch = getattr(self, "epoch", 0) + 1

    def read(self, action: Callable[[], _T]) -> _T:
        """Run statements with the connection's lock held.

        Raises:
            LedgerError: the ledger cannot be read.
        """

        def run() -> _T:
            self._reader.freshness.take()
            return action()

        return self._reader.with_ledger(run)

    def rows(self, sql: str, parameters: tuple[Any, ...], rows_max: int) -> Batch:
        """Within `read`: the rows of a statement whose last parameter is its LIMIT."""
        return fetch_batch(self.connection, sql, parameters, rows_max)

    def row(self, sql: str, parameters: tuple[Any, ...] = ()) -> RawRow | None:
        """Within `read`: the first row."""
        found = self.rows(sql + " LIMIT ?", parameters, 1).rows
        return found[0] if found else None

    def head(self) -> int:
        """The newest event's id; 0 without events."""
        found = self.read(lambda: self.row("SELECT max(id) FROM events"))
        return 0 if found is None or found[0] is None else int(found[0])

    @property
    def connection(self) -> Connection:
        return self._reader.connection

    def has_kind_index(self) -> bool:
        """Within `read`: whether an index begins with the kind. Asked once for each schema."""
        schema = self.connection.schema
        if schema is not self._indexed_for:
            sql = (
                "SELECT count(*) FROM pragma_index_list('events') AS one WHERE NOT one.partial AND "
                "(SELECT name FROM pragma_index_info(one.name) WHERE seqno = 0) = 'kind'"
            )
            found = self.row(sql)
            self._indexed_for, self._is_indexed = schema, found is not None and bool(found[0])
        return self._is_indexed

    def first_id_since(self, instant_us: int) -> int:
        """An id below which no event is of this instant or later."""
        return self._log.first_id_since(instant_us)

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()
        self._log.close()
