"""Decoding of many rows at once, column by column: a long replay's short cut around the engine's loop.

Invariant: the events are those of the engine's loop. Where one row of a batch is unusual, the loop has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, compress
from operator import not_
from typing import Any

from pmm_shm.folds.contract import Fold
from pmm_shm.ledger.rows import Event, RawRow
from pmm_shm.ledger.text_rows import TextRows

_ONLY_TEXT, _ONLY_OBJECTS = {str}, {dict}
_event_of = partial(tuple.__new__, Event)


class BulkDecoder:
    """Queues the events of usual rows: those with text in each column, and an object in `meta`.

    Parameters:
        takers: folds that share events and ask for no other columns, with their queues.
        left_out: kinds that the engine's loop takes, as it keeps the newest rows alone of them.
        parse: gives the object of a `meta`, or raises `ValueError`.
    """

    def __init__(
        self,
        takers: Sequence[tuple[Fold, list[Event]]],
        left_out: Sequence[str],
        parse: Callable[[Sequence[str]], list[Any]],
    ) -> None:
        self._takers = [(frozenset(fold.kinds or ()), queue) for fold, queue in takers]
        self._kinds = frozenset[str]().union(*(kinds for kinds, _ in self._takers)).difference(left_out)
        self._parse = parse

    def take(self, rows: Sequence[RawRow]) -> Sequence[RawRow]:
        """Queue what can be queued, and return the other rows."""
        columns = rows.columns if isinstance(rows, TextRows) else list(zip(*rows, strict=True))[:5]
        wanted = list(map(self._kinds.__contains__, columns[2]))
        rest: Sequence[RawRow] = ()
        if not all(wanted):
            rest = list(compress(rows, map(not_, wanted)))
            columns = [list(compress(column, wanted)) for column in columns]
        ids, times, kinds, contents, metas = columns
        if not ids:
            return rows
        if not isinstance(rows, TextRows) and set(map(type, chain(times, contents, metas))) != _ONLY_TEXT:
            return rows
        try:
            parsed = self._parse(metas)
        except (ValueError, RecursionError):
            return rows
        if set(map(type, parsed)) != _ONLY_OBJECTS:
            return rows
        events = list(map(_event_of, zip(ids, times, kinds, contents, parsed, strict=True)))
        for taken, queue in self._takers:
            queue += compress(events, map(taken.__contains__, kinds))
        return rest
