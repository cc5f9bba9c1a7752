"""Pages of events, newest first: filtered and cut in SQL, so that neither a long log nor a long event costs memory.

A filter that few events match would scan the whole log. A page scans for a bounded time, and says where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from pmm_shm.errors import ConfigError
from pmm_shm.ledger.instants import instant_us
from pmm_shm.ledger.rows import HASH_COLUMNS, ID_MAX, ID_MIN, MalformedMeta, RawRow, parse_meta
from pmm_shm_web.ledger import LedgerQueries
from pmm_shm_web.shown import encodable, spelled

PAGE_ROWS = 50
PAGE_ROWS_MAX = 500
CONTENT_CHARS = 300
KIND_CHARS, TS_CHARS = 80, 40
EVENT_CHARS = 65_536
"""Of the content and of the meta of one event."""
FILTER_CHARS_MAX = 500
SCAN_S = 0.3
SPAN_IDS = 8_192
_ROW = (
    f"id, substr(ts, 1, {TS_CHARS}), substr(kind, 1, {KIND_CHARS}), substr(content, 1, {CONTENT_CHARS}), "
    "length(content), length(meta)"
)
_META = f", CASE content WHEN '' THEN substr(meta, 1, {CONTENT_CHARS}) ELSE '' END"


class StreamQuery(NamedTuple):
    """Which events to list.

    Attributes:
        kind: only these; None for all. One of `KIND_CHARS` characters stands for all that begin so.
        text: only events whose content has this text, capitals or not (in ASCII); on the log of another program, whose
            content or meta. None for all.
        since, until: ISO 8601; only events of this time or later, or before it.
        before, after: only events with a lower or higher id.
        limit: how many at most.
    """

    kind: str | None = None
    text: str | None = None
    since: str | None = None
    until: str | None = None
    before: int | None = None
    after: int | None = None
    limit: int = PAGE_ROWS

    def checked(self) -> StreamQuery:
        """This query.

        Raises:
            ConfigError: a part of it has no meaning.
        """
        for name, value in (("since", self.since), ("until", self.until)):
            if value is not None and instant_us(value) is None:
                raise ConfigError(f"{name}: {value!r:.80} is not an ISO 8601 time")
        if self.text is not None and len(self.text) > FILTER_CHARS_MAX:
            raise ConfigError(f"text: expected at most {FILTER_CHARS_MAX} characters")
        if not 1 <= self.limit <= PAGE_ROWS_MAX:
            raise ConfigError(f"limit: expected 1 to {PAGE_ROWS_MAX}, got {self.limit}")
        return self


class StreamRow(NamedTuple):
    """One event as listed: its content cut to the first characters, and the lengths of content and meta.

    On the log of another program `meta` has the first characters of the meta of an event without content; otherwise it
    is empty.
    """

    id: int
    ts: str
    kind: str
    content: str
    content_chars: int
    meta_chars: int
    meta: str = ""


class StreamPage(NamedTuple):
    """Events, newest first.

    Attributes:
        rows: the events.
        older_before: list the next page with this `before`; None where no older event is left.
        scanned_to: where the time for the scan ended before the page was full; otherwise None.
        head: the newest id when the page was made.
    """

    rows: tuple[StreamRow, ...]
    older_before: int | None
    scanned_to: int | None
    head: int


class Stream:
    """The events of one ledger, for people to look at. Thread-safe."""

    def __init__(self, ledger: LedgerQueries) -> None:
        self._ledger = ledger
        self._is_foreign = ledger.connection.shape is not None
        # Some programs keep all of an event in what the shape makes its meta.
        self._columns = _ROW + (_META if self._is_foreign else "")

    def page(self, query: StreamQuery) -> StreamPage:
        """One page.

        Raises:
            ConfigError: the query has no meaning.
            LedgerError: the ledger cannot be read.
        """
        query = query.checked()
        floor = ID_MIN if query.after is None else min(query.after, ID_MAX - 1) + 1
        if query.since is not None:
            floor = max(floor, self._ledger.first_id_since(instant_us(query.since) or 0))
        return self._ledger.read(lambda: self._page(query, max(ID_MIN, floor)))

    def _page(self, query: StreamQuery, floor: int) -> StreamPage:
        found = self._ledger.row("SELECT max(id) FROM events")
        head = 0 if found is None or found[0] is None else int(found[0])
        top = head if query.before is None else min(head, max(query.before, ID_MIN + 1) - 1)
        condition, values, is_quick = self._condition(query)
        sql = f"SELECT {self._columns} FROM events WHERE id <= ? AND id >= ?{condition} ORDER BY id DESC LIMIT ?"
        rows: list[RawRow] = []
        deadline_s = time.monotonic() + SCAN_S
        while top >= floor and len(rows) <= query.limit:
            low = floor
            if not is_quick:
                # Counted from a row that exists: a gap of any size is one step.
                start = self._ledger.row("SELECT max(id) FROM events WHERE id <= ? AND id >= ?", (top, floor))
                if start is None or start[0] is None:
                    top = floor - 1
                    break
                top, low = start[0], max(floor, start[0] - SPAN_IDS)
            wanted = query.limit + 1 - len(rows)
            batch, is_all = self._ledger.rows(sql, (top, low, *values), wanted)
            rows += batch
            top = (low if is_all else batch[-1][0]) - 1
            if time.monotonic() >= deadline_s:
                break
        is_full = len(rows) > query.limit
        rows = rows[: query.limit]
        stopped = not is_full and top >= floor
        older = rows[-1][0] if is_full else top + 1 if stopped else None
        return StreamPage(tuple(map(_stream_row, rows)), older, top + 1 if stopped else None, head)

    def _condition(self, query: StreamQuery) -> tuple[str, tuple[Any, ...], bool]:
        """(SQL, its values, whether every row that is read matches)."""
        sql, values, is_quick = "", [], True
        if query.kind is not None:
            is_cut = len(query.kind) == KIND_CHARS
            is_quick = not is_cut and self._ledger.has_kind_index()
            # As `+kind`, the column is in no index, which SQLite could choose and sort by.
            column = f"substr(kind, 1, {KIND_CHARS})" if is_cut else "kind" if is_quick else "+kind"
            sql += f" AND {column} = ?"
            values.append(encodable(query.kind))
        if query.text:
            is_quick = False
            text = "content || ' ' || meta" if self._is_foreign else "content"
            sql += f" AND {text} LIKE ? ESCAPE '\\'"
            escaped = query.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            values.append(f"%{encodable(escaped)}%")
        for value, sign in ((query.since, ">="), (query.until, "<")):
            if value is not None:
                is_quick = False
                sql += f" AND julianday(ts) {sign} julianday(?)"
                values.append(encodable(value))
        return sql, tuple(values), is_quick

    def rows_of(self, ids: Sequence[int]) -> dict[int, StreamRow]:
        """The events with these ids, at most `PAGE_ROWS_MAX`; those that do not exist are left out."""
        wanted = [one for one in ids if ID_MIN <= one <= ID_MAX][:PAGE_ROWS_MAX]
        places = ", ".join("?" * len(wanted))
        sql = f"SELECT {self._columns} FROM events WHERE id IN ({places}) ORDER BY id LIMIT ?"
        if not wanted:
            return {}
        # Cut as they are, they fit in one batch.
        batch = self._ledger.read(lambda: self._ledger.rows(sql, tuple(wanted), len(wanted)))
        return {row[0]: _stream_row(row) for row in batch.rows}

    def event(self, event_id: int) -> dict[str, Any] | None:
        """One event with all columns; content and meta are cut to `EVENT_CHARS`, and a key `cut` says so."""
        if not ID_MIN <= event_id <= ID_MAX:
            return None

        def read() -> tuple[RawRow, list[str]] | None:
            hashes = [name for name in HASH_COLUMNS if name in self._ledger.connection.columns]
            columns = ", ".join(f"substr({name}, 1, {EVENT_CHARS})" for name in ("content", "meta"))
            more = "".join(f", substr({name}, 1, 80)" for name in hashes)
            sql = (
                f"SELECT id, substr(ts, 1, {TS_CHARS}), substr(kind, 1, {KIND_CHARS}), {columns}, "
                f"length(content), length(meta){more} FROM events WHERE id = ?"
            )
            found = self._ledger.row(sql, (event_id,))
            return None if found is None else (found, hashes)

        found = self._ledger.read(read)
        if found is None:
            return None
        row, hashes = found
        cut = [name for name, chars in (("content", row[5]), ("meta", row[6])) if (chars or 0) > EVENT_CHARS]
        return {
            "id": row[0],
            "ts": _plain(row[1]),
            "kind": _plain(row[2]),
            "content": _plain(row[3]),
            "meta": _plain(row[4]) if "meta" in cut else _meta(row[4]),
            **dict(zip(hashes, map(_plain, row[7:]), strict=True)),
            **({"cut": cut} if cut else {}),
        }

    def beside(self, event_id: int) -> tuple[int | None, int | None]:
        """The ids of the event before, and of the one after, an id."""

        def read() -> tuple[int | None, int | None]:
            bounded = max(ID_MIN, min(ID_MAX, event_id))
            below = self._ledger.row("SELECT max(id) FROM events WHERE id < ?", (bounded,))
            above = self._ledger.row("SELECT min(id) FROM events WHERE id > ?", (bounded,))
            return None if below is None else below[0], None if above is None else above[0]

        return self._ledger.read(read)


def _meta(value: Any) -> Any:
    try:
        return parse_meta(value)
    except MalformedMeta:
        return _plain(value)


def _plain(value: Any) -> Any:
    """A value as JSON has it; what JSON does not know becomes text."""
    return value if value is None or isinstance(value, (str, int, float)) else spelled(value)


def _stream_row(row: RawRow) -> StreamRow:
    ts, kind, content = (value if isinstance(value, str) else spelled(value) for value in row[1:4])
    meta = (value if isinstance(value, str) else spelled(value) for value in row[6:])
    return StreamRow(row[0], ts, kind, content, row[4] or 0, row[5] or 0, *meta)
