"""Wakes the follower when the ledger's files change.

inotify watches the files, not their directory, where journals are created and deleted with every commit. Its event
arrives before the commit is visible, and the event of the next commit can be lost while this one is applied. So the
daemon keeps checking for a while after the last event; see `Daemon`. Without inotify (each user has a limited number)
the slow poll finds every change.
"""

from __future__ import annotations

import os
import select
from typing import Any

from inotify_simple import INotify, flags

_EVENTS_BYTES = 1 << 16
_EVENTS = flags.MODIFY | flags.MOVE_SELF | flags.DELETE_SELF | flags.ATTRIB


class LedgerWatch:
    """Waits for a change of the ledger's files, a wake-up from another thread, or a time-out.

    Attributes:
        problem: why inotify is not available; None if it is.
    """

    def __init__(self, ledger: str) -> None:
        self._paths = (ledger, ledger + "-wal")
        self._inotify: Any = None
        self.problem: str | None = None
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            self.problem = f"no inotify: {error.strerror}; raise fs.inotify.max_user_instances"
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.refresh()

    def refresh(self) -> None:
        """Watch the files that are at the paths now; adding a watch twice is harmless."""
        inotify = self._inotify
        for path in self._paths if inotify is not None else ():
            try:
                inotify.add_watch(path, _EVENTS)
            except OSError:
                # No such file, or the system's limit on watches: the slow poll finds what this misses.
                continue

    def wait(self, timeout_s: float) -> bool:
        """Whether a file changed within the time; returns early on `wake`."""
        # Not `poll`: it counts in milliseconds, and the first checks are 0.1 ms apart.
        inotify = self._inotify
        ready, _, _ = select.select([self._wake, *([] if inotify is None else [inotify.fileno()])], [], [], timeout_s)
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if inotify is None or inotify.fileno() not in ready:
            return False
        # The events themselves do not matter; `INotify.read` would decode them.
        os.read(inotify.fileno(), _EVENTS_BYTES)
        return True

    def wake(self) -> None:
        """End a `wait`; safe in a signal handler and from other threads."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._wake)
