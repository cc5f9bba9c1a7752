"""PMM's EventLog on the shared cache: linear appends, one live list, listeners that hear other processes too.

The subclass goes on using PMM's constructor, and whatever it has besides. Its appends go through the writer of the
library. What that refuses and PMM stores is stored by PMM's own `append`, within a transaction that holds the write
lock, so that the chain stays linear.

Invariant: an event is appended once, whichever way it goes.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from pmm_shm.errors import HeadMovedError, PmmShmError
from pmm_shm_pmm import ledgers
from pmm_shm_pmm.delivery import Delivery
from pmm_shm_pmm.fallback import Counts, Fallback
from pmm_shm_pmm.ledgers import Ledger, ledger_at
from pmm_shm_pmm.lists import log_list
from pmm_shm_pmm.loaded import EventDict

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache
    from pmm_shm_client.frame import Frame
    from pmm_shm_pmm.patching import Patcher

STAND_IN = "a stand-in for EventLog"
NO_FILE = "no file"
CLOSED = "closed"
IN_TRANSACTION = "within a transaction"
_ATTEMPTS_MAX = 100
_FAILURES = (PmmShmError, OSError, sqlite3.Error, RuntimeError)


class SharedLog:
    """One log of PMM, and the ledger behind it.

    Parameters:
        eventlog: PMM's object; it owns this one.
        original: PMM's class.
        is_lazy: the live list loads when it is looked at.
    """

    def __init__(self, eventlog: Any, original: Any, *, is_lazy: bool) -> None:
        self._eventlog = weakref.ref(eventlog)
        self._original = original
        self._is_lazy = is_lazy
        self._ledger: Ledger | None = None
        self._never: str | None = None
        # Threads within PMM's own `append`, which shall neither call listeners nor touch the live list.
        self._inside: set[int] = set()
        self._closed_for_fork = False
        self._opening = threading.Lock()
        self._path = ""
        self.delivery = Delivery()
        self.plain: dict[str, Any] = {}
        _shared_logs.add(self)

    # For the replacements of PMM's functions.

    @property
    def ledger(self) -> Ledger:
        """Raises `Fallback` where there is none that could be shared, and where PMM's connection was closed."""
        log = self._eventlog()
        try:
            log._conn.in_transaction  # noqa: B018
        except (sqlite3.ProgrammingError, AttributeError):
            raise Fallback(CLOSED) from None
        return self._ledger or self._open(log)

    @property
    def path(self) -> str:
        """The real path of the ledger."""
        return self.ledger.path

    @property
    def cache(self) -> Cache:
        """As `Ledger.cache`."""
        return self.ledger.cache

    def sync(self) -> int:
        """As `Ledger.sync`."""
        return self.ledger.sync()

    def frame(self) -> Frame:
        """As `Ledger.frame`."""
        return self.ledger.frame()

    def fold(self, name: str) -> Any:
        """As `Ledger.fold`."""
        return self.ledger.fold(name)

    def newest(self, kind: str, n: int = 1, before: int | None = None) -> list[EventDict]:
        """As `Ledger.newest`."""
        return self.ledger.newest(kind, n, before)

    def events_of(
        self, kind: str, after: int | None = None, newest_first: bool = False, limit: int | None = None
    ) -> list[EventDict]:
        """As `Ledger.events_of`."""
        return self.ledger.events_of(kind, after, None, newest_first, limit)

    def event(self, event_id: int) -> EventDict | None:
        """As `Ledger.event`."""
        return self.ledger.event(event_id)

    def append_checked(self, kind: str, content: str, meta: dict[str, Any], still: Callable[[], bool]) -> int | None:
        """Append an event if `still()` holds for the log it is appended to; returns its id, or None.

        `still` looks at the newest state by the methods here, and may be called several times. Where the class of the
        log has an `append` of its own, that is called, and an event of another process may come in between.

        Raises:
            Fallback: nobody could append for a while; nothing was appended.
        """
        log = self._eventlog()
        if not is_own_append(log):
            return int(log.append(kind=kind, content=content, meta=meta)) if still() else None
        for _ in range(_ATTEMPTS_MAX):
            head = self.sync()
            if not still():
                return None
            try:
                event_id = self._write(log, kind, content, meta, head)
            except HeadMovedError:
                continue
            except (Fallback, *_FAILURES):
                # The library cannot: as without it.
                return self.append(kind, content, meta) if still() else None
            counts.answered += 1
            self._heard(event_id)
            return event_id
        raise Fallback("others appended at each attempt")

    # For the methods of the subclass.

    def append(self, kind: Any, content: Any, meta: Any) -> int:
        """Append an event, and let the listeners hear it. Raises what PMM's own raises."""
        log = self._eventlog()
        try:
            event_id = self._write(log, kind, content, meta)
            counts.answered += 1
        except Fallback as fallback:
            event_id = self._append_plainly(log, fallback.reason, kind, content, meta)
        except _FAILURES as error:
            event_id = self._append_plainly(log, f"error: {type(error).__name__}", kind, content, meta)
        self._heard(event_id)
        return event_id

    def read(self, look: Callable[[Ledger], Any], plainly: Callable[[], Any]) -> Any:
        """What `look` finds, after the listeners have heard of foreign events; `plainly` where that fails."""
        try:
            ledger = self.ledger
            ledger.sync()
            self.delivery.deliver(ledger.loaded)
            return look(ledger)
        except Fallback as fallback:
            counts.fallbacks[fallback.reason] += 1
        except _FAILURES as error:
            counts.fallbacks[f"error: {type(error).__name__}"] += 1
        # What PMM has kept from an earlier failure may be old.
        if self._never is None:
            self.plain["_events_cache"] = None
        return plainly()

    def live(self, ledger: Ledger) -> list[EventDict]:
        """The live list."""
        is_lazy = self._is_lazy
        return ledger.live(lambda loaded: log_list(loaded, None, is_lazy=is_lazy))

    def register(self, add: Callable[[], Any]) -> Any:
        """Register listeners by PMM's own method; they hear nothing older."""
        try:
            ledger = self.ledger
            ledger.sync()
        except (Fallback, *_FAILURES):
            return add()
        answers: list[Any] = []
        self.delivery.register(lambda: answers.append(add()), ledger.loaded)
        return answers[0]

    def get(self, name: str) -> Any:
        """The value of `_events_cache`, `_cache_last_id` or `_append_listeners`, as whoever asks shall see it."""
        if threading.get_ident() in self._inside:
            return [] if name == "_append_listeners" else self.plain.get(name) if name == "_cache_last_id" else None
        if name == "_append_listeners":
            return self.delivery.listeners
        loaded = None if self._ledger is None else self._ledger.loaded
        if loaded is None or loaded.live is None:
            return self.plain.get(name)
        return loaded.live if name == "_events_cache" else loaded.newest_id

    def set(self, name: str, value: Any) -> None:
        """Set such an attribute; None for `_events_cache` lets the log be read anew."""
        if threading.get_ident() in self._inside:
            return
        if name == "_append_listeners":
            self.delivery.listeners = value
            return
        self.plain[name] = value
        if name == "_events_cache" and value is None and self._ledger is not None:
            self._ledger.forget()

    def _open(self, log: Any) -> Ledger:
        if self._never is None:
            with log._lock:
                rows = log._conn.execute("PRAGMA database_list").fetchall()
            path = next((row[2] for row in rows if row[1] == "main"), "")
            if path:
                self._path = path
                ledger = ledger_at(path)
                ledger.spare = self._eventlog
                self._ledger = ledger
                return ledger
            self._never = NO_FILE
        raise Fallback(self._never)

    def _write(self, log: Any, kind: Any, content: Any, meta: Any, expected_head: int | None = None) -> int:
        ledger = self.ledger
        if log._conn.in_transaction:
            raise Fallback(IN_TRANSACTION)
        meta = meta or {}
        if not isinstance(meta, dict):
            raise Fallback("an event that only PMM stores")
        return ledger.cache.append(kind, content, meta, expected_head=expected_head)

    def _append_plainly(self, log: Any, reason: str, kind: Any, content: Any, meta: Any) -> int:
        counts.fallbacks[reason] += 1
        append = self._original.append
        if reason in (NO_FILE, CLOSED):
            return cast(int, append(log, kind, content, meta))
        with log._lock, self._within_original():
            began = _began(log._conn)
            try:
                event_id = append(log, kind, content, meta)
            except BaseException:
                if began and log._conn.in_transaction:
                    log._conn.rollback()
                raise
            if began and log._conn.in_transaction:
                log._conn.commit()
        return cast(int, event_id)

    @contextmanager
    def _within_original(self) -> Iterator[None]:
        me = threading.get_ident()
        if me in self._inside:
            yield
            return
        self._inside.add(me)
        try:
            yield
        finally:
            self._inside.discard(me)

    def _heard(self, event_id: int) -> None:
        """Take in the own event and those before, and let the listeners hear them."""
        ledger = self._ledger
        if ledger is None or self._never is not None:
            return
        try:
            ledger.sync()
        except _FAILURES as error:
            # It is appended: the next look takes it in.
            counts.fallbacks[f"error: {type(error).__name__}"] += 1
        else:
            self.delivery.deliver(ledger.loaded, event_id)

    # Fork: SQLite's locks of a connection that is open across one are lost, and so are commits.

    def before_fork(self) -> None:
        """Close PMM's connection where it is idle."""
        log = self._eventlog()
        connection = None if log is None else vars(log).get("_conn")
        try:
            if connection is not None and self._path and not connection.in_transaction:
                connection.close()
                vars(log)["_conn"] = None
                self._closed_for_fork = True
        except sqlite3.Error:
            pass

    def connection(self, log: Any) -> Any:
        """PMM's connection; after a fork a new one, as its constructor makes them."""
        found = vars(log).get("_conn")
        if found is None and self._closed_for_fork:
            with self._opening:
                if self._closed_for_fork:
                    fresh = self._original.__new__(self._original)
                    self._original.__init__(fresh, self._path)
                    vars(log)["_conn"] = vars(fresh).pop("_conn")
                    self._closed_for_fork = False
                found = vars(log).get("_conn")
        return found

    def after_fork(self) -> None:
        """In the child: forget the threads that it does not have."""
        self._opening = threading.Lock()
        self._inside.clear()
        self.delivery.after_fork()


