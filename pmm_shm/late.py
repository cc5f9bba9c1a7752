"""Imports on first use that neither a fork nor a lack of file descriptors interrupts.

In a child that was forked while another thread imported a module, Python's lock on that module stays locked for ever.
So our own late imports hold one lock, and a fork waits for it.

A module is read from a file. A process that has run out of descriptors when it needs one would fail, and a package of C
modules that was imported in part cannot be imported again. So one descriptor is kept, and lent to each import.
"""

from __future__ import annotations

# Imported early: it registers fork hooks, and a fork that waits for the import would run only the last of them.
import logging  # noqa: F401
import os
import threading

_STDERR = 2


class _LateImports:
    """See `late_imports`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._kept: int | None = None
        self._identity: tuple[int, int] | None = None
        self._keep()

    def acquire(self) -> None:
        """Wait for the imports of other threads, before a fork."""
        self._lock.acquire()

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
