"""Imports on first use that neither a fork nor a lack of file descriptors interrupts.

In a child that was forked while another thread imported a module, Python's lock on that module stays locked for ever.
So our own late imports hold one lock, and a fork waits for it.

A module is read from a file. A process that has run out of descriptors when it needs one would fail, and a package of C
modules that was imported in part cannot be imported again. So one descriptor is kept, and lent to each import.

A signal handler may need a module that its thread is about to import. It gets an error that says so: a retry is safe.
"""

from __future__ import annotations

import os
import sys
import threading

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

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

    def let_go_of_logging(self) -> tuple[int, int] | None:
        """Give back the lock of logging, where its hook ran before ours: what to hand to `acquire`.

        For a fork that waits for other locks: their holders may log, or import what makes a logger.
        """
        lock = _lock_of_logging() if self._precedes_logging else None
        if lock is None or not lock._is_owned():
            return None
        state: tuple[int, int] = lock._release_save()
        return state

    def acquire(self, of_logging: tuple[int, int] | None) -> None:
        """Wait for the imports of other threads, before a fork; and take the lock of logging after all others.

        Logging takes its lock before a fork and gives it back afterwards. Where it was imported since this fork began,
        only the second would happen.
        """
        self._lock.acquire()
        lock = _lock_of_logging() if self._precedes_logging else None
        if lock is not None and of_logging is not None:
            lock._acquire_restore(of_logging)
        elif lock is not None:
            lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        is_counted = False
        try:
            self._lock.acquire()
            self._depth += 1
            is_counted = True
            if self._depth == 1:
                self._see_to_descriptor()
        except BaseException:
            # A signal handler's may strike behind each call, or while this waits.
            self._depth -= is_counted
            try:
                self._lock.release()
            except RuntimeError:
                # Another thread has it.
                pass
            raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self._depth -= 1
            if self._depth == 0 and self._kept is None:
                self._keep()
        finally:
            self._lock.release()
        if isinstance(error, ImportError) and error.name is not None and _is_begun(sys.modules.get(error.name)):
            from pmm_shm.errors import LedgerBusyError

            raise LedgerBusyError(
                f"{error.name} is being imported by this thread, and this call came in between (from a signal handler "
                "or a finalizer); nothing was written"
            ) from None

    def _see_to_descriptor(self) -> None:
        """Lend the kept one, unless there is another."""
        try:
            os.close(os.eventfd(0, os.EFD_CLOEXEC))
        except OSError:
            self._lend()

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


def _lock_of_logging() -> Any:
    """The lock of logging; None before that is imported."""
    logging = sys.modules.get("logging")
    if logging is None or _is_begun(logging):
        return None
    return logging._lock


def _is_begun(module: Any) -> bool:
    """Whether a module's import has begun and not ended."""
    return getattr(getattr(module, "__spec__", None), "_initializing", False) is True


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
