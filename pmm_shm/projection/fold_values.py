"""Explains a value of any fold: which events changed it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Fold, patched_view, view_of
from pmm_shm.folds.describing import explained_value
from pmm_shm.folds.state import State, Touched
from pmm_shm.folds.view_parts import numbers
from pmm_shm.ledger.rows import Event
from pmm_shm.projection.explaining import Observation, Subject


class FoldValue(Subject):
    """A value of any fold, by its key in `Fold.explain_keys`: every event that changed it. The value is None before
    there is such a key, and behind its removal.
    """

    def __init__(self, fold: Fold, key: str) -> None:
        self.name = f"{fold.name} {key}"
        self.key = key
        self._fold = fold
        self._as_of = 0
        # Of the state behind the last event.
        self._state: State | None = None
        self._view: Any = None
        self._value: Any = None

    def make_fold(self) -> Fold:
        # The recorder changes it, and a named fold is shared.
        return copy.copy(self._fold)

    def concerns(self, event: Event) -> bool:
        self._as_of = event.id
        return True

    def value(self, state: State) -> Any:
        return self._looked_up(view_of(self._fold, state, self._as_of))

    def value_before(self, state: State) -> Any:
        if state is not self._state:
            self._state, self._view = state, view_of(self._fold, state, self._as_of)
            self._value = self._looked_up(self._view)
        return self._value

    def value_after(self, state: State, touched: Touched) -> Any:
        if touched:
            self._view = patched_view(self._fold, self._view, state, touched, self._as_of)
            self._value = self._looked_up(self._view)
        return self._value

    def _looked_up(self, view: Any) -> Any:
        return explained_value(self._fold, view, self.key)

    def is_listed(self, seen: Observation) -> bool:
        return not seen.is_same

    def effect(self, seen: Observation) -> tuple[str, Mapping[str, Any]]:
        before, after = (numbers({"": value}).get("") for value in (seen.before, seen.after))
        if after is not None and (before is not None or seen.before is None):
            return f"{after - (before or 0):+.6g}", {"change": after - (before or 0)}
        return "set" if seen.before is None else "removed" if seen.after is None else "changed", {}

    def final(self, view: Any, state: State) -> Any:
        return self._looked_up(view)
