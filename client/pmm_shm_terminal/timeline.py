"""The stages of an agent over the life of its ledger, as bands for a figure."""

from __future__ import annotations

from typing import NamedTuple

from pmm_shm.folds.history import FIRST_STAGE
from pmm_shm_client.results import History


class Band(NamedTuple):
    """One stage from event `first` to event `last`."""

    first: float
    last: float
    stage: str


def bands(history: History) -> list[Band]:
    """The stages over the life of the ledger: those of the points, and exact where the changes are kept."""
    first, last = ends(history)
    changes = [(first, FIRST_STAGE)]
    if len(history.stages) < history.stage_changes:
        exact = history.stages[0].event_id
        changes += [(float(point.first_id), point.stage) for point in history.points if point.last_id < exact]
    changes += [(float(change.event_id), change.stage) for change in history.stages]
    found: list[Band] = []
    for (start, stage), (end, _) in zip(changes, [*changes[1:], (last, "")], strict=True):
        if found and found[-1].stage == stage:
            found[-1] = found[-1]._replace(last=end)
        elif end > start:
            found.append(Band(start, end, stage))
    return found


def ends(history: History) -> tuple[float, float]:
    """The first and last id of the axis; never equal."""
    ids = [point.first_id for point in history.points[:1]]
    ids += [change.event_id for change in history.stages[:1]] + [change.event_id for change in history.names[:1]]
    first = float(min([*ids, history.as_of]))
    return first, max(float(history.as_of), first + 1.0)
