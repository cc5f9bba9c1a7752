"""Green threads (gevent, eventlet) share one thread: a call that waits in it stops all of them.

Which calls those are is a promise, and so is the way that stops nobody: `published_as_of`, asked again and again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import DaemonError
from pmm_shm_client import Cache, connect, connect_async
from tests.support.daemons import run_python
from tests.support.fork_daemon import ForkedDaemon
from tests.support.hazards import fill

EVENTS = 20
AT_ONCE_S, WAIT_S = 0.1, 0.3
AT_ONCE: dict[str, Callable[[Cache], Any]] = {
    "metrics": lambda cache: cache.metrics(),
    "frame": lambda cache: cache.frame(),
    "snapshot": lambda cache: cache.metrics(consistency="snapshot"),
    "context": lambda cache: cache.context("hello"),
    "append": lambda cache: cache.append("user", "hello"),
    "a known text": lambda cache: cache.embed("known"),
    "published_as_of": lambda cache: cache.published_as_of(),
    "wait_for what is published": lambda cache: cache.wait_for(EVENTS),
}
BLOCKING: dict[str, Callable[[Cache], Any]] = {
    "wait_for": lambda cache: cache.wait_for(EVENTS + 1_000, WAIT_S),
    "verify": lambda cache: cache.verify(timeout=WAIT_S),
    "invalidate": lambda cache: cache.invalidate(timeout=WAIT_S),
    "stats": lambda cache: cache.stats(),
    "wait": lambda cache: cache.metrics(consistency="wait"),
    "a new text": lambda cache: cache.embed(f"new {time.monotonic_ns()}"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    """A cache beside a stopped daemon: whoever asks it waits."""
    path = tmp_path_factory.mktemp("green") / "agent.db"
    fill(str(path), EVENTS)
    with ForkedDaemon(path) as daemon, connect(path, timeout=WAIT_S) as cache:
        cache.wait_for(EVENTS)
        cache.embed("known")
        for call in AT_ONCE.values():
            call(cache)
        daemon.freeze()
        cache.append("user", "not published")
        yield cache


@pytest.mark.parametrize("name", AT_ONCE)
def test_calls_that_stop_no_green_thread(stopped: Cache, name: str) -> None:
    def is_at_once() -> bool:
        began = time.monotonic()
        AT_ONCE[name](stopped)
        return time.monotonic() - began < AT_ONCE_S

    # A busy machine may hold up some of them, the daemon all of them.
    assert any(is_at_once() for _ in range(20))


@pytest.mark.parametrize("name", BLOCKING)
def test_calls_that_stop_all_green_threads(stopped: Cache, name: str) -> None:
    """The limit as it is stated: if one of them no longer blocks, the pages say too much."""
    began = time.monotonic()
    try:
        BLOCKING[name](stopped)
    except DaemonError:
        pass
    assert time.monotonic() - began > AT_ONCE_S


# The ways that do not.


@pytest.fixture
def served(ledger: str) -> Iterator[Cache]:
    fill(ledger, EVENTS)
    with ForkedDaemon(Path(ledger)), connect(ledger) as cache:
        yield cache


def test_polling_lets_another_green_thread_append_what_is_waited_for(served: Cache) -> None:
    def waiting() -> Generator[None, None, None]:
        while (served.published_as_of() or 0) < EVENTS + 3:
            yield

    def appending() -> Generator[None, None, None]:
        for number in range(3):
            served.append("user", str(number))
            yield

    threads, deadline = [waiting(), appending()], time.monotonic() + 10
    while threads:
        assert time.monotonic() < deadline
        for thread in list(threads):
            try:
                next(thread)
            except StopIteration:
                threads.remove(thread)
    assert served.metrics(consistency="snapshot").as_of >= EVENTS + 3


def test_nothing_is_published_without_a_daemon(ledger: str) -> None:
    fill(ledger, 3)
    with connect(ledger) as cache:
        assert cache.published_as_of() is None
        assert cache.metrics().as_of == 3
    with ForkedDaemon(Path(ledger)), connect(ledger) as cache:
        cache.wait_for(3)
    with connect(ledger) as cache:
        # That of a daemon that has ended is published all the same.
        assert cache.published_as_of() == 3


def test_awaiting_lets_another_task_append_what_is_waited_for(ledger: str) -> None:
    fill(ledger, EVENTS)

    async def both() -> int:
        async with await connect_async(ledger) as cache:
            waiting = asyncio.ensure_future(cache.wait_for_async(EVENTS + 1, 10))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await cache.append_async("user", "from another task")
            return await waiting

    with ForkedDaemon(Path(ledger)):
        assert asyncio.run(both()) == EVENTS + 1


GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys, time, gevent
from pmm_shm_client import connect
cache = connect(sys.argv[1])
wanted = cache.metrics().as_of + 1
def polling():
    while (cache.published_as_of() or 0) < wanted:
        gevent.sleep(0.005)
    return "published"
def appending():
    gevent.sleep(0.1)
    return cache.append("user", "from another green thread")
began = time.monotonic()
done = gevent.joinall([gevent.spawn(polling), gevent.spawn(appending)], timeout=10, raise_error=True)
print([one.value for one in done] and time.monotonic() - began < 5, cache.wait_for(wanted) == wanted)
"""


def test_gevent_itself(served: Cache) -> None:
    pytest.importorskip("gevent", reason="gevent is not installed; the tests above need none")
    done = run_python(GEVENT, served.path, forked=False)
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr
