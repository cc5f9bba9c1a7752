"""Imports on first use that neither a fork nor a lack of file descriptors interrupts.

In a child that was forked while another thread imported a module, Python's lock on that module stays locked for ever.
So our own late imports hold one lock, and a fork waits for it.

A module is read from a file. A process that has run out of descriptors when it needs one would fail, and a package of C
modules that was imported in part cannot be imported again. So one descriptor is kept, and lent to each import.
"""

from __future__ import annotations

import os
import sys
import threading

_STDERR = 2


class _LateImports:
    """See `late_imports`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._precedes_logging = False
        self._depth = 0
        self._kept: int | None = None
        self._identity: tuple[int, int] | None = None
        self._keep()

    def follow_fork_hooks(self) -> None:
        """Call it when a fork hook that calls `acquire` was registered."""
        self._precedes_logging = "logging" not in sys.modules

    def acquire(self) -> None:
        """Wait for the imports of other threads, before a fork."""
        self._lock.acquire()
        if self._precedes_logging:
            _take_missed_lock()

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            try:
                os.close(os.eventfd(0, os.EFD_CLOEXEC))
            except OSError:
                self._lend()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._kept is None:
            self._keep()
        self._lock.release()

    def _lend(self) -> None:
        kept, self._kept = self._kept, None
        try:
            # A program that becomes a daemon closes all descriptors, and the number may be another file's by now.
            if kept is not None and _identity_of(kept) == self._identity:
                os.close(kept)
        except OSError:
            pass

    def _keep(self) -> None:
        try:
            # A file in memory: it has an inode of its own, by which it is known again.
            self._kept = _above_standard_streams(os.memfd_create("pmm-shm-kept", os.MFD_CLOEXEC))
            self._identity = _identity_of(self._kept)
        except (OSError, AttributeError):
            self._kept = None


def _take_missed_lock() -> None:
    """Take logging's lock for a fork that has waited for the import of logging.

    Logging takes its lock before a fork and gives it back afterwards. It has registered both since this fork began, so
    only the second would happen. Its hook is younger than ours and runs first: a lock that it takes is taken by now.
    """
    logging = sys.modules.get("logging")
    if logging is not None and not getattr(logging.__spec__, "_initializing", False) and not logging._lock._is_owned():
        logging._lock.acquire()


def _above_standard_streams(descriptor: int) -> int:
    """The same file under a number that no library prints to: a program may have closed its standard streams."""
    if descriptor > _STDERR:
        return descriptor
    try:
        return _above_standard_streams(os.dup(descriptor))
    finally:
        os.close(descriptor)


def _identity_of(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


late_imports = _LateImports()
"""Hold it around an import within a function: `with late_imports: from x import y`. Do not hold it around the import of
a user's module, which may wait for another thread, and do not wait for a connection while you hold it.
"""
