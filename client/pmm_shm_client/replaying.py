"""Reads by a plain full replay, for the flags' `false` and for answers that no cache holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pmm_shm.folds.contract import Fold, view_of
from pmm_shm.folds.state import State
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import Position
from pmm_shm.projection.replay import Progress, replay


class ReplayReading:
    """Views of a full replay; the counterpart of `Reading`, which has those of the shared state."""

    mark = None

    def __init__(
        self, folds: Sequence[Fold], states: Mapping[str, State], position: Position, is_of_pmm2: bool = False
    ) -> None:
        self._folds = {fold.name: fold for fold in folds}
        self._states = states
        self.position = position
        self.as_of = position.as_of
        self.is_of_pmm2 = is_of_pmm2

    def view(self, name: str) -> Any:
        return view_of(self._folds[name], self._states[name], self.as_of)

    @property
    def folds(self) -> list[Fold]:
        return list(self._folds.values())

    def is_published(self, name: str) -> bool:
        return False

    def state(self, name: str) -> State:
        return self._states[name]


def replayed(
    connection: Connection, folds: Sequence[Fold], until_id: int | None = None, progress: Progress | None = None
) -> ReplayReading:
    """The folds at the head of the log, or at event `until_id`, from the first event on.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    position, states = replay(connection, folds, progress, until_id)
    return ReplayReading(folds, states, position, connection.schema.is_of_pmm2)
