"""Daemon and client of different versions, of the stored format and of the protocol: exact reads go on, and what cannot
be had is a clear error, as `docs/FORMAT.md` has it under "Versions".
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import CommandError, DaemonError, SnapshotUnavailableError, StoreError
from pmm_shm.instance.paths import Instance
from pmm_shm.store import layout
from pmm_shm.wire import protocol
from pmm_shm_client import Cache, connect, connect_async
from tests.conftest import StartDaemon
from tests.support.answers import everything, replayed
from tests.support.daemons import environment, until

# A daemon of another version, but for the one number the same.
OTHER = """
import sys
from pmm_cached.main import main
from pmm_shm.wire import protocol
from pmm_shm.store import layout
layout.FORMAT, protocol.VERSION = int(sys.argv.pop(1)), int(sys.argv.pop(1))
main()
"""
DIFFERENT = [layout.FORMAT - 1, layout.FORMAT + 1]
OURS = protocol.VERSION
DIFFERENT_PROTOCOLS = [protocol.VERSION - 1, protocol.VERSION + 1, 1_000]


@contextmanager
def other_daemon(ledger: str, *, format_: int = layout.FORMAT, version: int = protocol.VERSION) -> Iterator[Path]:
    """A daemon with these two numbers; gives its log."""
    log = Path(ledger).with_name(f"other-{time.monotonic_ns()}.log")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(format_), str(version), "--log-format", "json", ledger],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: '"serving"' in log.read_text(encoding="utf-8"), "the other daemon serves")
        yield log
        assert process.poll() is None, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()


def fill(cache: Cache, name: str) -> int:
    """Append some; returns the newest id."""
    cache.append("commitment_open", "promise", {"cid": name, "text": "t"})
    return cache.append("identity_adopt", name)


@pytest.mark.parametrize("number", DIFFERENT)
def test_a_client_of_another_format_folds_the_ledger_itself(
    ledger: str, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        daemon.wait_published(fill(cache, "Ada"))
    monkeypatch.setattr(layout, "FORMAT", number)
    with connect(ledger) as cache:
        assert cache.identity().name == "Ada"
        newest = fill(cache, "Eve")
        assert everything(cache) == replayed(ledger)
        assert cache._reader.replays == 1
        with pytest.raises(SnapshotUnavailableError) as caught:
            cache.identity(consistency="snapshot")
        assert f"format {layout.FORMAT}" in str(caught.value)
        # Messages are of the same version.
        assert cache.wait_for(newest, 30.0) == newest
        assert cache.stats()["daemon"]["pid"] == daemon.pid
        assert cache.verify().as_of == newest
        assert len(cache.embed("some text")) > 0
    monkeypatch.undo()
    with connect(ledger) as cache:
        assert cache.identity(consistency="snapshot").name == "Eve"
        assert everything(cache) == replayed(ledger)
        assert cache._reader.replays == 0


@pytest.mark.parametrize("number", DIFFERENT)
def test_a_daemon_makes_an_environment_of_another_format_anew(
    ledger: str, start_daemon: StartDaemon, number: int
) -> None:
    daemon = start_daemon(ledger)
    data = daemon.instance.data_file
    with connect(ledger) as cache:
        daemon.wait_published(fill(cache, "Ada"))
        # The client has the old one open from here on, so its inode is not given to the new one.
        assert cache.identity(consistency="snapshot").name == "Ada"
        assert daemon.stop() == 0
        inode = data.stat().st_ino
        with other_daemon(ledger, format_=number) as log:
            until(lambda: '"rebuild ends"' in log.read_text(encoding="utf-8"), "the rebuild")
            assert data.stat().st_ino != inode
            newest = fill(cache, "Eve")
            assert everything(cache) == replayed(ledger)
            with pytest.raises(SnapshotUnavailableError):
                cache.identity(consistency="snapshot")
            assert cache.wait_for(newest, 30.0) == newest
        start_daemon(ledger)
        cache.wait_for(newest, 30.0)
        assert cache.identity(consistency="snapshot").name == "Eve"
        assert everything(cache) == replayed(ledger)
        assert cache.verify()


def refusals(cache: Cache) -> list[str]:
    """What each command says, and that it says it at once."""
    said = []
    calls: list[Callable[[], Any]] = [
        lambda: cache.wait_for(1_000, 30.0),
        lambda: cache.verify(timeout=30.0),
        lambda: cache.invalidate(timeout=30.0),
    ]
    for call in calls:
        started = time.monotonic()
        with pytest.raises(CommandError) as caught:
            call()
        assert time.monotonic() - started < 5.0
        said.append(str(caught.value))
    return said


@pytest.mark.parametrize("side", ["daemon", "client"])
@pytest.mark.parametrize("number", DIFFERENT_PROTOCOLS)
def test_another_protocol_version_is_a_clear_refusal_and_reads_go_on(
    ledger: str, monkeypatch: pytest.MonkeyPatch, side: str, number: int
) -> None:
    theirs, ours = (number, OURS) if side == "daemon" else (OURS, number)
    with other_daemon(ledger, version=theirs) as log, connect(ledger) as cache:
        monkeypatch.setattr(protocol, "VERSION", ours)
        newest = fill(cache, "Ada")
        assert everything(cache) == replayed(ledger)
        # What is published is of the same format, whatever the messages are.
        until(lambda: snapshot_of(cache) == newest, "the daemon publishes")
        assert cache.identity(consistency="snapshot").name == "Ada"
        assert cache.stats()["daemon"] is None
        wanted = f"the daemon speaks protocol version {theirs}, this client {ours}"
        assert all(text.startswith(wanted) for text in refusals(cache))
        assert (cache.embed("some text") == cache.embed("some text")).all()
        assert asyncio.run(announced(ledger)) is None
        assert connect(ledger, autostart=True).identity().name == "Ada"
        assert '"malformed message"' in log.read_text(encoding="utf-8")
        assert '"command failed"' not in log.read_text(encoding="utf-8")
        assert everything(cache) == replayed(ledger)


def snapshot_of(cache: Cache) -> int | None:
    try:
        return cache.metrics(consistency="snapshot").as_of
    except (SnapshotUnavailableError, StoreError):
        return None


async def announced(ledger: str) -> Any:
    """An announcement, while there surely are some; None where none is taken for one."""
    async with await connect_async(ledger) as cache:
        announcements = cache.announcements()
        wanted = asyncio.ensure_future(anext(announcements))
        for _ in range(20):
            await cache.append_async("autonomy_tick")
            done, _ = await asyncio.wait([wanted], timeout=0.02)
            if done:
                return wanted.result()
        with pytest.raises(DaemonError):
            await cache.wait_for_async(1_000, 30.0)
        wanted.cancel()
        await asyncio.wait([wanted])
        await announcements.aclose()
    return None


def test_announcements_of_the_same_version_are_taken(ledger: str, start_daemon: StartDaemon) -> None:
    """What the test above sees nothing of is there to be seen."""
    start_daemon(ledger)
    assert Instance.of(ledger).endpoints_file.exists()
    found = asyncio.run(announced(ledger))
    assert found is not None
    assert found.as_of > 0