counts = Counts()
"""Appends and reads of all logs of this process."""
_shared_logs: weakref.WeakSet[SharedLog] = weakref.WeakSet()


def log_of(eventlog: Any) -> SharedLog:
    """The shared log behind an EventLog.

    Raises:
        Fallback: it is something else, has no file, or was closed.
    """
    shared = getattr(eventlog, "__dict__", {}).get("_pmm_shm")
    if type(shared) is not SharedLog:
        raise Fallback(STAND_IN)
    shared.ledger  # noqa: B018
    return shared


def is_own_append(eventlog: Any) -> bool:
    """Whether an EventLog's `append` is the one of this module, not that of a subclass or a test."""
    return "append" not in vars(eventlog) and getattr(type(eventlog).append, "__pmm_shm__", False)


def _began(connection: Any) -> bool:
    if connection.in_transaction:
        return False
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error:
        # PMM's own append meets the same error, or none.
        return False
    return True


def _shared_of(log: Any, original: type, is_lazy: bool) -> SharedLog:
    shared = vars(log).get("_pmm_shm")
    if shared is None:
        shared = vars(log).setdefault("_pmm_shm", SharedLog(log, original, is_lazy=is_lazy))
    return cast(SharedLog, shared)


def _attribute(name: str, shared_of: Callable[[Any], SharedLog]) -> property:
    return property(lambda log: shared_of(log).get(name), lambda log, value: shared_of(log).set(name, value))


