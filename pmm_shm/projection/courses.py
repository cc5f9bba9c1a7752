"""The numbers of a fold over the life of the log, sampled: for a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError
from pmm_shm.folds.contract import Fold, view_of
from pmm_shm.folds.describing import explainable
from pmm_shm.folds.view_parts import numbers
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import head_of
from pmm_shm.projection.cursor import Cursor, LogChanged, require_columns
from pmm_shm.projection.replay import Progress

SAMPLES_MAX = 600


class Courses(NamedTuple):
    """Key to (event id, number) of each change that a sample has seen, oldest first.

    Attributes:
        curves: by the keys of `Fold.explain_keys`, in their order at the end; None where the key was gone.
        first_id: the first event of the log.
        as_of: the newest.
        stride: how many event ids one sample spans; 1 where nothing is left out.
    """

    curves: dict[str, list[tuple[int, float | None]]]
    first_id: int
    as_of: int
    stride: int


def courses(connection: Connection, fold: Fold, progress: Progress | None = None) -> Courses:
    """Replay a fold, and take its numbers at up to `SAMPLES_MAX` positions, evenly over the event ids.

    Raises:
        FoldError: the ledger lacks a column that the fold asks for, or its `view` or a hook of it fails.
        LedgerBusyError: the log has changed behind what was read, again and again.
        LedgerError: the ledger cannot be read.
    """
    require_columns([fold], connection)
    for _ in range(limits.REPLAYS_MAX):
        try:
            return _sampled(connection, fold, progress)
        except LogChanged:
            continue
    raise LedgerBusyError(f"{connection.path}: it has changed {limits.REPLAYS_MAX} times while it was replayed")


def _sampled(connection: Connection, fold: Fold, progress: Progress | None) -> Courses:
    head_id, first_id = head_of(connection), _first_id(connection)
    stride = max(1, -(-(head_id - first_id + 1) // SAMPLES_MAX))
    cursor, curves = Cursor([fold], connection), dict[str, list[tuple[int, float | None]]]()
    found: dict[str, float] = {}
    for stop_id in [*range(first_id + stride - 1, head_id, stride), head_id]:
        before = cursor.position
        for _ in cursor.advance_to_head(stop_id):
            if progress is not None:
                progress(cursor.position)
        if cursor.position == before:
            continue
        state = cursor.states[fold.name]
        if not state.take_touched() and before.event_id is not None:
            continue
        found = numbers(explainable(fold, view_of(fold, state, cursor.position.as_of)))
        _note(curves, cursor.position.as_of, found)
    ordered: Sequence[str] = [*found, *(key for key in curves if key not in found)]
    return Courses({key: curves[key] for key in ordered}, first_id, cursor.position.as_of, stride)


def _note(curves: dict[str, list[tuple[int, float | None]]], event_id: int, found: dict[str, float]) -> None:
    for key in {**curves, **found}:
        curve = curves.setdefault(key, [])
        number = found.get(key)
        if not curve or curve[-1][1] != number:
            curve.append((event_id, number))


def _first_id(connection: Connection) -> int:
    with connection.lock:
        handle = connection.handle()
        rows = connection.retry(lambda: handle.execute("SELECT min(id) FROM events").fetchall())
    return int(rows[0][0] or 0)
