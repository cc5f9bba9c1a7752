"""Makes the temporary view `events` of a log shape on one connection, and refuses shapes that would be slow or wrong.

The view belongs to the connection; nothing is written to the foreign file. What must hold is read from the plan of the
statements that a read runs: the rows behind a position, and the newest one, are found by a key, without a sort; each
further table of a join gives at most one row. The plan is that of empty tables with the same schema: statistics that
ANALYZE took from a row or two would give a scan.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator

from pmm_shm.errors import LedgerError, NotALedgerError
from pmm_shm.ledger.shape import Shape
from pmm_shm.ledger.shape_sql import ShapeSource, columns_of, select_sql, source_of

_BEHIND = "SELECT * FROM events WHERE id >= ? ORDER BY id LIMIT ?"
_PLANNED = (
    _BEHIND,
    "SELECT id, ts, kind, content, meta FROM events WHERE id > ? AND id <= ? AND +kind IN (?, ?) ORDER BY id LIMIT ?",
    "SELECT * FROM events WHERE id <= ? ORDER BY id DESC LIMIT ?",
    "SELECT * FROM events WHERE id = ? LIMIT ?",
)
_COLUMNS_SHOWN = 20
_NEEDS_KEY = "a position must be `rowid` or a unique integer key"
_HEAD = "SELECT max(id) FROM events LIMIT ?"
_FAULTS_OF_SHAPE = (
    *("no such", "syntax error", "ambiguous", "wrong number", "misuse", "near"),
    *("sub-select", "stack overflow", "too large", "too many", "too big"),
)
# Before 3.36: SEARCH TABLE name AS alias USING ...
_SEARCH = re.compile(
    r"SEARCH (?:TABLE (?:.* AS )?)?(?P<alias>.*?) USING "
    r"(?:(?P<rowid>INTEGER PRIMARY KEY)|(?P<key>PRIMARY KEY)|(?:COVERING )?INDEX (?P<index>.+?)) "
    r"\((?P<terms>[^()]*)\)(?: LEFT-JOIN)?"
)
_DEFINITIONS = (
    "SELECT sql FROM main.sqlite_master WHERE lower(tbl_name) = lower(?) AND type IN ('table', 'index') "
    "AND sql NOT NULL ORDER BY type = 'index'"
)
_TABLES = (
    "SELECT type, name, CAST(sql AS BLOB) FROM main.sqlite_master "
    "WHERE lower(name) = lower(?) AND type IN ('table', 'view')"
)


def fit_view(handle: sqlite3.Connection, path: str, shape: Shape, *, makes_it: bool) -> bool:
    """Check that the view fits the tables as they are now.

    Parameters:
        makes_it: make it first, within the caller's transaction.

    Returns:
        Whether the ids could be anything else than integers: the position is no rowid.

    Raises:
        NotALedgerError: the shape does not fit the tables, or reads of it would scan or sort.
        ConfigError: the shape has no meaning.
        sqlite3.Error: the file cannot be read.
    """
    source = source_of(shape)
    for table in dict.fromkeys(source.tables.values()):
        _check_table(handle, path, shape, table)
    _compiled(handle, path, shape, source, "position", f"SELECT {source.position} FROM {source.sql}")
    for key, sql in columns_of(shape).values():
        _compiled(handle, path, shape, source, key, f"SELECT {sql} FROM {source.sql}")
    is_declared = _check_type(handle, path, shape, source)
    if makes_it:
        handle.execute(f"CREATE TEMP VIEW events AS {select_sql(shape)}")
    is_rowid = False
    with _without_statistics(handle, shape, source) as empty:
        for sql in _PLANNED:
            is_rowid = _check_plan(empty, path, shape, source, sql)
        head = _plan(empty, _HEAD)
    if not head[0].startswith("SEARCH"):
        raise _slow(path, shape, "for the newest position", head[0])
    if not is_rowid:
        if not is_declared:
            raise _unfit(path, shape, f"`position = {shape.position!r}`: no integer column; {_NEEDS_KEY}")
        _check_integers(handle, path, shape)
    return not is_rowid


@contextlib.contextmanager
def _without_statistics(handle: sqlite3.Connection, shape: Shape, source: ShapeSource) -> Iterator[sqlite3.Connection]:
    """A database in memory with the view over the same tables and indexes, empty."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
        try:
            for table in dict.fromkeys(source.tables.values()):
                for (sql,) in handle.execute(_DEFINITIONS, (table,)).fetchall():
                    empty.execute(sql)
            empty.execute(f"CREATE TEMP VIEW events AS {select_sql(shape)}")
        except sqlite3.Error:
            # A function of the other program, in a CHECK for example, is unknown here.
            empty = handle
        yield empty


def _check_table(handle: sqlite3.Connection, path: str, shape: Shape, table: str) -> None:
    rows = handle.execute(_TABLES, (table,)).fetchall()
    if not rows:
        raise _unfit(path, shape, f"there is no table {table!r}")
    kind, _, sql = rows[0]
    if kind == "view":
        raise _unfit(path, shape, f"{table!r} is a view: name its tables")
    if b"CREATE VIRTUAL" in (sql or b"").replace(b"\0", b"").upper():
        raise _unfit(path, shape, f"{table!r} is a virtual table")


