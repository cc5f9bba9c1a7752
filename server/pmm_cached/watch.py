"""Wakes the follower when the ledger's files change.

inotify watches the files themselves, not their directory: journals come and go there with every commit. The event
comes before the commit is visible, and the next commit's event can be swallowed while this one is applied, so the
daemon goes on looking after the last event; see `Daemon`. Where the system gives no inotify (each user has a few), the
slow poll finds everything.
"""

from __future__ import annotations

import os
import select
from typing import Any

from inotify_simple import INotify, flags

_EVENTS = flags.MODIFY | flags.MOVE_SELF | flags.DELETE_SELF | flags.ATTRIB


class Watch:
    """Waits for a change of the ledger's files, a wake-up from another thread, or a time-out.

    Attributes:
        problem: why the system tells no changes; None where it does.
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
        """Watch the files that stand at the paths now; adding a watch twice is harmless."""
        inotify = self._inotify
        for path in self._paths if inotify is not None else ():
            try:
                inotify.add_watch(path, _EVENTS)
            except OSError:
                # Not there, or the system's limit on watches: the slow poll finds what this misses.
                continue

    def wait(self, timeout_s: float) -> bool:
        """Whether a file changed within the time; returns early on `wake`."""
        # Not `poll`: it counts in milliseconds, and the first looks are a tenth of one apart.
        inotify = self._inotify
        ready, _, _ = select.select([self._wake, *([] if inotify is None else [inotify.fileno()])], [], [], timeout_s)
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if inotify is None or inotify.fileno() not in ready:
            return False
        inotify.read(timeout=0)
        return True

    def wake(self) -> None:
        """End a `wait`; safe in a signal handler and from other threads."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._wake)
