"""Lists that are the log up to some event: recognised, so that a fold over one is a look-up.

PMM's folds get plain lists. A list is the log if it has the very dicts of the live list, from the first one on, in the
same places. That is compared once for each list and then remembered; the live list and lists made here know it.

Invariant: in doubt a list is not the log.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, cast

from pmm_shm.late import late_imports
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.loaded import SHORT_IDS_MAX, EventDict, Loaded, whole_logs
from pmm_shm_pmm.sparse import sparse_list

if TYPE_CHECKING:
    from pmm_shm_client.frame import Frame
    from pmm_shm_pmm.ledgers import Ledger

NOT_THE_LOG = "a list that is not the log"
REPLACED = "a log that was replaced"
NO_FRAME = "no frame at this position"
_KNOWN_MAX = 4
_CHUNK = 256


class LogList(list[EventDict]):
    """A whole list of a log's events, which knows its log; it grows only where it is the live list.

    A change by anybody else makes it a list like any other.
    """

    __slots__ = ("_loaded", "_until_id", "_was_changed")
    _loaded: Loaded
    _until_id: int | None
    _was_changed: bool

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return list, (list(self),)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def copy(self) -> list[EventDict]:
        return self[:]

    __hash__ = None


class LazyList(LogList):
    """The same before its events are loaded. Its own storage holds a stranger: code in C that looks past the methods
    fails, and does not find a shorter log.
    """

    __slots__ = ()

    def __len__(self) -> int:
        return int(_within(self, lambda loaded: loaded.count(self._until_id)))

    def __iter__(self) -> Iterator[EventDict]:
        return list.__iter__(_whole(self))

    def __reversed__(self) -> Iterator[EventDict]:
        # As list's own: events appended later are not in it.
        before_id = _last_id(self)
        size = _CHUNK
        while part := _within(self, lambda loaded, end=before_id, n=size: loaded.tail(n, end)):
            yield from reversed(part)
            before_id, size = part[0]["id"] - 1, size * 2

    def __getitem__(self, key: Any) -> Any:
        if type(key) is int and key < 0:
            part = _within(self, lambda loaded: loaded.tail(-key, self._until_id))
            if len(part) == -key:
                return part[0]
        elif type(key) is slice and key.stop is None and key.step in (None, 1):
            start = key.start
            if type(start) is int and start < 0:
                return _within(self, lambda loaded: loaded.tail(-start, self._until_id))
        return list.__getitem__(_whole(self), key)


def _last_id(events: LogList) -> int:
    return events._loaded.newest_id if events._until_id is None else events._until_id


def _within(events: LogList, look: Any) -> Any:
    return events._loaded.ledger.within(events._loaded, look)


def _whole(events: LogList) -> LogList:
    """The same list, loaded. Where its log is gone (the ledger was replaced), it becomes that of the new one."""
    if type(events) is LazyList:
        _within(events, lambda loaded: _fill(events, loaded))
    return events


def _fill(events: Any, loaded: Loaded) -> None:
    """With the ledger's lock held: give the list its events."""
    if type(events) is not LazyList:
        return
    whole = loaded.whole()
    is_live = events._until_id is None
    if loaded is not events._loaded:
        events._was_changed, is_live = True, False
    end = len(whole) if events._until_id is None else loaded.count(events._until_id)
    # In one step, as other threads see it.
    list.__init__(events, whole if end == len(whole) else whole[:end])
    if is_live:
        loaded.events = events
    events.__class__ = LogList  # type: ignore[assignment]


def _loading(name: str) -> Any:
    plain = getattr(list, name)

    def method(self: LogList, *arguments: Any) -> Any:
        return plain(_whole(self), *(_whole(one) if isinstance(one, LazyList) else one for one in arguments))

    method.__name__ = name
    return method


def _changing(name: str) -> Any:
    plain = getattr(list, name)

    def method(self: LogList, *arguments: Any, **options: Any) -> Any:
        _whole(self)._was_changed = True
        return plain(self, *arguments, **options)

    method.__name__ = name
    return method


for _name in (
    "__contains__",
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__add__",
    "__mul__",
    "__rmul__",
):
    setattr(LazyList, _name, _loading(_name))
for _name in ("__repr__", "count", "index"):
    setattr(LazyList, _name, _loading(_name))
LazyList.__radd__ = lambda self, other: other + list(self)  # type: ignore[attr-defined]
for _name in ("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse"):
    setattr(LogList, _name, _changing(_name))
for _name in ("__setitem__", "__delitem__", "__iadd__", "__imul__"):
    setattr(LogList, _name, _changing(_name))


def log_list(loaded: Loaded, until_id: int | None, *, is_lazy: bool) -> list[EventDict]:
    """With the ledger's lock held: a list of the log, the live one (None) or up to an event.

    Parameters:
        is_lazy: load when it is looked at; otherwise a plain list, loaded now.
    """
    if not is_lazy:
        whole = loaded.whole()
        if until_id is None:
            return whole
        made = whole[: loaded.count(until_id)]
        _remember(made, loaded)
        return made
    events = LazyList()
    events._loaded, events._until_id, events._was_changed = loaded, until_id, False
    list.append(cast(list[Any], events), _STRANGER)
    if loaded.newest_id <= SHORT_IDS_MAX:
        # A short one costs little, and outlives its file.
        loaded.whole()
    if loaded.is_whole and until_id is None:
        _fill(events, loaded)
    return events


class _Stranger:
    def __repr__(self) -> str:
        return "<not loaded>"


_STRANGER = _Stranger()

# Recognition.


class _Known(NamedTuple):
    """A list that is the log up to its last event; kept, so that no other list gets its `id`."""

    events: list[EventDict]
    length: int
    last: EventDict
    loaded: weakref.ref[Loaded]


_known: dict[int, _Known] = {}
"""`id` of a list to what it is."""


def recognised(events: Iterable[EventDict]) -> tuple[Ledger | None, int]:
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


def frame_of(events: Iterable[EventDict]) -> Frame:
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


def log_behind(events: Iterable[EventDict]) -> tuple[Ledger | None, int]:
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
    if events._was_changed:
        return _compared(events) if len(events) else (None, 0)
    last_id = _last_id(events)
    return (events._loaded, last_id) if events._loaded.last_row is not None else (None, 0)


def _compared(events: list[EventDict]) -> tuple[Loaded, int]:
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


def _remember(events: list[EventDict], loaded: Loaded) -> None:
    if events:
        while len(_known) >= _KNOWN_MAX:
            _known.pop(next(iter(_known), 0), None)
        gone = weakref.ref(loaded, _forget)
        _known[id(events)] = _Known(events, len(events), events[-1], gone)


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
            from pmm_shm_client.frame import _OF_A_COPY, Frame, Warnings
        views = {fold.name: fold.view(State()) for fold in built_in_folds()}
        _nothing = Frame(_OF_A_COPY, views, Warnings([], 0), START)
    return _nothing


_nothing: Frame | None = None
