"""The event log: appends that keep the chain linear, and reads that never raise because of a row.

Owns one connection that only reads and one that only appends. Opening and reading an existing ledger changes nothing in
it; the first append creates missing indexes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

from pmm_shm import limits
from pmm_shm.errors import (
    ConfigError,
    LedgerError,
    LedgerNotFoundError,
    LedgerUnreadableError,
    LedgerUnwritableError,
    ReplicaError,
)
from pmm_shm.late import late_imports
from pmm_shm.ledger import chain
from pmm_shm.ledger.append import Appender, ExpectedHead
from pmm_shm.ledger.chain import ChainReport
from pmm_shm.ledger.connection import Connection, Durability, check_durability
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.files import checked_name
from pmm_shm.ledger.instants import first_date_text, instant_us
from pmm_shm.ledger.new_events import EventInput, NewEvent, new_event, new_events
from pmm_shm.ledger.rows import ID_MAX, ID_MIN, Event, MalformedMeta, RawRow, parse_content, parse_meta, text_or_empty
from pmm_shm.ledger.schema import TS_INDEX, create_ledger
from pmm_shm.ledger.sqlite_errors import BlankLedgerError, HotJournalError, check_timeout
from pmm_shm.ledger.tail import Position, Positioned
from pmm_shm.resources import shortage
from pmm_shm.typed import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeVar

if TYPE_CHECKING:
    from pmm_shm.ledger.event_range import RangeReader
    from pmm_shm.ledger.shape import Shape
    from pmm_shm.ledger.source.replica_appender import ReplicaAppender


class EventDict(TypedDict):
    """One event, decoded; the caller's own."""

    id: int
    ts: str
    kind: str
    content: str
    meta: dict[str, Any]


_T = TypeVar("_T")
_ONE = "SELECT id, ts, kind, content, meta FROM events WHERE id = ? LIMIT ?"


