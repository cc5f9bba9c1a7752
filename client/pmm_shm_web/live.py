"""Who listens hears that the log has grown: at once by the daemon's announcements, otherwise by the freshness mark.

Announcements are hints, so the mark is looked at anyway, a few times a second and only while somebody listens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from pmm_shm.errors import DaemonError, PmmShmError
from pmm_shm_web.ledger import LedgerQueries
from pmm_shm_web.mind import WatchingCache

LOOK_S = 0.25
COALESCED_S = 0.2
"""The least time between two messages to one listener."""
KEEP_ALIVE_S = 15.0
DAEMON_AGAIN_S = 2.0


class Live:
    """Tells listeners of one event loop the newest event's id whenever it has changed.

    Parameters:
        cache: one of its own: a replay in another must not hold up its marks.
        ledger: for the newest id.
    """

    def __init__(self, cache: WatchingCache, ledger: LedgerQueries) -> None:
        self._cache = cache
        self._ledger = ledger
        self._listeners: set[asyncio.Event] = set()
        self._woken = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._head: int | None = None
        # Looks follow one another: an older answer must not take the place of a newer one.
        self._looking = asyncio.Lock()
        self.is_closed = False

    async def heads(self) -> AsyncIterator[int | None]:
        """The newest id now, and after each change; None where nothing has changed for `KEEP_ALIVE_S`."""
        changed = asyncio.Event()
        self._listeners.add(changed)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._hear())]
        try:
            told = await self._look()
            yield told
            while not self.is_closed:
                try:
                    await asyncio.wait_for(changed.wait(), KEEP_ALIVE_S)
                except asyncio.TimeoutError:
                    yield None
                    continue
                changed.clear()
                if self._head != told:
                    told = self._head
                    yield told
                    await asyncio.sleep(COALESCED_S)
        finally:
            self._listeners.discard(changed)
            if not self._listeners:
                self._stop()

    def close(self) -> None:
        """End all streams."""
        self.is_closed = True
        self._stop()
        for listener in self._listeners:
            listener.set()

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _look(self) -> int | None:
        """The newest id; whoever finds a new one wakes all listeners."""
        async with self._looking:
            with contextlib.suppress(PmmShmError):
                head = await asyncio.to_thread(self._ledger.head)
                if head != self._head:
                    self._head = head
                    for listener in self._listeners:
                        listener.set()
            return self._head

    async def _watch(self) -> None:
        mark = None
        while True:
            try:
                seen = await asyncio.to_thread(self._cache.mark)
                if seen != mark:
                    mark = seen
                    await self._look()
            except PmmShmError:
                mark = None
            self._woken.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._woken.wait(), LOOK_S)

    async def _hear(self) -> None:
        while True:
            with contextlib.suppress(DaemonError, PmmShmError, OSError):
                async for _ in self._cache.announcements():
                    self._woken.set()
            await asyncio.sleep(DAEMON_AGAIN_S)
