"""The SQL of a log shape: one SELECT over the foreign tables with the columns of `events`.

Each part of a shape is one expression over the columns of a row: no further SELECT, no aggregate, and the same value
whenever it is computed. So an event is a function of its row, and no shape writes anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pmm_shm.ledger.shape import Shape, Value

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\[[^\]]*\]")
_FORBIDDEN = (
    (re.compile(r";|--|/\*|[?@$#]|:\w|['\"`\[\]]"), "holds a comment, a parameter, a `;` or an open quotation mark"),
    (
        re.compile(r"\b(?:select|over|filter|raise|attach|pragma|returning|collate)\b", re.I),
        "is more than an expression over the columns of the row",
    ),
    (
        re.compile(
            r"\b(?:random|randomblob|changes|total_changes|last_insert_rowid|load_extension|sqlite_\w+|fts3_tokenizer)"
            r"\s*\(|\bcurrent_(?:time|date|timestamp)\b|"
            r"\b(?:date|time|datetime|julianday|unixepoch)\s*\(\s*\)|\bstrftime\s*\([^,()]*\)",
            re.I,
        ),
        "has not the same value at every read",
    ),
)
_OF_NOW = re.compile(r"'\s*(?:now|localtime|utc|subsec|subsecond)\s*'", re.I)
_JSON = re.compile(r"->|\bjson\w*\s*\(", re.I)
_WORD = r"[^\W\d]\w*"
_TABLE = re.compile(rf"\s*({_WORD})(?:\s+(?:as\s+)?({_WORD}))?\s*", re.I)
_JOIN = re.compile(r"\b(?:(?:left|inner|cross)\s+)?(?:outer\s+)?join\b", re.I)
_ON = re.compile(r"\b(on|using)\b", re.I)
_POSITION = re.compile(rf"(?:({_WORD})\.)?({_WORD})")
_NOT_ALIASES = frozenset(
    ("on", "using", "natural", "left", "right", "full", "inner", "cross", "where", "order", "group")
)
_EPOCH_US = {"epoch": "* 1000000.0", "epoch_ms": "* 1000.0", "epoch_us": ""}


class ShapeSource(NamedTuple):
    """The tables of a shape.

    Attributes:
        sql: as behind FROM, with each table in the main database: a temporary view hides a table of its name.
        tables: alias to table, in order.
        alias, key: the position's table, by its alias, and column.
    """

    sql: str
    tables: dict[str, str]
    alias: str
    key: str

    @property
    def position(self) -> str:
        return f"{quoted(self.alias)}.{quoted(self.key)}"


def source_of(shape: Shape) -> ShapeSource:
    """The tables that a shape reads.

    Raises:
        ConfigError: `from` or `position` has another form.
    """
    scrubbed = _scrubbed(shape, "from", shape.from_, may_quote=True)
    joins = list(_JOIN.finditer(scrubbed))
    ends = [one.start() for one in joins] + [len(scrubbed)]
    tables: dict[str, str] = {}
    sql = _add_table(shape, scrubbed, 0, ends[0], tables)
    for join, end in zip(joins, ends[1:], strict=True):
        on = _ON.search(scrubbed, join.end(), end)
        if on is None:
            raise shape.error("`from`: each JOIN needs ON or USING")
        condition = shape.from_[on.end() : end]
        check_expression(shape, "from", condition)
        sql += f" {join.group()} {_add_table(shape, scrubbed, join.end(), on.start(), tables)}"
        sql += f" {on.group()} {condition.strip()}"
    position = _POSITION.fullmatch(shape.position.strip())
    if position is None:
        raise shape.error(f"`position` must be `rowid` or a column, got {shape.position!r:.80}")
    by_lower = {alias.lower(): alias for alias in tables}
    alias = by_lower.get((position[1] or next(iter(tables))).lower())
    if alias is None or (len(tables) > 1 and position[1] is None and position[2].lower() != "rowid"):
        raise shape.error(f"`position`: with a join it must be alias.column, got {shape.position!r:.80}")
    return ShapeSource(sql, tables, alias, position[2])


def _add_table(shape: Shape, scrubbed: str, start: int, end: int, tables: dict[str, str]) -> str:
    found = _TABLE.fullmatch(scrubbed, start, end)
    if found is None or (found[2] or "").lower() in _NOT_ALIASES:
        raise shape.error(
            f"`from`: expected a table, perhaps with an alias, got {shape.from_[start:end].strip()!r:.80}"
        )
    # The names themselves: quoted ones are letters in `scrubbed`.
    table = _unquoted(shape.from_[slice(*found.span(1))])
    alias = table if found[2] is None else _unquoted(shape.from_[slice(*found.span(2))])
    if alias.lower() in map(str.lower, tables):
        raise shape.error(f"`from`: two tables are called {alias!r}")
    tables[alias] = table
    return f"main.{quoted(table)} AS {quoted(alias)}"


def columns_of(shape: Shape) -> dict[str, tuple[str, str]]:
    """Column of the view to (the shape's key, SQL expression), without `id`.

    Raises:
        ConfigError: a part of the shape is no plain expression.
    """
    columns = {
        "ts": ("ts", _ts_sql(shape)),
        "kind": ("kind", _kind_sql(shape)),
        "content": ("content", f"coalesce({_value_sql(shape, 'content', shape.content)}, '')"),
        "meta": ("meta", _meta_sql(shape)),
    }
    for name in sorted(shape.columns):
        columns[name] = (f"columns.{name}", _value_sql(shape, f"columns.{name}", shape.columns[name]))
    return columns


def select_sql(shape: Shape) -> str:
    """The SELECT behind the view `events`.

    Raises:
        ConfigError: as `source_of` and `columns_of`.
    """
    source = source_of(shape)
    columns = [f"{sql} AS {quoted(name)}" for name, (_, sql) in columns_of(shape).items()]
    return f"SELECT {source.position} AS id, {', '.join(columns)} FROM {source.sql}"


def check_expression(shape: Shape, key: str, text: str) -> None:
    """Raise `ConfigError` where the text is not one expression whose value depends on the row alone."""
    scrubbed = _scrubbed(shape, key, text)
    depth = 0
    for letter in scrubbed:
        depth += (letter == "(") - (letter == ")")
        if depth < 0 or (letter == "," and not depth):
            raise shape.error(f"`{key}`: {text!r:.80} is not one expression")
    if depth:
        raise shape.error(f"`{key}`: {text!r:.80} is not one expression")
    if _JSON.search(scrubbed) and "json_valid" not in scrubbed.lower():
        raise shape.error(
            f"`{key}`: {text!r:.80} would fail at the first malformed row; "
            'write { json = "column", path = "$.key" }, or guard it by json_valid'
        )


def _scrubbed(shape: Shape, key: str, text: str, *, may_quote: bool = False) -> str:
    """The text with a letter in place of all that is quoted.

    Raises:
        ConfigError: it holds what no expression over a row has.
    """
    for found in _QUOTED.finditer(text):
        if text[found.end() :].lstrip().startswith("(") and not may_quote:
            raise shape.error(f"`{key}`: write the function {found.group()[1:-1]} without quotes")
        if found.group()[0] == '"' and not text[: found.start()].endswith(".") and not may_quote:
            # SQLite takes it for a text where there is no such column.
            raise shape.error(
                f"`{key}`: write [{found.group()[1:-1]}] or alias.{found.group()} for a column of this name"
            )
    if _OF_NOW.search(text):
        raise shape.error(f"`{key}`: {text!r:.80} has not the same value at every read")
    scrubbed = _QUOTED.sub(lambda found: "q" * len(found.group()), text)
    for pattern, fault in _FORBIDDEN:
        if pattern.search(scrubbed):
            raise shape.error(f"`{key}`: {text!r:.80} {fault}")
    return scrubbed


def _value_sql(shape: Shape, key: str, value: Value) -> str:
    if isinstance(value, str):
        check_expression(shape, key, value)
        return f"({value})"
    text = _json_text(shape, key, value)
    if "path" not in value:
        return f"json({text})"
    # Whatever is outermost decides whether json_object nests it.
    return f"json_extract({text}, {_literal(value['path'])})"


def _json_text(shape: Shape, key: str, value: Mapping[str, str]) -> str:
    """The text of a JSON column; NULL where it is malformed."""
    text = _text_sql(shape, key, value["json"])
    return f"CASE WHEN json_valid({text}) THEN {text} END"


def _text_sql(shape: Shape, key: str, expression: str) -> str:
    check_expression(shape, key, expression)
    return f"CAST(({expression}) AS TEXT)"


def _kind_sql(shape: Shape) -> str:
    text = f"CAST({_value_sql(shape, 'kind', shape.kind)} AS TEXT) COLLATE BINARY"
    if not shape.kinds:
        return text
    cases = " ".join(f"WHEN {_literal(stored)} THEN {_literal(kind)}" for stored, kind in sorted(shape.kinds.items()))
    return f"CASE {text} {cases} ELSE {text} END"


def _ts_sql(shape: Shape) -> str:
    if not isinstance(shape.ts, Mapping) or "json" in shape.ts:
        return _value_sql(shape, "ts", shape.ts)
    ((unit, column),) = shape.ts.items()
    check_expression(shape, f"ts.{unit}", column)
    # In whole microseconds: the `%f` of strftime rounds in another way in other versions of SQLite.
    factor = _EPOCH_US[unit]
    us = f"CAST(round(({column}) {factor}) AS INTEGER)" if factor else f"CAST(({column}) AS INTEGER)"
    fraction = f"((({us}) % 1000000 + 1000000) % 1000000)"
    return (
        f"CASE WHEN typeof({column}) IN ('integer', 'real') THEN "
        f"strftime('%Y-%m-%dT%H:%M:%S', (({us}) - {fraction}) / 1000000, 'unixepoch') || "
        f"'.' || substr('00000' || {fraction}, -6) || 'Z' END"
    )


def _meta_sql(shape: Shape) -> str:
    meta: Mapping[str, Any] = shape.meta
    if not meta:
        return "'{}'"
    if "json" in meta:
        return _text_sql(shape, "meta.json", meta["json"])
    pairs, documents = [], []
    for name, value in sorted(meta["columns"].items()):
        key = f"meta.columns.{name}"
        sql = _value_sql(shape, key, value)
        if not isinstance(value, str):
            documents.append(_text_sql(shape, key, value["json"]))
        if isinstance(value, str) or "path" in value:
            # json_object fails at a BLOB, and in many versions it keeps 15 digits of a number.
            sql = (
                f"CASE typeof({sql}) WHEN 'blob' THEN CAST({sql} AS TEXT) WHEN 'real' THEN {_real(sql)} ELSE {sql} END"
            )
        pairs.append(f"{_literal(name)}, {sql}")
    made = f"json_object({', '.join(pairs)})"
    if not documents:
        return made
    # No JSON, so that the row goes to the quarantine.
    valid = " AND ".join(f"({one} IS NULL OR json_valid({one}))" for one in dict.fromkeys(documents))
    return f"CASE WHEN {valid} THEN {made} ELSE 'malformed' END"


def _real(sql: str) -> str:
    """A REAL as JSON, to the last bit; infinities as Python's `json` reads them.

    Where 15 digits do, they are the same in all versions of SQLite. In this range all of them read them exactly.
    """
    short, long = f"printf('%!.15g', {sql})", f"printf('%!.20e', {sql})"
    digits = (
        f"CASE WHEN abs({sql}) BETWEEN 1e-5 AND 1e15 AND CAST({short} AS REAL) = {sql} THEN {short} ELSE {long} END"
    )
    return f"json(CASE {sql} WHEN 9e999 THEN '9e999' WHEN -9e999 THEN '-9e999' ELSE {digits} END)"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _unquoted(name: str) -> str:
    opening = name[0]
    if opening == "[":
        return name[1:-1]
    return name[1:-1].replace(opening * 2, opening) if opening in "\"`'" else name


def quoted(name: str) -> str:
    """A name of SQL in quotes."""
    return '"' + name.replace('"', '""') + '"'