def _compiled(handle: sqlite3.Connection, path: str, shape: Shape, source: ShapeSource, key: str, sql: str) -> None:
    """Raise where one part of the shape does not compile."""
    try:
        handle.execute("EXPLAIN " + sql).fetchall()
    except sqlite3.OperationalError as error:
        text = str(error)
        if not any(sign in text for sign in _FAULTS_OF_SHAPE):
            raise
        hint = ""
        if text.startswith("no such column"):
            hint = f"; a constant text is written as \"'text'\"; {_columns(handle, source)}"
        raise _unfit(path, shape, f"`{key}`: {text}{hint}") from None


def _columns(handle: sqlite3.Connection, source: ShapeSource) -> str:
    """The columns of the tables, in words."""
    told = []
    for table in dict.fromkeys(source.tables.values()):
        names = [row[0] for row in handle.execute("SELECT name FROM pragma_table_info(?, 'main')", (table,)).fetchall()]
        more = f" and {len(names) - _COLUMNS_SHOWN} more" if len(names) > _COLUMNS_SHOWN else ""
        told.append(f"{table!r} has {', '.join(names[:_COLUMNS_SHOWN])}{more}")
    return " ".join("; ".join(told).split())


def _check_plan(handle: sqlite3.Connection, path: str, shape: Shape, source: ShapeSource, sql: str) -> bool:
    """Check that a statement finds its rows by keys. Returns whether the position is a rowid."""
    what = "for the newest position" if "DESC" in sql else "for the rows behind a position"
    plan = _plan(handle, sql)
    found = [_SEARCH.fullmatch(step) for step in plan]
    for step, match in zip(plan, found, strict=True):
        if match is None:
            raise _slow(path, shape, what, step)
    first = found[0]
    assert first is not None
    if first["index"] is not None and not _is_unique(handle, source, first["index"], 1):
        raise _unfit(path, shape, f"`position`: {source.key!r} is not unique")
    if first["key"] is not None and _key_columns(handle, source, first["alias"]) != 1:
        raise _unfit(path, shape, f"`position`: {source.key!r} is not unique")
    for step, match in zip(plan[1:], found[1:], strict=True):
        assert match is not None
        terms = match["terms"].split(" AND ")
        is_one = match["rowid"] is not None
        if match["key"] is not None:
            is_one = _key_columns(handle, source, match["alias"]) == len(terms)
        elif match["index"] is not None:
            is_one = _is_unique(handle, source, match["index"], len(terms))
        if not is_one or not all(term.endswith("=?") for term in terms):
            raise _unfit(path, shape, f"`from`: a join must find one row by a unique key (plan: {step})")
    return first["rowid"] is not None


def _key_columns(handle: sqlite3.Connection, source: ShapeSource, alias: str) -> int:
    """How many columns the primary key of a table has."""
    sql = "SELECT count(*) FROM pragma_table_info(?, 'main') WHERE pk > 0"
    count: int = handle.execute(sql, (source.tables[alias],)).fetchall()[0][0]
    return count


def _is_unique(handle: sqlite3.Connection, source: ShapeSource, index: str, columns: int) -> bool:
    """Whether an index is unique in as many columns."""
    for table in dict.fromkeys(source.tables.values()):
        for row in handle.execute(
            "SELECT name, [unique], partial FROM pragma_index_list(?, 'main')", (table,)
        ).fetchall():
            if row[0] == index:
                count = handle.execute("SELECT count(*) FROM pragma_index_info(?, 'main')", (index,)).fetchall()[0][0]
                return bool(row[1] and not row[2] and count == columns)
    return False


def _check_type(handle: sqlite3.Connection, path: str, shape: Shape, source: ShapeSource) -> bool:
    """Whether the position is a declared column; raise where that is no integer."""
    rows = handle.execute(
        "SELECT type FROM pragma_table_info(?, 'main') WHERE lower(name) = lower(?)",
        (source.tables[source.alias], source.key),
    ).fetchall()
    # Without a row, it is the rowid.
    if rows and "INT" not in rows[0][0].upper():
        raise _unfit(path, shape, f"`position = {shape.position!r}`: no integer column; {_NEEDS_KEY}")
    return bool(rows)


def _check_integers(handle: sqlite3.Connection, path: str, shape: Shape) -> None:
    for sql in ("SELECT typeof(max(id)) FROM events", "SELECT typeof(min(id)) FROM events"):
        kind = handle.execute(sql).fetchall()[0][0]
        if kind not in ("integer", "null"):
            raise _unfit(path, shape, f"`position = {shape.position!r}`: it holds a value of type {kind}; {_NEEDS_KEY}")


def _plan(handle: sqlite3.Connection, sql: str) -> list[str]:
    return [row[3] for row in handle.execute("EXPLAIN QUERY PLAN " + sql, (1,) * sql.count("?")).fetchall()]


def _slow(path: str, shape: Shape, what: str, step: str) -> LedgerError:
    return _unfit(path, shape, f"the plan {what} is no look-up by a key (plan: {step})")


def _unfit(path: str, shape: Shape, fault: str) -> NotALedgerError:
    return NotALedgerError(f"{path}: the shape {shape.name!r} does not fit: {fault}")
