"""Tables that fit the terminal: long columns are shortened, and columns that matter less are left out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

COLUMN_MIN = 20
"""No column is made narrower than this, in characters, unless all of its cells are."""
_PADDING = 2


class FittedTable(Table):
    """A table that drops columns rather than squeezing them.

    Parameters:
        optional: names of columns, the first to drop first; then columns are dropped from the right.
    """

    def __init__(self, *names: str, optional: Sequence[str] = ()) -> None:
        super().__init__()
        self._optional = tuple(optional)
        for name in names:
            self.add_column(Text(name), overflow="fold")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [self._measure_column(console, options, column).maximum for column in self.columns]
        kept = list(range(len(widths)))
        while (
            len(kept) > 1 and _room([min(widths[number], COLUMN_MIN + _PADDING) for number in kept]) > options.max_width
        ):
            kept.remove(self._next_to_drop(kept))
        limit = _limit([widths[number] for number in kept], options.max_width)
        shown: Any = copy.copy(self)
        shown.columns = [_sized(self.columns[number], min(widths[number], limit)) for number in kept]
        yield from Table.__rich_console__(shown, console, options)
        if len(kept) < len(widths):
            dropped = ", ".join(str(self.columns[number].header) for number in range(len(widths)) if number not in kept)
            yield Text(f"no room for: {dropped}", "dim")

    def _next_to_drop(self, kept: Sequence[int]) -> int:
        names = {str(self.columns[number].header): number for number in kept}
        return next((names[name] for name in self._optional if name in names), kept[-1])


def _room(widths: Sequence[int]) -> int:
    """The width of a table with these columns, borders included."""
    return sum(widths) + len(widths) + 1


def _limit(widths: Sequence[int], room: int) -> int:
    """The largest width of a column with which the table fits: only the widest are shortened."""
    limit = max(widths)
    while limit > COLUMN_MIN + _PADDING and _room([min(width, limit) for width in widths]) > room:
        limit -= 1
    return limit


def _sized(column: Column, width: int) -> Column:
    made = copy.copy(column)
    made.width = width - _PADDING
    return made
