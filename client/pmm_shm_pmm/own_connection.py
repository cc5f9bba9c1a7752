"""PMM's connection of one log across a fork.

SQLite's locks of a connection that is open across a fork are lost, and so are commits. So it is closed before, and
opened again when it is next used.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Any

_FORK_WAIT_S = 1.0


class OwnConnection:
    """The connection in the attribute `_conn` of PMM's object.

    Parameters:
        eventlog: returns the object, or None.
        original: PMM's class.

    Attributes:
        path: the ledger, once it is known that there is a file.
    """

    def __init__(self, eventlog: Callable[[], Any], original: Any) -> None:
        self._eventlog = eventlog
        self._original = original
        self._is_closed_for_fork = False
        self._held: Any = None
        self._opening = threading.Lock()
        self.path = ""

    def close_for_fork(self) -> None:
        """Close it where it is idle; the log's lock is held until `after_fork`."""
        log = self._eventlog()
        if log is None or not self.path or not log._lock.acquire(timeout=_FORK_WAIT_S):
            # Somebody is at work on it: as in PMM.
            return
        self._held = log._lock
        connection = vars(log).get("_conn")
        try:
            if connection is not None and not connection.in_transaction:
                connection.close()
                log.__dict__["_conn"] = None
                self._is_closed_for_fork = True
        except sqlite3.Error:
            pass

    def get(self, log: Any) -> Any:
        """The connection; after a fork a new one, as PMM's constructor makes them."""
        found = vars(log).get("_conn")
        if found is None and self._is_closed_for_fork:
            with self._opening:
                if self._is_closed_for_fork:
                    fresh = self._original.__new__(self._original)
                    self._original.__init__(fresh, self.path)
                    log.__dict__["_conn"] = fresh.__dict__.pop("_conn")
                    self._is_closed_for_fork = False
                found = vars(log).get("_conn")
        if found is None and "_conn" not in vars(log):
            raise AttributeError(f"{type(log).__name__!r} object has no attribute '_conn'")
        return found

    def after_fork(self, *, is_child: bool) -> None:
        """Release the lock."""
        held, self._held = self._held, None
        if held is not None:
            held.release()
        if is_child:
            self._opening = threading.Lock()
