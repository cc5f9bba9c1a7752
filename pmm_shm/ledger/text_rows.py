"""Rows that stay columns until somebody asks for a row: a long tail is split, and decoded, column by column."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, overload

from pmm_shm.ledger.rows import RawRow


class TextRows(Sequence[RawRow]):
    """Rows whose columns, the id aside, are all text.

    Attributes:
        columns: ids, times, kinds, contents, metas.
    """

    __slots__ = ("columns",)

    def __init__(self, columns: list[list[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[RawRow]:
        return zip(*self.columns, strict=True)

    @overload
    def __getitem__(self, place: int) -> RawRow: ...
    @overload
    def __getitem__(self, place: slice) -> TextRows: ...
    def __getitem__(self, place: int | slice) -> RawRow | TextRows:
        found = [column[place] for column in self.columns]
        return TextRows(found) if isinstance(place, slice) else tuple(found)

    def merge(self, others: TextRows) -> None:
        """Put other rows into their places by the ids; cheap where they are near the end."""
        first = bisect_left(self.columns[0], min(others.columns[0]))
        rows = sorted([*self[first:], *others], key=itemgetter(0))
        for column, values in zip(self.columns, zip(*rows, strict=True), strict=True):
            column[first:] = values
