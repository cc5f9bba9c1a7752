"""Events by kind and range of ids, in either direction, in statements that are short whatever the ledger's indexes."""

from __future__ import annotations

from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import ConfigError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.opening import Schema
from pmm_shm.ledger.rows import ID_MAX, ID_MIN, RawRow


class EventRange(NamedTuple):
    """Which events to read.

    Attributes:
        kind: their kind; None for any.
        first_id, last_id: the lowest and the highest id, both included.
        rows_max: how many at most; None for all.
        newest_first: by descending id; otherwise by ascending id.
    """

    kind: str | None
    first_id: int
    last_id: int
    rows_max: int | None
    newest_first: bool

    @classmethod
    def of(cls, kind: object, after: object, before: object, limit: object, newest_first: bool) -> EventRange:
        """A checked range; `after` and `before` are excluded.

        Raises:
            ConfigError: an argument has no meaning.
        """
        if kind is not None and not isinstance(kind, str):
            raise ConfigError(f"kind: expected text or None, got {kind!r:.80}")
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ConfigError(f"limit: expected a whole number from 0 on, or None, got {limit!r:.80}")
        first_id = ID_MIN if after is None else max(ID_MIN, _checked_id("after", after) + 1)
        last_id = ID_MAX if before is None else min(ID_MAX, _checked_id("before", before) - 1)
        return cls(kind, first_id, last_id, limit, bool(newest_first))


def _checked_id(name: str, value: object) -> int:
    if type(value) is not int:
        raise ConfigError(f"{name}: expected an event id or None, got {value!r:.80}")
    return value


class RangeReader:
    """Reads ranges through one read-only connection; call it with the connection's lock held."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._schema: Schema | None = None
        self._indexed: dict[str, bool] = {}

    def read(self, kind: object, after: object, before: object, limit: object, newest_first: bool) -> list[RawRow]:
        """The rows of a range, as `EventRange.of` takes it, without those appended after the call began.

        Raises:
            ConfigError: an argument has no meaning.
            LedgerError: in one of its kinds.
        """
        wanted = EventRange.of(kind, after, before, limit, newest_first)
        if wanted.kind is not None:
            try:
                wanted.kind.encode()
            except UnicodeEncodeError:
                return []
        connection = self._connection
        first_id, last_id = wanted.first_id, wanted.last_id
        if not wanted.newest_first:
            # Descending reads begin at the head, and never see what comes later.
            last_id = min(last_id, _newest_id(connection))
        kinds = () if wanted.kind is None else (wanted.kind,)
        sql = _sql(wanted, "kind")
        spans = bool(kinds) and not self._is_indexed(sql, (0, 0, *kinds, 0))
        if spans:
            sql = _sql(wanted, "+kind")
        result: list[RawRow] = []
        while first_id <= last_id:
            count = limits.TAIL_ROWS_MAX if wanted.rows_max is None else wanted.rows_max - len(result)
            if not count:
                break
            low, high = _span(connection, first_id, last_id, wanted.newest_first) if spans else (first_id, last_id)
            rows, is_all = fetch_batch(connection, sql, (low, high, *kinds), count)
            result += rows
            if wanted.newest_first:
                last_id = (low if is_all else rows[-1][0]) - 1
            else:
                first_id = (high if is_all else rows[-1][0]) + 1
        return result

    def _is_indexed(self, sql: str, parameters: tuple[Any, ...]) -> bool:
        """Whether the ledger has an index by which SQLite finds the rows of a kind in the order of their ids.

        Asked once for each schema. A change is noticed within `limits.TRUST_PERIOD_S`; until then it costs time only.
        """
        handle = self._connection.handle()
        if self._connection.schema is not self._schema:
            self._schema, self._indexed = self._connection.schema, {}
        known = self._indexed.get(sql)
        if known is None:
            run = handle.execute
            plan = self._connection.retry(lambda: run("EXPLAIN QUERY PLAN " + sql, parameters).fetchall())
            known = self._indexed[sql] = len(plan) == 1 and "(kind=?" in plan[0][-1]
        return known


def _span(connection: Connection, first_id: int, last_id: int, newest_first: bool) -> tuple[int, int]:
    """The next part of the ids: a scan where few rows match has to end, too."""
    # Counted from a row that exists, so that a gap of any size is one step.
    end = "max" if newest_first else "min"
    sql = f"SELECT {end}(id) FROM events WHERE id >= ? AND id <= ? LIMIT ?"
    found = fetch_batch(connection, sql, (first_id, last_id), 1).rows[0][0]
    if found is None:
        return first_id, last_id
    if newest_first:
        return max(first_id, found - limits.TAIL_SPAN_IDS), found
    return found, min(last_id, found + limits.TAIL_SPAN_IDS)


def _newest_id(connection: Connection) -> int:
    newest: int | None = fetch_batch(connection, "SELECT max(id) FROM events LIMIT ?", (), 1).rows[0][0]
    return ID_MIN if newest is None else newest


def _sql(wanted: EventRange, kind: str) -> str:
    """The statement for one batch; as `+kind`, the column is in no index, which SQLite could choose and sort by."""
    condition = "" if wanted.kind is None else f" AND {kind} = ?"
    order = " DESC" if wanted.newest_first else ""
    where = f"WHERE id >= ? AND id <= ?{condition} ORDER BY id{order} LIMIT ?"
    return f"SELECT id, ts, kind, content, meta FROM events {where}"
