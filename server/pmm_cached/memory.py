"""The memory of this process, and whether the clients of the command sockets make it grow.

libzmq keeps every frame of a message until the last one has arrived, without a limit on their number. So a daemon that
grows by more than `limits.PEERS_MEMORY_BYTES_MAX` while clients are connected disconnects them. Honest clients connect
again and miss a hint.
"""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from pmm_shm import limits

_WATCHED_AFTER_S = 1.0
_SETTLING_S = 0.5
_TRIM_BYTES_MIN = 8 << 20


class ProcessMemory(NamedTuple):
    """Memory of this process in RAM, in bytes: all of it, and the part that is not backed by files."""

    resident_bytes: int
    anonymous_bytes: int


def process_memory() -> ProcessMemory:
    """The memory of this process now.

    Raises:
        OSError: `/proc` cannot be read.
    """
    resident, shared = map(int, Path("/proc/self/statm").read_bytes().split()[1:3])
    return ProcessMemory(resident * resource.getpagesize(), (resident - shared) * resource.getpagesize())


def free_unused_memory() -> None:
    """Return freed memory to the system; does nothing where the C library is not glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return


class Suspects(Enum):
    """The connections that may be the cause of too much memory: none, those with unread data, or all."""

    NONE = 0
    WITH_UNREAD_DATA = 1
    ALL = 2


class MemoryWatch:
    """Compares the memory of this process with the least that it had, while clients are connected.

    Parameters:
        anonymous_bytes: memory of this process that is not backed by files.
        trim: returns freed memory to the system.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        anonymous_bytes: Callable[[], int] = lambda: process_memory().anonymous_bytes,
        trim: Callable[[], None] = free_unused_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._anonymous_bytes = anonymous_bytes
        self._trim = trim
        self._clock = clock
        self._base_bytes = anonymous_bytes()
        self._settles_at: float | None = None
        self._is_watching = False
        self._watched_until = -float("inf")
        self._next_check = 0.0

    def watch(self, *, is_anyone_connected: bool) -> Suspects:
        """Call this whenever something happened, and at `next_deadline`. Returns the connections to end now."""
        now = self._clock()
        if is_anyone_connected:
            self._watched_until = now + _WATCHED_AFTER_S
        # A while longer, so that the memory of a client that connects again at once does not become the base.
        is_watching = now < self._watched_until
        if is_watching != self._is_watching:
            self._is_watching = is_watching
            self.rebase()
        elif not is_watching or now < self._next_check:
            return Suspects.NONE
        self._next_check = now + limits.PEERS_MEMORY_CHECK_S
        return self.check()

    def next_deadline(self) -> float | None:
        """When `watch` has to be called next, by the clock; None while nobody is connected."""
        return self._next_check if self._is_watching else None

    def check(self) -> Suspects:
        """The connections to end now: first those with unread data; if that does not help, all.

        Memory that remains half a second after that is not the clients'; it becomes the base.
        """
        if self._settles_at is not None:
            self._trim()
        size_bytes = self._anonymous_bytes()
        self._base_bytes = min(self._base_bytes, size_bytes)
        if size_bytes - self._base_bytes <= limits.PEERS_MEMORY_BYTES_MAX:
            self._settles_at = None
            return Suspects.NONE
        if self._settles_at is None:
            self._settles_at = self._clock() + _SETTLING_S
            return Suspects.WITH_UNREAD_DATA
        if self._clock() < self._settles_at:
            return Suspects.ALL
        self._settles_at, self._base_bytes = None, size_bytes
        return Suspects.NONE

    def rebase(self) -> None:
        """Take the memory in use now as the base: nobody has been connected for a while."""
        if self._anonymous_bytes() - self._base_bytes > _TRIM_BYTES_MIN:
            self._trim()
        self._settles_at, self._base_bytes = None, self._anonymous_bytes()
