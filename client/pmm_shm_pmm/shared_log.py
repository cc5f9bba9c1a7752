"""One log of PMM and the ledger behind it: its appends, its reads, its listeners.

Appends go through the writer of the library. What that refuses and PMM stores is stored by PMM's own `append`, within a
transaction that holds the write lock, so that the chain stays linear.

Invariant: an event is appended once, whichever way it goes.
"""

from __future__ import annotations

import functools

# Imported early: the fork hook below must run before that of logging, whose lock threads take that we wait for.
import logging  # noqa: F401
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from pmm_shm.errors import HeadMovedError
from pmm_shm_pmm import delivery
from pmm_shm_pmm.delivery import Delivery
from pmm_shm_pmm.fallback import Counts, Fallback
from pmm_shm_pmm.ledgers import Ledger, ledger_at
from pmm_shm_pmm.lists import plain_list
from pmm_shm_pmm.loaded import Loaded, PmmEvent
from pmm_shm_pmm.log_list import lazy_list
from pmm_shm_pmm.own_connection import OwnConnection

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache
    from pmm_shm_client.frame import Frame

STAND_IN = "a stand-in for EventLog"
OWN_READS = "a log with a read_all of its own"
NO_FILE = "no file"
CLOSED = "closed"
IN_TRANSACTION = "within a transaction"
PMM2 = "a ledger of PMM 2"
_OF_PMM2 = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'pmm_writer_lease'"
_ATTEMPTS_MAX = 100


