"""A ledger as JSON lines: one object per event, with the value of every column, in ASCII.

Text is a string; `meta` is the text of its column, because the parsed object would not bring the same bytes back. What
JSON has no value for is an object with one key: `{"text": HEX}` for text that is not UTF-8, `{"blob": HEX}`, and
`{"real": "inf"}` or `"-inf"`.

Invariant: an export that is imported gives the same rows, column by column and type by type, or an error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from pmm_shm.errors import ChainError, LedgerReplacedError, LedgerUnwritableError, NotALedgerError
from pmm_shm.ledger.chain import broken_at, verify_chain
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.new_file import new_path, staged
from pmm_shm.ledger.rows import HASH_COLUMNS, ID_MAX, ID_MIN, REQUIRED_COLUMNS, InvalidText, decode_text
from pmm_shm.ledger.schema import TABLE_SQL, create_indexes
from pmm_shm.ledger.shape_sql import quoted
from pmm_shm.ledger.tail import START, TailReader, head_of, ordered_columns

CountProgress = Callable[[int], object]
"""Called with the number of events done so far."""

_REALS = {"inf": math.inf, "-inf": -math.inf}
_PROGRESS_EVENTS = 1_000
_TYPES = dict.fromkeys(REQUIRED_COLUMNS[1:], " TEXT NOT NULL") | dict.fromkeys(HASH_COLUMNS, " TEXT")
_USUAL_COLUMNS = [*REQUIRED_COLUMNS, *HASH_COLUMNS]


class Imported(NamedTuple):
    """A new ledger: its real path, the number of events, and the newest event's id (0 without events)."""

    ledger: str
    events: int
    head_id: int


def exported(connection: Connection, progress: CountProgress = lambda done: None) -> Iterator[str]:
    """The lines of all events up to the head of the log at the call, each with its line break.

    Reads in short statements: nobody waits for whoever consumes the lines.

    Raises:
        LedgerReplacedError: another history took its place meanwhile.
        LedgerError: the ledger cannot be read.
    """
    reader, position, done = TailReader(connection, None, whole_rows=True), START, 0
    head_id = head_of(connection)
    while True:
        with connection.lock:
            tail = reader.read(position, until_id=head_id)
            columns = ordered_columns(connection.columns)
        if not tail.is_anchored:
            raise LedgerReplacedError(f"{connection.path}: replaced or edited while it was exported; export it again")
        for row in tail.rows:
            yield event_line(dict(zip(columns, row, strict=True)))
        done += len(tail.rows)
        progress(done)
        if tail.is_complete or tail.position.as_of >= head_id:
            return
        position = tail.position


def event_line(row: Mapping[str, Any]) -> str:
    """The line of one event, with its line break, given column to value."""
    try:
        text = json.dumps(row, allow_nan=False, default=_escaped)
    except ValueError:
        text = json.dumps({name: _finite(value) for name, value in row.items()}, default=_escaped)
    return text + "\n"


def _escaped(value: object) -> dict[str, str]:
    if isinstance(value, InvalidText):
        return {"text": value.raw.hex()}
    assert isinstance(value, bytes)
    return {"blob": value.hex()}


def _finite(value: object) -> object:
    return {"real": str(value)} if isinstance(value, float) and math.isinf(value) else value


