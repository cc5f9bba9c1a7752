"""A fold is watched with these: a stored state, a witness, events that note what is read, another clock."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from pmm_shm.codec import pack
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event, MalformedMeta, RawRow, WideEvent, parse_columns, parse_content, parse_meta

StateEntries = dict[bytes, bytes]
"""The state of a fold as a store holds it."""


class StoredBase:
    """A stored state below an overlay, as LMDB has it: values as bytes, keys in order."""

    def __init__(self, entries: StateEntries) -> None:
        self.entries = entries

    def get(self, key: bytes, /) -> bytes | None:
        return self.entries.get(key)

    def scan(self, prefix: bytes, /) -> Iterator[tuple[bytes, bytes]]:
        return ((key, value) for key, value in sorted(self.entries.items()) if key.startswith(prefix))


class Witness(Fold):
    """Stands behind a fold and gets the same events: it sees whether the fold has changed them."""

    name = "pmm_shm.witness"
    version = 1

    def __init__(self, fold: Fold) -> None:
        self.kinds = fold.kinds
        self.metas: dict[int, bytes] = {}

    def apply(self, event: Event, state: State) -> None:
        self.metas[event.id] = pack(event.meta)

    def view(self, state: State) -> None:
        """Nothing."""


class DeclaredEvent(WideEvent):
    """An event that notes which of its columns are read without being declared."""

    asked: list[str]
    declared: Sequence[str]

    @classmethod
    def of(cls, row: RawRow, fold: Fold, places: Mapping[str, int]) -> DeclaredEvent | None:
        """The event of a row as the fold gets it; None where it gets none."""
        if not isinstance(row[2], str) or (fold.kinds is not None and row[2] not in fold.kinds):
            return None
        declared = ("content", "meta") if fold.kinds is None else fold.kinds[row[2]]
        content = parse_content(row[3])[0] if "content" in declared else ""
        event = cls(
            row[0],
            row[1] if isinstance(row[1], str) else "",
            row[2],
            content,
            meta_of(row) if "meta" in declared else {},
        )
        event.asked, event.declared = [], declared
        event.__dict__["columns"] = _Columns(parse_columns(row, places, fold.columns)[0], event.asked)
        return event

    def __getattribute__(self, name: str) -> Any:
        if name in ("content", "meta") and name not in object.__getattribute__(self, "__dict__").get("declared", name):
            self.asked.append(name)
        return super().__getattribute__(name)


class _Columns(dict[str, Any]):
    def __init__(self, values: Mapping[str, Any], asked: list[str]) -> None:
        super().__init__(values)
        self._asked = asked

    def __missing__(self, name: str) -> Any:
        self._asked.append(f"columns[{name!r}]")
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self._asked.append(f"columns[{name!r}]")
        return super().get(name, default)


@contextmanager
def other_circumstances(seed: int, later_s: float) -> Iterator[None]:
    """Other random numbers, and a clock that is ahead."""
    kept, clocks = random.getstate(), ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns")
    with mock.patch.multiple(time, **{name: _ahead(getattr(time, name), later_s, name) for name in clocks}):
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(kept)


def _ahead(clock: Any, later_s: float, name: str) -> Any:
    later = int(later_s * 1e9) if name.endswith("_ns") else later_s
    return lambda: clock() + later


def meta_of(row: RawRow) -> dict[str, Any]:
    try:
        return parse_meta(row[4])
    except MalformedMeta:
        return {}