class SharedLog:
    """One log of PMM, and the ledger behind it.

    Parameters:
        eventlog: PMM's object; it owns this one.
        original: PMM's class.
        counts: of appends and reads.
        clocks: `clocks_of(original)` when it was replaced.
        is_lazy: the live list loads when it is looked at.

    Attributes:
        connection: PMM's own, across forks.
        delivery: of its events to the listeners.
        snapshot: the last one of a `Runtime`, and the log that it is of.
    """

    def __init__(self, eventlog: Any, original: Any, counts: Counts, clocks: tuple[Any, ...], *, is_lazy: bool) -> None:
        self._counts = counts
        self._eventlog: Callable[[], Any] = weakref.ref(eventlog)
        self._original = original
        self._clocks = clocks
        self._make_list = lazy_list if is_lazy else plain_list
        self._ledger: Ledger | None = None
        self._never: str | None = None
        # Threads within PMM's own `append`, which shall neither call listeners nor touch the live list.
        self._inside: set[int] = set()
        self.connection = OwnConnection(self._eventlog, original)
        self.delivery = Delivery()
        self.snapshot: tuple[Any, Loaded | None] = (None, None)
        self._has_read = False
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

    def newest(self, kind: str, n: int = 1, before: int | None = None) -> list[PmmEvent]:
        """As `Ledger.newest`."""
        return self.ledger.newest(kind, n, before)

    def events_of(
        self, kind: str, after: int | None = None, newest_first: bool = False, limit: int | None = None
    ) -> list[PmmEvent]:
        """As `Ledger.events_of`."""
        return self.ledger.events_of(kind, after, None, newest_first, limit)

    def event(self, event_id: int) -> PmmEvent | None:
        """As `Ledger.event`."""
        return self.ledger.event(event_id)

    def append_checked(self, kind: str, content: str, meta: dict[str, Any], still: Callable[[], bool]) -> int | None:
        """Append an event if `still()` holds for the log it is appended to; returns its id, or None.

        The caller has looked before. `still` looks at the newest state by the methods here, and may be called several
        times; where it fails, the caller's look counts, as in PMM. Where the class of the log has an `append` of its
        own, that is called, and an event of another process may come in between.

        It raises what PMM's own `append` raises.
        """
        log = self._eventlog()
        if not is_own_append(log):
            return int(log.append(kind=kind, content=content, meta=meta)) if _holds(still) else None
        for _ in range(_ATTEMPTS_MAX):
            try:
                head = self.sync()
                if not still():
                    return None
                event_id = self._write(log, kind, content, meta, head)
            except HeadMovedError:
                continue
            except Exception:
                break
            self._counts.answered += 1
            self._heard(event_id)
            return event_id
        # The library cannot, or others append all the time: as without it.
        return self.append(kind, content, meta) if _holds(still) else None

    # For the methods of the subclass.

    def append(self, kind: Any, content: Any, meta: Any) -> int:
        """Append an event, and let the listeners hear it. Raises what PMM's own raises."""
        log = self._eventlog()
        try:
            event_id = self._write(log, kind, content, meta)
            self._counts.answered += 1
        except Fallback as fallback:
            event_id = self._append_plainly(log, fallback.reason, kind, content, meta)
        except Exception as error:
            event_id = self._append_plainly(log, f"error: {type(error).__name__}", kind, content, meta)
        self._heard(event_id)
        if kind == "autonomy_tick" and self._ledger is not None:
            try:
                self._ledger.keep_tick(event_id)
            except Exception:
                pass  # The next tick takes longer.
        return event_id

    def read(self, look: Callable[[Ledger], Any], plainly: Callable[[], Any]) -> Any:
        """What `look` finds, after the listeners have heard of foreign events; `plainly` where that fails."""
        try:
            ledger = self.ledger
            ledger.sync()
            self.delivery.deliver(ledger.loaded)
            found = look(ledger)
            self._has_read = self._has_read or found is not None
            return found
        except Fallback as fallback:
            self._counts.fallbacks[fallback.reason] += 1
            if fallback.reason == CLOSED and self._has_read:
                # PMM keeps what it has read.
                with suppress(Exception):
                    return look(cast(Ledger, self._ledger))
        except Exception as error:
            self._counts.fallbacks[f"error: {type(error).__name__}"] += 1
        # What PMM has kept from an earlier failure may be old.
        if self._never is None:
            self._attributes["_events_cache"] = None
        return plainly()

    def tell(self) -> Loaded:
        """Take in the events of others, and let the listeners hear them. Returns what is loaded.

        Call it where no lock is held that a listener may take.
        """
        ledger = self.ledger
        ledger.sync()
        loaded = ledger.loaded
        self.delivery.deliver(loaded, is_guarded=False)
        return loaded

    def listing(self) -> list[PmmEvent]:
        """A new list of all events."""
        make = self._make_list
        return self.ledger.listing(lambda loaded: make(loaded, loaded.newest_id))

    def live(self, ledger: Ledger) -> list[PmmEvent]:
        """The live list."""
        make = self._make_list
        return ledger.live(lambda loaded: make(loaded, None))

    def register(self, add: Callable[[], Any]) -> Any:
        """Register listeners by PMM's own method; they hear nothing older."""
        try:
            ledger = self.ledger
            ledger.sync()
        except Exception:
            return add()
        answers: list[Any] = []
        # The log's lock first, which PMM's method may take: nobody waits for it within the delivery's.
        with self._eventlog()._lock:
            self.delivery.register(lambda: answers.append(add()), ledger.loaded)
        return answers[0]

    def get(self, name: str) -> Any:
        """The value of `_events_cache`, `_cache_last_id` or `_append_listeners`, as whoever asks shall see it."""
        attributes = self._attributes
        if threading.get_ident() in self._inside:
            return [] if name == "_append_listeners" else attributes.get(name) if name == "_cache_last_id" else None
        if name == "_append_listeners":
            return self.delivery.listeners
        loaded = None if self._ledger is None else self._ledger.loaded
        if loaded is None or loaded.live is None:
            return attributes.get(name)
        return loaded.live if name == "_events_cache" else loaded.newest_id

    def set(self, name: str, value: Any) -> None:
        """Set such an attribute. None for `_events_cache` lets the log be read anew; a list makes it the live one."""
        if threading.get_ident() in self._inside:
            return
        if name == "_append_listeners":
            self.delivery.listeners = self._attributes[name] = value
            return
        if name == "_events_cache" and value is not None:
            # PMM's own code has read the log: it goes on with the live list, which every append makes longer.
            try:
                self.live(self.ledger)
                return
            except Exception:
                pass
        elif name == "_events_cache" and self._ledger is not None:
            self._ledger.forget()
        self._attributes[name] = value

    @property
    def _attributes(self) -> dict[str, Any]:
        """PMM's own, where `unittest.mock` looks for what to put back."""
        attributes: dict[str, Any] = vars(self._eventlog())
        return attributes

    def _open(self, log: Any) -> Ledger:
        if self._never is None:
            with log._lock:
                rows = log._conn.execute("PRAGMA database_list").fetchall()
                is_of_pmm2 = log._conn.execute(_OF_PMM2).fetchone() is not None
            path = next((row[2] for row in rows if row[1] == "main"), "")
            if path and is_of_pmm2:
                self._never = PMM2
                raise Fallback(PMM2)
            if path:
                self.connection.path = path
                ledger = ledger_at(path)
                ledger.spare = self._eventlog
                self._ledger = ledger
                with suppress(Exception):
                    ledger.follow_edits()
                return ledger
            self._never = NO_FILE
        raise Fallback(self._never)

    def _write(self, log: Any, kind: Any, content: Any, meta: Any, expected_head: int | None = None) -> int:
        ledger = self.ledger
        if log._conn.in_transaction:
            raise Fallback(IN_TRANSACTION)
        if self._clocks != clocks_of(self._original):
            raise Fallback("another clock")
        meta = meta or {}
        if not isinstance(meta, dict):
            raise Fallback("an event that only PMM stores")
        return ledger.append(kind, content, meta, expected_head)

    def _append_plainly(self, log: Any, reason: str, kind: Any, content: Any, meta: Any) -> int:
        self._counts.fallbacks[reason] += 1
        append = self._original.append
        if reason in (NO_FILE, CLOSED):
            return cast(int, append(log, kind=kind, content=content, meta=meta))
        with log._lock, self._within_original():
            began = _began(log._conn)
            try:
                event_id = append(log, kind=kind, content=content, meta=meta)
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
        except Exception as error:
            # It is appended: the next look takes it in.
            self._counts.fallbacks[f"error: {type(error).__name__}"] += 1
        else:
            self.delivery.deliver(ledger.loaded, event_id, wait_s=self._wait_s())

    def _wait_s(self) -> float:
        """How long an append waits for another thread's delivery."""
        is_owned = getattr(self._eventlog()._lock, "_is_owned", None)
        # A listener may want the lock that the caller holds.
        return delivery.LOCKED_WAIT_S if is_owned is not None and is_owned() else delivery.WAIT_S

    def after_fork(self, *, is_child: bool) -> None:
        """In the child, forget the threads that it does not have."""
        self.connection.after_fork(is_child=is_child)
        if is_child:
            self._inside.clear()
            self.delivery.after_fork()