def import_lines(
    lines: Iterable[bytes],
    path: str | os.PathLike[str],
    *,
    source: str = "the lines",
    chain: bool = True,
    progress: CountProgress = lambda done: None,
) -> Imported:
    """Make a new ledger, in WAL mode, of the lines of an export; it appears whole or not at all.

    Parameters:
        path: a file that does not exist yet.
        source: what messages call the lines.
        chain: verify the hash chain.

    Raises:
        ConfigError: `path` is not the path of a file.
        NotALedgerError: a line is not an event of an export; the message names it.
        ChainError: the hash chain is broken.
        LedgerUnwritableError: something is there already, or the ledger cannot be made.
    """
    target = new_path(path)
    try:
        with staged(target) as temporary:
            with contextlib.closing(sqlite3.connect(os.fsencode(temporary), isolation_level=None)) as handle:
                # No other process knows the file, and it is removed on failure: no journal, and one sync at the end.
                for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
                    handle.execute(f"PRAGMA {pragma}").fetchall()
                handle.execute("BEGIN")
                events, head_id = _Writer(handle, source, progress).write(lines)
                create_indexes(handle)
                handle.execute("COMMIT")
                handle.execute("PRAGMA locking_mode = NORMAL").fetchall()
                handle.execute("PRAGMA journal_mode = WAL").fetchall()
            if chain:
                _check_chain(temporary, source)
    except (sqlite3.Error, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise LedgerUnwritableError(f"{target}: cannot be made: {text}; nothing was written") from error
    return Imported(target, events, head_id)


def _check_chain(path: str, source: str) -> None:
    with contextlib.closing(Connection(path, "ro")) as connection:
        # A fork damages no event: an export of such a ledger is as good as the ledger.
        bad_id = verify_chain(connection).first_bad_id
    if bad_id is not None:
        raise ChainError(f"{source}: {broken_at(bad_id)}; nothing was written")


class _Writer:
    """Writes the events of an export into an empty database, within the caller's transaction."""

    def __init__(self, handle: sqlite3.Connection, source: str, progress: CountProgress) -> None:
        self._handle = handle
        self._source = source
        self._progress = progress
        self._columns: list[str] = []
        self._is_typed = True

    def write(self, lines: Iterable[bytes]) -> tuple[int, int]:
        """Returns the number of events, and the newest id."""
        events, last_id = 0, ID_MIN - 1
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = self._parsed(line)
                if row[0] <= last_id:
                    raise ValueError(f"event {row[0]} does not come after event {last_id}")
                self._insert(row)
            except (ValueError, OverflowError, RecursionError) as error:
                raise NotALedgerError(
                    f"{self._source}: line {number} is not an event of an export: {_reason(error)}; nothing was written"
                ) from None
            events, last_id = events + 1, row[0]
            if events % _PROGRESS_EVENTS == 0:
                self._progress(events)
        if not events:
            self._handle.execute(TABLE_SQL)
        return events, last_id if events else 0

    def _parsed(self, line: bytes) -> list[Any]:
        """The values of one line, in the order of the columns; those of the table are those of the first line."""
        found = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        missing = [name for name in self._columns or REQUIRED_COLUMNS if name not in found]
        if missing:
            raise ValueError(f"without {', '.join(missing)}")
        if not self._columns:
            self._columns = ordered_columns(tuple(found))
            self._handle.execute(TABLE_SQL if self._columns == _USUAL_COLUMNS else _table_sql(self._columns, _TYPES))
        elif len(found) > len(self._columns):
            raise ValueError(f"{', '.join(sorted(found.keys() - set(self._columns)))}: in no line before")
        row = [_value(found[name]) for name in self._columns]
        if type(row[0]) is not int or not ID_MIN <= row[0] <= ID_MAX:
            raise ValueError(f"id: {row[0]!r:.40} is not an integer of 64 bits")
        return row

    def _insert(self, row: Sequence[Any]) -> None:
        if self._is_typed and not all(map(_keeps, self._columns[1:], row[1:])):
            self._drop_types()
        # SQLite takes text that is not UTF-8 only by a cast of its bytes.
        slots = ", ".join(["CAST(? AS TEXT)" if isinstance(value, InvalidText) else "?" for value in row])
        values = [value.raw if isinstance(value, InvalidText) else value for value in row]
        self._handle.execute(f"INSERT INTO events ({', '.join(map(quoted, self._columns))}) VALUES ({slots})", values)

    def _drop_types(self) -> None:
        self._is_typed = False
        for statement in (
            "ALTER TABLE events RENAME TO typed",
            _table_sql(self._columns, {}),
            "INSERT INTO events SELECT * FROM typed",
            "DROP TABLE typed",
        ):
            self._handle.execute(statement)


def _table_sql(columns: Sequence[str], types: Mapping[str, str]) -> str:
    others = ", ".join(quoted(name) + types.get(name, "") for name in columns[1:])
    return f"CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, {others})"


def _keeps(name: str, value: object) -> bool:
    """Whether the typed column keeps a value: it refuses NULL where it is required, and makes a number text."""
    return (
        name not in _TYPES or isinstance(value, (str, bytes, InvalidText)) or (value is None and name in HASH_COLUMNS)
    )


def _value(value: object) -> object:
    """The value of a column."""
    if isinstance(value, (bool, list)):
        raise ValueError(f"{json.dumps(value):.40} is no value of a column")
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, text),) = value.items()
        if kind == "real" and text in _REALS:
            return _REALS[text]
        if kind in ("text", "blob") and isinstance(text, str):
            data = bytes.fromhex(text)
            return decode_text(data) if kind == "text" else data
    raise ValueError(f"{json.dumps(value):.40} is no value of a column; meta is the text of its column")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
