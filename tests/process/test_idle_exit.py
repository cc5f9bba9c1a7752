"""A daemon that ends when nobody needs it, and what goes on without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmm_shm.errors import DaemonAbsentError
from pmm_shm.instance.paths import Instance
from pmm_shm_client import Cache, commands, connect, connect_async
from pmm_shm_client.autostart import is_running
from tests.conftest import StartDaemon
from tests.support import answers
from tests.support.daemons import DEADLINE_S, Daemon, end, run_daemon, serving
from tests.support.ledgers import build

IDLE_S = 1.0


def still_runs_after(daemon: Daemon, seconds: float, act: Callable[[], object]) -> bool:
    """Whether it runs after so long in which `act` was called several times an idle time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        act()
        time.sleep(IDLE_S / 5)
    return daemon.process.poll() is None


@pytest.mark.parametrize("act", ["append", "command", "report"])
def test_whoever_is_used_stays(ledger: str, start_daemon: StartDaemon, act: str) -> None:
    daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
    with connect(ledger) as cache:
        acts: dict[str, Callable[[], object]] = {
            "append": lambda: cache.append("user", "hello"),
            "command": cache.stats,
            "report": lambda: (cache.metrics(), cache._reporter.report()),
        }
        assert still_runs_after(daemon, 2.5 * IDLE_S, acts[act])
    assert daemon.process.wait(DEADLINE_S) == 0


def test_reads_go_on_without_it(tmp_path: Path, start_daemon: StartDaemon) -> None:
    ledger = build(tmp_path / "agent.db", 50)
    with connect(ledger) as cache:
        daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
        before = cache.metrics()
        # Plain reads leave no trace in it.
        assert daemon.process.wait(DEADLINE_S) == 0
        assert '"event": "idle"' in daemon.log.read_text(encoding="utf-8")
        assert cache.metrics() == before
        cache.append("identity_adopt", "Ada")
        assert answers.everything(cache) == answers.replayed(ledger)
    with connect(ledger) as cache:
        assert cache.identity().name == "Ada"


def test_a_client_that_waits_is_answered(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
    answer = daemon.call("wait", {"event_id": 5, "timeout_ms": int(2.5 * IDLE_S * 1_000)}, DEADLINE_S)
    assert answer == {"reached": False, "as_of": 0}


def test_a_stop_of_this_kind_is_a_clean_one(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        cache.append("identity_adopt", "Ada")
        first = start_daemon(ledger, "--idle-exit", str(IDLE_S))
        assert first.process.wait(DEADLINE_S) == 0
        second = start_daemon(ledger)
        assert second.stats()["rebuilds"] == 0
        assert cache.identity(consistency="snapshot").name == "Ada"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon"])
def test_wrong_values(ledger: str, value: str) -> None:
    ran = run_daemon(ledger, "--idle-exit", value)
    assert (ran.returncode, ran.stdout) == (2, "")


@pytest.fixture
def autostarted(ledger: str, start_daemon: StartDaemon) -> Iterator[Cache]:
    """A client that starts daemons; the one that it found has ended, because it was idle."""
    daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
    with connect(ledger, autostart=True) as cache:
        assert daemon.process.wait(DEADLINE_S) == 0
        assert not is_running(Instance.of(ledger))
        yield cache
    for pid in serving(ledger):
        end(pid)


@pytest.mark.parametrize("ask", ["stats", "invalidate", "verify", "wait_for", "embed"])
def test_a_client_that_starts_daemons_starts_it_again(autostarted: Cache, ask: str) -> None:
    newest = autostarted.append("user", "hello")
    # Reads and appends need none.
    assert autostarted.recent().as_of == newest
    assert not is_running(autostarted._instance)
    asks: dict[str, Callable[[], object]] = {
        "stats": lambda: autostarted.stats()["daemon"]["pid"],
        "invalidate": lambda: autostarted.invalidate() == newest,
        "verify": autostarted.verify,
        "wait_for": lambda: autostarted.wait_for(newest, DEADLINE_S) == newest,
        "embed": lambda: autostarted.embed("some text").shape,
    }
    assert asks[ask]()
    assert is_running(autostarted._instance)
    assert commands.call(autostarted._instance, "stats", {}, DEADLINE_S)["embeddings"]["text_vectors"] == (
        ask == "embed"
    )


def test_an_asyncio_client_starts_it_again(ledger: str, start_daemon: StartDaemon) -> None:
    async def ask() -> int:
        async with await connect_async(ledger, autostart=True) as cache:
            assert daemon.process.wait(DEADLINE_S) == 0
            return await cache.wait_for_async(cache.append("user", "hello"), DEADLINE_S)

    daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
    try:
        assert asyncio.run(ask()) == 1
    finally:
        for pid in serving(ledger):
            end(pid)


def test_other_clients_start_none(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, "--idle-exit", str(IDLE_S))
    with connect(ledger) as cache:
        assert daemon.process.wait(DEADLINE_S) == 0
        assert cache.stats()["daemon"] is None
        with pytest.raises(DaemonAbsentError):
            cache.wait_for(5, 1.0)
        assert cache.verify()


def test_a_daemon_that_a_client_starts_ends_when_idle(ledger: str) -> None:
    with connect(ledger, autostart=True):
        (pid,) = serving(ledger)
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        end(pid)
    assert arguments[arguments.index(b"--idle-exit") + 1] == b"900"
