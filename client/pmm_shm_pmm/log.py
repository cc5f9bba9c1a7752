"""PMM's EventLog on the shared cache: linear appends, one live list, listeners that hear other processes too.

The subclass goes on using PMM's constructor, and whatever it has besides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from pmm_shm_pmm import opening
from pmm_shm_pmm.fallback import Counts, Fallback
from pmm_shm_pmm.loaded import PmmEvent
from pmm_shm_pmm.shared_log import SharedLog, clocks_of, log_of, shared_of

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

_LOOKED_UP = ("read_after_ts", "query", "get_event")
__all__ = ["SharedLog", "install", "log_of", "shared_eventlog"]


def _attribute(name: str, shared: Callable[[Any], SharedLog]) -> property:
    return property(lambda log: shared(log).get(name), lambda log, value: shared(log).set(name, value))


def shared_eventlog(original: Any, counts: Counts | None = None, *, is_lazy: bool = False) -> type:
    """The subclass of PMM's `EventLog` that takes its place.

    Parameters:
        counts: of appends and reads.
        is_lazy: `read_all` returns a list that loads when it is looked at.
    """

    counts = counts or Counts()
    clocks = clocks_of(original)

    def shared(log: Any) -> SharedLog:
        return shared_of(log, original, counts, clocks, is_lazy=is_lazy)

    def integer(value: Any) -> int:
        if type(value) is not int:
            raise Fallback("an unusual argument")
        return value

    def positive(value: Any) -> int:
        if integer(value) < 1:
            raise Fallback("an unusual argument")
        return cast(int, value)

    def looked_up(plain: Callable[..., Any]) -> Callable[..., Any]:
        # PMM reads single events from the file, and so sees those of others anyway.
        @functools.wraps(plain)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            shared(self).read(lambda ledger: None, lambda: None)
            return plain(self, *args, **kwargs)

        return method

    class EventLog(original):  # type: ignore[misc]
        _append_listeners = _attribute("_append_listeners", shared)
        _events_cache = _attribute("_events_cache", shared)
        _cache_last_id = _attribute("_cache_last_id", shared)

        @property
        def _conn(self) -> Any:
            return shared(self).connection.get(self)

        @_conn.setter
        def _conn(self, value: Any) -> None:
            self.__dict__["_conn"] = value

        @functools.wraps(original.append)
        def append(self, kind: Any, content: Any, meta: Any = None) -> int:
            return shared(self).append(kind, content, meta)

        append.__pmm_shm__ = True  # type: ignore[attr-defined]

        @functools.wraps(original.register_append_listener)
        def register_append_listener(self, *args: Any, **kwargs: Any) -> Any:
            plain = original.register_append_listener
            return shared(self).register(lambda: plain(self, *args, **kwargs))

        @functools.wraps(original.read_all)
        def read_all(self) -> list[PmmEvent]:
            own = shared(self)
            return cast(list[PmmEvent], own.read(own.live, lambda: original.read_all(self)))

        read_all.__pmm_shm__ = True  # type: ignore[attr-defined]

        @functools.wraps(original.read_tail)
        def read_tail(self, *, limit: Any) -> list[PmmEvent]:
            return cast(
                list[PmmEvent],
                shared(self).read(
                    lambda ledger: ledger.tail(positive(limit)), lambda: original.read_tail(self, limit=limit)
                ),
            )

        @functools.wraps(original.read_after_id)
        def read_after_id(self, *, after_id: Any, limit: Any) -> list[PmmEvent]:
            return cast(
                list[PmmEvent],
                shared(self).read(
                    lambda ledger: ledger.first_after(integer(after_id), positive(limit)),
                    lambda: original.read_after_id(self, after_id=after_id, limit=limit),
                ),
            )

    for name in _LOOKED_UP:
        if plain := getattr(original, name, None):
            setattr(EventLog, name, looked_up(plain))
    return EventLog


def install(patcher: Patcher, module: ModuleType) -> None:
    """Replace `EventLog` in the module that has just been executed."""
    counts = patcher.counts_of(f"{module.__name__}:EventLog")
    is_lazy = patcher.allows(module, "EventLog.read_all")
    settings = patcher.settings
    opening.cache_options = {"starts_daemon": settings.starts_daemon, "parts": settings.parts}
    patcher.replace_class(module, "EventLog", lambda original: shared_eventlog(original, counts, is_lazy=is_lazy))
