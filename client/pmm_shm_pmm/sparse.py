"""Short lists for `Runtime.handle_user`: of a long log, the events that it looks at.

A message costs the same whatever the age of the log, and a worker need not hold it. Which events these are is known of
the versions of `handle_user` whose sources are known, and of no others.

Invariant: a short list is given to nothing but the body of `handle_user`, and holds all that it looks at. Functions
that get one from there answer for the whole log, or are given that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import TYPE_CHECKING, Any, SupportsIndex

from pmm_shm.late import late_imports
from pmm_shm_pmm.loaded import Loaded, PmmEvent
from pmm_shm_pmm.log_list import lazy_list

if TYPE_CHECKING:
    from pmm_shm_pmm.ledgers import Ledger

EVENTS_MIN = 1_000
"""Shorter logs are given whole."""
_TAIL = 200
_NEWEST = ("autonomy_tick", "identity_adopt", "response", "model_switch", "scene_compact", "insight_ready")
_REFLECTIONS = 3
_MESSAGES = 6
_OTHERS = 8
_PAGE = 16
_LISTS_MAX = 8


class SparseList(list[PmmEvent]):
    """Some events of a log up to a position, ascending."""

    __slots__ = ("loaded", "position")
    loaded: Loaded
    position: int

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return list, (list(self),)

    __hash__ = None


class Turn:
    """One call of `handle_user`.

    Parameters:
        runtime: whose.
        code: of PMM's own function: only that gets short lists.
        start_id: the newest event when it began. All later ones are in each list.
    """

    def __init__(self, runtime: Any, code: CodeType, start_id: int) -> None:
        self._runtime = runtime
        self._code = code
        self._start_id = start_id
        self._made: list[tuple[Any, Any]] = []

    def gives_to(self, runtime: Any, caller: CodeType) -> bool:
        """Whether this is the code that may have a short list."""
        return runtime is self._runtime and caller is self._code

    def snapshot(self, full: Any, loaded: Loaded) -> Any:
        """A snapshot with a short list in place of the whole one; of a short log, the same snapshot."""
        if loaded.ledger.count() < EVENTS_MIN:
            return full
        for made_of, made in self._made:
            if made_of is full:
                return made
        with late_imports:
            from dataclasses import replace

        made = replace(full, events=_picked(loaded, full.last_event_id, self._start_id))
        self._made = [*self._made[1 - _LISTS_MAX :], (full, made)]
        return made

    def list_behind(self, events: list[PmmEvent]) -> SparseList | None:
        """The short list that this one is a copy of; None if there is none."""
        for _, made in self._made:
            own: SparseList = made.events
            if len(events) == len(own) and events[0] is own[0] and events[-1] is own[-1] and events == own:
                return own
        return None


class _Turns(threading.local):
    def __init__(self) -> None:
        self.current: Turn | None = None


_turns = _Turns()


@contextmanager
def turn(runtime: Any, function: Callable[..., Any], start_id: int) -> Iterator[None]:
    """A call of `handle_user` in this thread."""
    before, _turns.current = _turns.current, Turn(runtime, function.__code__, start_id)
    try:
        yield
    finally:
        _turns.current = before


def current_turn() -> Turn | None:
    """The call of `handle_user` in this thread."""
    return _turns.current


def sparse_list(events: Any) -> SparseList | None:
    """The short list that this is, or is a copy of; None if it is neither."""
    if type(events) is SparseList:
        return events
    current = _turns.current
    return current.list_behind(events) if current is not None and type(events) is list and events else None


def whole(events: Any) -> Any:
    """The whole list in place of a short one; anything else as it is."""
    short = sparse_list(events)
    if short is None:
        return events
    return lazy_list(short.loaded, short.position)


def _picked(loaded: Loaded, position: int, start_id: int) -> SparseList:
    ledger = loaded.ledger
    tail = _tail(loaded, _TAIL, position)
    picked = {event["id"]: event for event in ledger.within(loaded, lambda found: found.first_after(start_id, 1 << 30))}
    picked = {event_id: event for event_id, event in picked.items() if event_id <= position}
    picked |= {event["id"]: event for event in tail}
    for kind in _NEWEST:
        _add(picked, ledger.newest(kind, 1, before=position + 1))
        if kind == "insight_ready":
            _add(picked, _named(ledger, ledger.newest(kind, 1, before=position + 1), position))
    _add(picked, ledger.newest("reflection", _REFLECTIONS, before=position + 1))
    _add(picked, _newest_said(ledger, ("reflection",), _REFLECTIONS, position))
    _add(picked, _newest_said(ledger, ("user", "response"), _MESSAGES, position))
    size, others = _TAIL, _others(tail)
    while len(others) < _OTHERS and len(tail) == size:
        size *= 2
        tail = _tail(loaded, size, position)
        others = _others(tail)
    _add(picked, others)
    made = SparseList(picked[event_id] for event_id in sorted(picked))
    made.loaded, made.position = loaded, position
    return made


def _tail(loaded: Loaded, count: int, position: int) -> list[PmmEvent]:
    return loaded.ledger.within(loaded, lambda found: found.tail(count, position))


def _others(events: list[PmmEvent]) -> list[PmmEvent]:
    """The newest of these that are no notes about an embedding."""
    return [event for event in events if event["kind"] != "embedding_indexed"][-_OTHERS:]


def _add(picked: dict[int, PmmEvent], events: list[PmmEvent]) -> None:
    for event in events:
        picked.setdefault(event["id"], event)


def _named(ledger: Ledger, insights: list[PmmEvent], position: int) -> list[PmmEvent]:
    """The reflection that the newest insight is from."""
    found = []
    for insight in insights:
        meta = insight["meta"]
        source = meta.get("from_event") if isinstance(meta, dict) else None
        if isinstance(source, int) and source <= position:
            found.append(ledger.event(source))
    return [event for event in found if event is not None]


def _newest_said(ledger: Ledger, kinds: tuple[str, ...], count: int, position: int) -> list[PmmEvent]:
    """The newest events of these kinds with content that is not blank: of each kind as many as wanted of all."""
    found: list[PmmEvent] = []
    for kind in kinds:
        before, left = position + 1, count
        while left > 0:
            page = ledger.newest(kind, _PAGE, before=before)
            said = [event for event in page if str(event["content"] or "").strip()]
            found += said[:left]
            left -= len(said)
            if len(page) < _PAGE:
                break
            before = page[-1]["id"]
    return found
