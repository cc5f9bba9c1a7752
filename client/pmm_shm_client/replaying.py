"""Reads by a plain full replay: what the flags' `false` asks for, and what no cache can answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State
from pmm_shm.projection.replay import replay
from pmm_shm_client.reader import Reader


class ReplayReading:
    """Views of a full replay; what `Reading` is for the shared state."""

    def __init__(self, folds: list[Fold], states: Mapping[str, State], as_of: int) -> None:
        self._folds = {fold.name: fold for fold in folds}
        self._states = states
        self.as_of = as_of

    def view(self, name: str) -> Any:
        return self._folds[name].view(self._states[name])

    def state(self, name: str) -> State:
        return self._states[name]


def replayed(reader: Reader, folds: list[Fold], until_id: int | None = None) -> ReplayReading:
    """The folds at the head of the log, or at event `until_id`, from the first event on.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    reader.with_ledger(reader.freshness.take)
    position, states = replay(reader.connection, folds, until_id=until_id)
    return ReplayReading(folds, states, position.as_of)
