"""The stream of the page: every listener hears of every change, whoever notices it first."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

pytest.importorskip("starlette")

from pmm_shm_web.live import Live
from tests.support.daemons import until

DEADLINE_S = 10.0


class Watched:
    """A log and a cache on it in one: its head is its mark, and nothing announces a change."""

    def __init__(self) -> None:
        self.newest = 406
        self.marks: list[int] = []
        self.on_head: Callable[[int], None] = lambda head: None

    def mark(self) -> int:
        self.marks.append(self.newest)
        return self.newest

    def is_noticed(self) -> bool:
        """Whether the newest mark has been looked at, and its consequences drawn: it was looked at again."""
        return self.marks[-2:] == [self.newest] * 2

    def head(self) -> int:
        head = self.newest
        self.on_head(head)
        return head

    async def announcements(self) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield


async def next_head(heads: AsyncIterator[int | None]) -> int | None:
    return await asyncio.wait_for(heads.__anext__(), DEADLINE_S)


def run_with(log: Watched, test: Callable[[Live], Coroutine[Any, Any, None]]) -> None:
    live = Live(log, log)  # type: ignore[arg-type]

    async def body() -> None:
        try:
            await test(live)
        finally:
            live.close()

    asyncio.run(body())


def test_a_listener_hears_of_a_change_that_a_newcomer_noticed_first() -> None:
    log = Watched()

    async def test(live: Live) -> None:
        first = live.heads()
        assert await next_head(first) == 406
        await asyncio.to_thread(until, log.is_noticed, "a quiet watcher")
        log.newest = 407
        assert await next_head(live.heads()) == 407
        assert await next_head(first) == 407

    run_with(log, test)


def test_a_slow_look_does_not_take_back_a_newer_one() -> None:
    log = Watched()
    is_reading = threading.Event()

    def on_head(head: int) -> None:
        if head == 406 and not is_reading.is_set():
            is_reading.set()
            with contextlib.suppress(AssertionError):
                until(log.is_noticed, "the others' look, which may overtake this one", 1.0)

    async def test(live: Live) -> None:
        slow = live.heads()
        told = asyncio.ensure_future(next_head(slow))
        await asyncio.to_thread(is_reading.wait, DEADLINE_S)
        log.newest = 407
        quick = live.heads()
        assert await next_head(quick) == 407
        if await told == 406:
            assert await next_head(slow) == 407

    log.on_head = on_head
    run_with(log, test)
