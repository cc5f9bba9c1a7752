"""Statements with their parameters and results as texts, which is how PostgreSQL takes and gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult


class Statement(NamedTuple):
    """A statement with its parameters as `$1`, `$2`, and a name for its text."""

    name: str
    sql: str


def row_of(result: PGresult) -> tuple[Any, ...] | None:
    """The first row of a result, each value a text or None; None if there is no row."""
    if not result.ntuples:
        return None
    values = (result.get_value(0, column) for column in range(result.nfields))
    return tuple(None if value is None else value.decode() for value in values)


def array(values: Sequence[object]) -> str:
    """The parameter for an array of texts or numbers."""
    return "{" + ",".join("NULL" if value is None else _quoted(str(value)) for value in values) + "}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