_shared_logs: weakref.WeakSet[SharedLog] = weakref.WeakSet()


def log_of(eventlog: Any) -> SharedLog:
    """The shared log behind an EventLog, for what PMM would have found by `read_all`.

    Raises:
        Fallback: it is something else, has no file, was closed, or has another `read_all`.
    """
    shared = log_beneath(eventlog)
    if "read_all" in vars(eventlog) or not getattr(type(eventlog).read_all, "__pmm_shm__", False):
        raise Fallback(OWN_READS)
    return shared


def log_beneath(eventlog: Any) -> SharedLog:
    """The same, whatever its `read_all`."""
    shared = getattr(eventlog, "__dict__", {}).get("_pmm_shm")
    if type(shared) is not SharedLog:
        raise Fallback(STAND_IN)
    shared.ledger  # noqa: B018
    return shared


def is_own_append(eventlog: Any) -> bool:
    """Whether an EventLog's `append` is the one of this module, not that of a subclass or a test."""
    return "append" not in vars(eventlog) and getattr(type(eventlog).append, "__pmm_shm__", False)


def _holds(still: Callable[[], bool]) -> bool:
    try:
        return still()
    except Exception:
        return True


def _began(connection: Any) -> bool:
    if connection.in_transaction:
        return False
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error:
        # PMM's own append meets the same error, or none.
        return False
    return True


def clocks_of(original: Any) -> tuple[Any, ...]:
    """What the time of an event is from in PMM's `append`: a test may stop it."""
    names = getattr(original.append, "__globals__", {})
    return names.get("datetime"), names.get("time")


def shared_of(log: Any, original: type, counts: Counts, clocks: tuple[Any, ...], *, is_lazy: bool) -> SharedLog:
    """The shared log of an object of the subclass, made at the first use: within PMM's constructor."""
    shared = vars(log).get("_pmm_shm")
    if shared is None:
        made = SharedLog(log, original, counts, clocks, is_lazy=is_lazy)
        shared = log.__dict__.setdefault("_pmm_shm", made)
    return cast(SharedLog, shared)


def _before_fork() -> None:
    for shared in list(_shared_logs):
        shared.connection.close_for_fork()


def _after_fork(*, is_child: bool) -> None:
    for shared in list(_shared_logs):
        shared.after_fork(is_child=is_child)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=functools.partial(_after_fork, is_child=False),
    after_in_child=functools.partial(_after_fork, is_child=True),
)