def shared_eventlog(original: Any, *, is_lazy: bool = False) -> type:
    """The subclass of PMM's `EventLog` that takes its place.

    Parameters:
        is_lazy: `read_all` returns a list that loads when it is looked at.
    """

    def shared_of(log: Any) -> SharedLog:
        return _shared_of(log, original, is_lazy)

    def positive(limit: Any) -> int:
        if type(limit) is not int or limit < 1:
            raise Fallback("an unusual limit")
        return limit

    def looked_up(plain: Callable[..., Any]) -> Callable[..., Any]:
        # PMM reads single events from the file, and so sees those of others anyway.
        @functools.wraps(plain)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            shared_of(self).read(lambda ledger: None, lambda: None)
            return plain(self, *args, **kwargs)

        return method

    class EventLog(original):  # type: ignore[misc]
        _append_listeners = _attribute("_append_listeners", shared_of)
        _events_cache = _attribute("_events_cache", shared_of)
        _cache_last_id = _attribute("_cache_last_id", shared_of)

        @property
        def _conn(self) -> Any:
            return shared_of(self).connection(self)

        @_conn.setter
        def _conn(self, value: Any) -> None:
            vars(self)["_conn"] = value

        @functools.wraps(original.append)
        def append(self, kind: Any, content: Any, meta: Any = None) -> int:
            return shared_of(self).append(kind, content, meta)

        append.__pmm_shm__ = True  # type: ignore[attr-defined]

        @functools.wraps(original.register_append_listener)
        def register_append_listener(self, *args: Any, **kwargs: Any) -> Any:
            plain = original.register_append_listener
            return shared_of(self).register(lambda: plain(self, *args, **kwargs))

        @functools.wraps(original.read_all)
        def read_all(self) -> list[EventDict]:
            shared = shared_of(self)
            return cast(list[EventDict], shared.read(shared.live, lambda: original.read_all(self)))

        @functools.wraps(original.read_tail)
        def read_tail(self, *, limit: Any) -> list[EventDict]:
            return cast(
                list[EventDict],
                shared_of(self).read(
                    lambda ledger: ledger.tail(positive(limit)), lambda: original.read_tail(self, limit=limit)
                ),
            )

        @functools.wraps(original.read_after_id)
        def read_after_id(self, *, after_id: Any, limit: Any) -> list[EventDict]:
            return cast(
                list[EventDict],
                shared_of(self).read(
                    lambda ledger: ledger.first_after(after_id, positive(limit)),
                    lambda: original.read_after_id(self, after_id=after_id, limit=limit),
                ),
            )

        read_after_ts = looked_up(original.read_after_ts)
        query = looked_up(original.query)
        get_event = looked_up(original.get_event)

    return EventLog


def _before_fork() -> None:
    for shared in list(_shared_logs):
        shared.before_fork()


def _after_fork_in_child() -> None:
    for shared in list(_shared_logs):
        shared.after_fork()


def install(patcher: Patcher, module: ModuleType) -> None:
    """Replace `EventLog` in the module that has just been executed."""
    is_lazy = patcher.allows(module, "EventLog.read_all")
    ledgers.cache_options = {"starts_daemon": patcher.settings.starts_daemon}
    patcher.replace_class(module, "EventLog", lambda original: shared_eventlog(original, is_lazy=is_lazy))
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
