"""The base of this package's folds, and patches of their views."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pmm_shm.folds.contract import BatchFold, Column
from pmm_shm.folds.state import State, Table
from pmm_shm.frozen import FrozenDict
from pmm_shm.ledger.rows import Event

Columns = tuple[Column, ...]
META: Columns = ("meta",)
BOTH: Columns = ("content", "meta")
Handler = Callable[[Event, State], None]
_V = TypeVar("_V")


class HandlerFold(BatchFold):
    """A fold with one function per kind."""

    version = 1
    checks_values = False
    shares_events = True
    handlers: ClassVar[Mapping[str, Handler]]

    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        handlers = self.handlers
        for event in events:
            handlers[event.kind](event, state)


def loaded(table: Table, make: Callable[[Any], _V]) -> Mapping[Any, _V]:
    return FrozenDict((key, make(row)) for key, row in table.items())


def patched_rows(
    mapping: Mapping[Any, _V], keys: Collection[Any], row_of: Callable[[Any], Any], make: Callable[[Any], _V]
) -> Mapping[Any, _V]:
    """The mapping with the rows of `keys` as they are now; `row_of` gives None for a key that is gone."""
    if not keys:
        return mapping
    patched = FrozenDict(mapping)
    for key in keys:
        row = row_of(key)
        if row is None:
            dict.pop(patched, key, None)
        else:
            dict.__setitem__(patched, key, make(row))
    return patched


def next_ordinal(state: State) -> int:
    ordinal: int = state.get("count", 0)
    state["count"] = ordinal + 1
    return ordinal