class EventLog:
    """A ledger to append to and read from; one per process and ledger, shared by its threads, safe across fork.

    Parameters:
        path: the SQLite file.
        timeout: seconds to wait for a busy ledger before `LedgerBusyError`.
        create: create the ledger if the file is missing or is a database without tables.
        durability: what an acknowledged append survives. Both survive the death of any process, and a power cut never
            damages the ledger. `"full"` survives a power cut, too, and waits for the disk at each append. With
            `"default"`, a power cut can lose the newest appends: in WAL mode those since the last checkpoint, with a
            rollback journal the last one.
        shape: how a table of another program is the log, which only that program appends to; None for the recorded
            shape, if there is one.

    Raises:
        ConfigError: the path cannot be that of a file.
        LedgerNotFoundError: there is no file, and `create` is false.
        NotALedgerError: the file is not a ledger; nothing was changed.
        LedgerUnwritableError: the ledger cannot be created there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = limits.LEDGER_TIMEOUT_S,
        create: bool = True,
        durability: Durability = "default",
        shape: Shape | None = None,
    ) -> None:
        name = checked_name(path)
        check_timeout(timeout)
        check_durability(durability)
        self._reader = Connection(name, "ro", timeout, shape)
        self.path = self._reader.path
        """The ledger's real path."""
        self.timeout = timeout
        """Seconds to wait for a busy ledger."""
        self.durability: Durability = durability
        """What an acknowledged append survives."""
        self._appender = Appender(self.path, timeout, durability, shape)
        # Where appends of a replica go; made when the first one is refused here.
        self._source: ReplicaAppender | None = None
        self._close_hooks: list[Callable[[], None]] = []
        self._range_reader: RangeReader | None = None
        self._open(create)

    def _open(self, create: bool) -> None:
        try:
            with self._reader.lock:
                self._reader.handle()
        except (LedgerNotFoundError, BlankLedgerError):
            if not create or self._reader.shape is not None:
                raise
            create_ledger(self.path, self.timeout)
        except HotJournalError:
            pass  # The first read or append repairs it.

    def __enter__(self) -> EventLog:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an EventLog cannot be pickled or copied: pass its path, and open it there")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventLog {self.path}>"

    @property
    def shape(self) -> Shape | None:
        """The shape of a table of another program; None for a ledger."""
        return self._reader.shape

    @property
    def is_of_pmm2(self) -> bool:
        """Whether PMM 2 keeps the ledger: only the process that holds its writer lease can append."""

        def look() -> bool:
            self._reader.handle()
            self._reader.follow_schema()
            return self._reader.schema.is_of_pmm2

        return self._read(look)

    def add_close_hook(self, hook: Callable[[], None]) -> None:
        """Call `hook` at every `close()`, before the connections close."""
        self._close_hooks.append(hook)

    def close(self) -> None:
        """Close the connections, after a checkpoint of the WAL if nothing blocks it. The next use reopens them."""
        for hook in self._close_hooks:
            hook()
        self._reader.close()
        self._appender.close()
        if self._source is not None:
            self._source.close()

    def append(
        self,
        kind: str,
        content: str = "",
        meta: Mapping[str, Any] | None = None,
        *,
        expected_head: int | Positioned | None = None,
        wait: bool = True,
    ) -> int:
        """Append one event and return its id. The event is committed when this returns.

        Parameters:
            expected_head: append only if this is the newest event's id (0: the ledger is empty). A frame in place of
                the number compares that event itself, too: a restored ledger can have another one with the same id.
            wait: on a replica of a log in PostgreSQL, return when this replica has the event, so that the next read
                includes it; otherwise as soon as PostgreSQL has it.

        Raises:
            HeadMovedError: the newest event is not the expected one.
            InvalidEventError: it could not be stored and read back unchanged.
            LedgerBusyError: another process held the ledger until the timeout.
            ChainError: the newest hashed event fits no known formula.
            SourceUnreachableError, UnknownOutcomeError, ReplicaLaggingError: on a replica; see their meanings.
            LedgerError: any other problem with the file. In all cases nothing was written.
        """
        return self._append([new_event(kind, content, meta)], expected_head, wait)[0]

    def append_many(
        self, events: Iterable[EventInput], *, expected_head: int | Positioned | None = None, wait: bool = True
    ) -> list[int]:
        """Append a batch in one transaction, all of it or nothing, and return the ids.

        Each event is `(kind, content, meta)` or a mapping with `kind` and optionally `content`, `meta` and `ts` (ISO
        8601). `expected_head` and `wait` are those of `append`, and so are the errors raised.
        """
        batch = new_events(events)
        return self._append(batch, expected_head, wait) if batch or expected_head is not None else []

    def _append(self, batch: list[NewEvent], expected_head: int | Positioned | None, wait: bool) -> list[int]:
        head = None if expected_head is None else _checked_head(expected_head)
        if self._source is None or not self._source.is_current():
            try:
                return self._appender.append(batch, head)
            except ReplicaError:
                self._source = self._open_source()
        return self._source.append(batch, head, wait=wait)

    def source(self) -> ReplicaAppender | None:
        """How to reach the log of record of a replica; None for any other ledger.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with late_imports:
            from pmm_shm.ledger.replicas import is_replica
        self._reader.follow_replacement()
        with self._reader.lock:
            self._reader.require_lock()
            self._reader.handle()
        if not is_replica(self._reader.schema.definition):
            return None
        if self._source is None or not self._source.is_current():
            self._source = self._open_source()
        return self._source

    def _open_source(self) -> ReplicaAppender:
        with late_imports:
            from pmm_shm.ledger.source.replica_appender import ReplicaAppender
        if self._source is not None:
            self._source.close()
        return ReplicaAppender(self._reader, self.timeout)

    def recover(self) -> None:
        """Let SQLite roll back the transaction of a writer that died within it.

        Raises:
            LedgerError: in one of its kinds.
        """
        try:
            self._appender.recover()
        except LedgerUnwritableError as error:
            if all(os.access(place, os.W_OK, effective_ids=True) for place in (self.path, os.path.dirname(self.path))):
                raise
            raise LedgerUnreadableError(
                f"{self.path}: a writer died within a transaction, and only a program that may write the ledger and "
                "its directory can roll it back, by its next read or append"
            ) from error

    def read_all(self) -> list[EventDict]:
        """All events, by ascending id."""
        return self.read_after_id(after_id=ID_MIN - 1)

    def read_after_id(self, after_id: int, limit: int | None = None) -> list[EventDict]:
        """The first `limit` events with an id above `after_id`, ascending; None means all."""
        return self._range(limit, after=after_id)

    def read_after_ts(self, after_ts: str, limit: int | None = None) -> list[EventDict]:
        """The first `limit` events, by id, whose `ts` is a later instant than `after_ts`; None means all.

        A time without an offset is UTC; a `ts` that is not ISO 8601 never matches.

        Raises:
            ConfigError: `after_ts` is not ISO 8601.
        """
        instant = instant_us(after_ts)
        if instant is None:
            raise ConfigError(f"after_ts: {after_ts!r:.80} is not an ISO 8601 time")

        ranges = self._ranges()

        def is_later(row: RawRow) -> bool:
            own = instant_us(text_or_empty(row[1]))
            return own is not None and own > instant

        def later() -> list[RawRow]:
            found: list[RawRow] = []
            after_id = self._first_id_since(instant) - 1
            while limit is None or len(found) < limit:
                rows = ranges.read(None, after_id, None, limits.TAIL_ROWS_MAX, False)
                found += filter(is_later, rows)
                if len(rows) < limits.TAIL_ROWS_MAX:
                    break
                after_id = rows[-1][0]
            return found if limit is None else found[: max(0, limit)]

        return [_event(row) for row in self._read(later)]

    def first_id_since(self, instant: int) -> int:
        """An id below which no event is of this instant (microseconds since 1970, UTC) or later.

        By the index on `ts`; without it, the lowest id there can be.
        """
        return self._read(lambda: self._first_id_since(instant))

    def read_tail(self, limit: int = 1_000) -> list[EventDict]:
        """The newest `limit` events, ascending."""
        return self._range(limit, newest_first=True)[::-1]

    def get_event(self, event_id: int) -> EventDict | None:
        """The event with this id; None if there is none."""
        if not ID_MIN <= event_id <= ID_MAX:
            return None
        rows = self._read(lambda: fetch_batch(self._reader, _ONE, (event_id,), 1).rows)
        return _event(rows[0]) if rows else None

    def events(
        self,
        kind: str | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = 100,
        newest_first: bool = False,
    ) -> list[Event]:
        """The first `limit` events in a range of ids, of the moment of the call.

        With an index of the ledger that begins with the kind, a call reads no rows of other kinds; without one it
        scans in short statements.

        Parameters:
            kind: only events of this kind; None for all.
            after, before: only events with a higher or lower id; these two ids are excluded.
            limit: how many at most; None for all.
            newest_first: begin with the newest event; otherwise with the oldest.

        Raises:
            ConfigError: an argument has no meaning.
            LedgerError: the ledger cannot be read.
        """
        ranges = self._ranges()
        rows = self._read(lambda: ranges.read(kind, after, before, limit, newest_first))
        return [Event(**_event(row)) for row in rows]

    def newest(self, kind: str) -> Event | None:
        """The newest event of a kind; None if there is none. With an index that begins with the kind, a look-up.

        Raises:
            ConfigError: `kind` is no text.
            LedgerError: the ledger cannot be read.
        """
        if not isinstance(kind, str):
            raise ConfigError(f"kind: expected text, got {kind!r:.80}")
        found = self.events(kind, limit=1, newest_first=True)
        return found[0] if found else None

    def query(self, kind: str | None = None, limit: int | None = None) -> list[EventDict]:
        """The newest `limit` events of one kind (None: any kind), newest first."""
        return self._range(limit, kind, newest_first=True)

    def verify_chain(self) -> ChainReport:
        """Verify the hash chain of the whole ledger; the report says what was checked, and the first bad id."""
        connection = Connection(self.path, "ro", self._reader.timeout_s, self._reader.shape)
        try:
            try:
                return chain.verify_chain(connection)
            except HotJournalError:
                self.recover()
                return chain.verify_chain(connection)
        finally:
            connection.close()

    def _range(
        self, limit: int | None, kind: str | None = None, after: int | None = None, newest_first: bool = False
    ) -> list[EventDict]:
        ranges, rows_max = self._ranges(), limit if limit is None else max(0, limit)
        return [_event(row) for row in self._read(lambda: ranges.read(kind, after, None, rows_max, newest_first))]

    def _ranges(self) -> RangeReader:
        if self._range_reader is None:
            with late_imports:
                from pmm_shm.ledger.event_range import RangeReader
            self._range_reader = RangeReader(self._reader)
        return self._range_reader

    def _read(self, fetch: Callable[[], _T]) -> _T:
        self._reader.follow_replacement()
        try:
            return self._locked(fetch)
        except HotJournalError as error:
            try:
                self.recover()
            except LedgerError:
                raise error from None
            return self._locked(fetch)

    def _locked(self, fetch: Callable[[], _T]) -> _T:
        # One lock for all batches of a read: no other thread may switch to another file in between.
        with self._reader.lock:
            self._reader.require_lock()
            return fetch()

    def _first_id_since(self, instant: int) -> int:
        """An id below which no event is later than `instant`, found by the index on `ts`; the lowest id without it."""
        sql = f"SELECT min(id) FROM events INDEXED BY {TS_INDEX} WHERE ts >= ? LIMIT ?"
        try:
            rows = fetch_batch(self._reader, sql, (first_date_text(instant),), 1).rows
        except LedgerError as error:
            if "index" not in str(error) and "query solution" not in str(error):
                raise
            return ID_MIN
        return ID_MAX if rows[0][0] is None else int(rows[0][0])


class UnopenedLog(EventLog):
    """An event log that its first use opens: that of a cache, which has opened the ledger before.

    Parameters:
        path: the real path as of then. Where a folder of it is a link by now, a path that is resolved anew would be
            another one, and the connections of this process find each other by their path.
        opened: the cache's connection. The log reads through it where this process has no file descriptors for another.
    """

    def __init__(
        self,
        path: str,
        opened: Connection | None,
        *,
        timeout: float,
        durability: Durability = "default",
        shape: Shape | None = None,
    ) -> None:
        super().__init__(path, timeout=timeout, durability=durability, shape=shape)
        self.path = self._reader.path = self._appender.connection.path = path
        # For the file and its `-wal`.
        if opened is not None and shortage(descriptors=2) is not None:
            self._reader = opened

    def _open(self, create: bool) -> None:
        pass


def own_row(log: EventLog, event_id: int) -> RawRow | None:
    """The row of an event with its hashes, if it is the newest one that the log has appended and still knows."""
    row = log._appender.last_row
    return row if row is not None and row[0] == event_id else None


def _checked_head(expected: object) -> ExpectedHead:
    head = getattr(expected, "position", expected)
    if type(head) is not int and not isinstance(head, Position):
        raise ConfigError(f"expected_head: expected an event id or a frame, got {expected!r:.80}")
    return head


def _event(row: RawRow) -> EventDict:
    event_id, ts, kind, content, meta = row
    try:
        parsed = parse_meta(meta)
    except MalformedMeta:
        parsed = {}
    return {
        "id": event_id,
        "ts": text_or_empty(ts),
        "kind": text_or_empty(kind),
        "content": parse_content(content)[0],
        "meta": parsed,
    }
