"""Answers as of earlier events: replays in memory, which later ones continue.

States of a few positions are kept, at growing distances behind each that was asked for. So the next event costs one
event, one shortly before costs few hundred, and only a first call, or a long way back, folds the log from its start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError
from pmm_shm.ledger.rows import ID_MIN
from pmm_shm.projection.cursor import LogChanged, ReadModel
from pmm_shm.projection.replay import Progress
from pmm_shm_client.reader import Reader, Reading

_T = TypeVar("_T")


class PastReads:
    """Reads as of earlier events, through one `Reader`. Thread-safe: each call moves a copy of what is kept."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        # The least lately used one first; none of them is moved any more.
        self._kept: dict[int, ReadModel] = {}

    def at(self, event_id: int, make: Callable[[Reading], _T], progress: Progress | None = None) -> _T:
        """The result of `make` for the log that ends with this event. `make` runs with the reader's lock held.

        Parameters:
            progress: called with the position of the replay; an exception out of it ends the call.

        Raises:
            LedgerBusyError: the log has changed behind what was read, again and again.
            LedgerError: the ledger cannot be read.
        """
        self._reader.with_ledger(self._reader.freshness.take)
        read_model = self._read_model_at(event_id, progress)
        return self._reader.with_ledger(lambda: self._made(read_model, make))

    def _made(self, read_model: ReadModel, make: Callable[[Reading], _T]) -> _T:
        result = make(Reading(dict.fromkeys(read_model.folds, read_model)))
        # Only now: with its views, which later ones patch.
        self._keep(read_model)
        return result

    def _read_model_at(self, event_id: int, progress: Progress | None) -> ReadModel:
        for _ in range(limits.REPLAYS_MAX):
            try:
                return self._moved(event_id, progress)
            except LogChanged:
                self._kept.clear()
        raise LedgerBusyError(f"{self._reader.connection.path}: changed again and again while it was replayed")

    def _moved(self, event_id: int, progress: Progress | None) -> ReadModel:
        read_model = self._nearest(event_id)
        for distance in limits.PAST_DISTANCES:
            reached, stop_id = read_model.position.event_id, max(ID_MIN, event_id - distance)
            # Of a state at the event itself, the last round checks that the log still continues it.
            if not distance or reached is None or reached < stop_id:
                for _ in read_model.advance_to_head(stop_id):
                    if progress is not None:
                        progress(read_model.position)
            if distance and read_model.position.event_id != reached:
                self._keep(read_model.copy())
        return read_model

    def _nearest(self, event_id: int) -> ReadModel:
        """A copy of the state nearest to the event, at or before it."""
        folds = list(self._reader.folds.values())
        nearest = max((one for one in list(self._kept) if one <= event_id), default=None)
        kept = None if nearest is None else self._kept.pop(nearest, None)
        if kept is None or list(kept.folds.values()) != folds:
            return ReadModel(folds, None, self._reader.connection)
        self._keep(kept)
        return kept.copy()

    def _keep(self, read_model: ReadModel) -> None:
        position = read_model.position
        if position.event_id is None:
            return
        self._kept.pop(position.event_id, None)
        self._kept[position.event_id] = read_model
        while len(self._kept) > limits.PAST_STATES_MAX:
            self._kept.pop(self._easiest(position.event_id), None)

    def _easiest(self, newest: int) -> int:
        """The kept state that costs the fewest events to make again, the least lately used of several; not `newest`.

        By use alone, a walk along the events would drop the states behind it, and its first step back would fold the
        log from the start.
        """
        ids = list(self._kept)
        behind = {one: max((other for other in ids if other < one), default=ID_MIN) for one in ids}
        return min((one for one in ids if one != newest), key=lambda one: one - behind[one], default=newest)
