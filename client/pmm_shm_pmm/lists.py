"""Lists that are the log up to some event: recognised, so that a fold over one is a look-up.

PMM's folds get plain lists. A list is the log if it has the very dicts of the live list, from the first one on, in the
same places. That is compared once for each list and then remembered; the live list and lists made here know it.

Invariant: in doubt a list is not the log.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from pmm_shm.late import late_imports
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.loaded import Loaded, PmmEvent, whole_logs
from pmm_shm_pmm.log_list import LazyList, LogList, own_log
from pmm_shm_pmm.sparse import sparse_list

if TYPE_CHECKING:
    from pmm_shm_client.frame import Frame
    from pmm_shm_pmm.ledgers import Ledger

NOT_THE_LOG = "a list that is not the log"
REPLACED = "a log that was replaced"
NO_FRAME = "no frame at this position"
_KNOWN_MAX = 4


class _KnownList(NamedTuple):
    """A list that is the log up to its last event; kept, so that no other list gets its `id`."""

    events: list[PmmEvent]
    length: int
    last: PmmEvent
    loaded: weakref.ref[Loaded]


_known: dict[int, _KnownList] = {}
"""`id` of a list to what it is."""


def plain_list(loaded: Loaded, until_id: int | None) -> list[PmmEvent]:
    """With the ledger's lock held: a list of the log, the live one (None) or up to an event, loaded now."""
    whole = loaded.whole()
    if until_id is None:
        return whole
    made = whole[: loaded.count(until_id)]
    _remember(made, loaded)
    return made


def recognised(events: Iterable[PmmEvent]) -> tuple[Ledger | None, int]:
    """The ledger and the position (the id of its last event) of a list that is the log; (None, 0) for an empty one.

    Raises:
        Fallback: it is not the log, or its log is gone.
    """
    loaded, position = _recognised(events)
    if loaded is None:
        return None, 0
    ledger = loaded.ledger
    if ledger.loaded is not loaded:
        raise Fallback(REPLACED)
    return ledger, position


def frame_of(events: Iterable[PmmEvent]) -> Frame:
    """The answers at the position of a list that is the log.

    Raises:
        Fallback: it is not the log, or nobody knows the answers there.
    """
    loaded, position = _behind(events)
    if loaded is None:
        return frame_of_nothing()
    ledger = loaded.ledger
    ledger.sync()
    if ledger.loaded is not loaded:
        raise Fallback(REPLACED)
    if events is ledger.loaded.live:
        return ledger.frame()
    frame = ledger.frame_at(position)
    if frame.as_of != position:
        raise Fallback(NO_FRAME)
    return frame


def log_behind(events: Iterable[PmmEvent]) -> tuple[Ledger | None, int]:
    """As `recognised`, also for the short lists that `handle_user` gets: a list need not have all events itself.

    Raises:
        Fallback: it is neither.
    """
    loaded, position = _behind(events)
    if loaded is None:
        return None, 0
    if loaded.ledger.loaded is not loaded:
        raise Fallback(REPLACED)
    return loaded.ledger, position


def is_whole(events: Any) -> bool:
    """Whether a list has all events itself that it stands for."""
    return sparse_list(events) is None


def _behind(events: Any) -> tuple[Loaded | None, int]:
    short = sparse_list(events)
    return _recognised(events) if short is None else (short.loaded, short.position)


def _recognised(events: Any) -> tuple[Loaded | None, int]:
    kind = type(events)
    if kind is LogList or kind is LazyList:
        return _of_own(events)
    if kind is not list:
        raise Fallback(NOT_THE_LOG)
    known = _known.get(id(events))
    if known is not None:
        loaded = known.loaded()
        if loaded is not None and len(events) == known.length and events[-1] is known.last:
            return loaded, known.last["id"]
        _known.pop(id(events), None)
    if not events:
        return None, 0
    return _compared(events)


def _of_own(events: LogList) -> tuple[Loaded | None, int]:
    own = own_log(events)
    if own is None:
        return _compared(events) if len(events) else (None, 0)
    return own if own[0].last_row is not None else (None, 0)


def _compared(events: list[PmmEvent]) -> tuple[Loaded, int]:
    length = len(events)
    loaded = whole_logs.get(id(events[0]))
    if loaded is None:
        raise Fallback(NOT_THE_LOG)
    whole = loaded.events
    if length <= len(whole) and events[-1] is whole[length - 1]:
        if events is whole:
            # It is longer than what was loaded, or shorter, where somebody else changed it.
            if length == loaded.length:
                return loaded, loaded.newest_id
        # Identities first, so it compares no values where the dicts are the very ones.
        elif events == (whole if length == len(whole) else whole[:length]):
            _remember(events, loaded)
            return loaded, events[-1]["id"]
    raise Fallback(NOT_THE_LOG)


def _remember(events: list[PmmEvent], loaded: Loaded) -> None:
    if events:
        while len(_known) >= _KNOWN_MAX:
            _known.pop(next(iter(_known), 0), None)
        gone = weakref.ref(loaded, _forget)
        _known[id(events)] = _KnownList(events, len(events), events[-1], gone)


def _forget(gone: weakref.ref[Loaded]) -> None:
    for number, known in list(_known.items()):
        if known.loaded is gone:
            _known.pop(number, None)


def frame_of_nothing() -> Frame:
    """The answers of an empty log."""
    global _nothing
    if _nothing is None:
        with late_imports:
            from pmm_shm.folds.registry import built_in_folds
            from pmm_shm.folds.state import State
            from pmm_shm.ledger.tail import START
            from pmm_shm_client.frame import REPLAYS_OF_A_COPY, Frame, Warnings
        views = {fold.name: fold.view(State()) for fold in built_in_folds()}
        _nothing = Frame(REPLAYS_OF_A_COPY, views, Warnings([], 0), START)
    return _nothing


_nothing: Frame | None = None
