"""The lists of a whole log that PMM gets: they know their log, and load its events when somebody looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsIndex, cast

from pmm_shm_pmm.loaded import SHORT_IDS_MAX, Loaded, PmmEvent

_CHUNK = 256


class LogList(list[PmmEvent]):
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

    def copy(self) -> list[PmmEvent]:
        return self[:]

    __hash__ = None


class LazyList(LogList):
    """The same before its events are loaded. Its own storage holds a stranger: code in C that looks past the methods
    fails, and does not find a shorter log.
    """

    __slots__ = ()

    def __len__(self) -> int:
        return int(_within(self, lambda loaded: loaded.count(self._until_id)))

    def __iter__(self) -> Iterator[PmmEvent]:
        return list.__iter__(_whole(self))

    def __reversed__(self) -> Iterator[PmmEvent]:
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


def lazy_list(loaded: Loaded, until_id: int | None) -> list[PmmEvent]:
    """With the ledger's lock held: a list of the log, the live one (None) or up to an event, loaded when it is looked
    at.
    """
    events = LazyList()
    events._loaded, events._until_id, events._was_changed = loaded, until_id, False
    list.append(cast(list[Any], events), _STRANGER)
    if loaded.newest_id <= SHORT_IDS_MAX:
        # A short one costs little, and outlives its file.
        loaded.whole()
    if loaded.is_whole and until_id is None:
        _fill(events, loaded)
    return events


def own_log(events: LogList) -> tuple[Loaded, int] | None:
    """The log of such a list, and the id of its last event; None where somebody else has changed the list."""
    return None if events._was_changed else (events._loaded, _last_id(events))


class _Stranger:
    def __repr__(self) -> str:
        return "<not loaded>"


_STRANGER = _Stranger()
