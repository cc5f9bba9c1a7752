"""Stores of a daemon that was killed, and what is left of them after a power loss."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pmm_shm.errors import DaemonAbsentError, DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.store.environment import close, open_reader
from pmm_shm.wire import protocol
from pmm_shm_client import EventLog, commands, connect
from tests.conftest import StartDaemon
from tests.support.daemons import until
from tests.support.fork_daemon import ForkedDaemon

NEVER = ("--verify-every", "0")
PAGE_BYTES = 4_096


def opens(start: int, count: int, text_bytes: int = 300) -> list[tuple[str, str, dict[str, Any]]]:
    """Commitments that stay open, so that their number says how many events there are."""
    return [
        ("commitment_open", "", {"cid": f"c{number}", "text": "t" * text_bytes})
        for number in range(start, start + count)
    ]


def append(ledger: str, start: int, count: int, text_bytes: int = 300) -> None:
    with EventLog(ledger) as log:
        log.append_many(opens(start, count, text_bytes))


def published(ledger: str) -> int:
    with connect(ledger, consistency="snapshot") as cache:
        return cache.metrics().as_of


def _problem(instance: Instance) -> Any:
    try:
        return commands.call(instance, protocol.STATS, {}, 1.0)["problem"]
    except DaemonError:
        return None


def _places(ledger: str) -> set[int]:
    """Pids in the table of readers; to look clears those of dead processes, and these left by themselves."""
    env = open_reader(Instance.of(ledger).directory)
    assert env is not None
    try:
        return {int(line.split()[0]) for line in env.env.readers().splitlines() if line.split()[0].isdigit()}
    finally:
        close(env)


def kill_with_older_copy(ledger: str, start_daemon: StartDaemon) -> bytes:
    """A daemon that published 300 events and was killed at 500; what its data file was at 300."""
    append(ledger, 0, 300)
    daemon = start_daemon(ledger, *NEVER)
    until(lambda: daemon.stats()["embeddings"]["tables"], "the indexer stands")
    daemon.kill()
    older = daemon.instance.data_file.read_bytes()
    daemon = start_daemon(ledger, *NEVER)
    for start in range(300, 500, 20):
        append(ledger, start, 20)
    daemon.wait_ready()
    daemon.kill()
    return older


def put(instance: Instance, data: bytes, **mark: Any) -> None:
    """Another data file, as a disk may hold it after a power loss, and the mark beside it."""
    temporary = instance.data_file.with_name("torn")
    temporary.write_bytes(data)
    temporary.replace(instance.data_file)
    instance.data_file.with_name("lock.mdb").unlink()
    if mark:
        instance.boot_file.write_text(json.dumps(mark))


def pages_of(data: bytes) -> list[bytes]:
    return [data[start : start + PAGE_BYTES] for start in range(0, len(data), PAGE_BYTES)]


def zeroed(data: bytes, older: bytes, chance: random.Random) -> bytes:
    return b"".join(bytes(PAGE_BYTES) if chance.random() < 0.2 else page for page in pages_of(data))


def half_older(data: bytes, older: bytes, chance: random.Random) -> bytes:
    pages, others = pages_of(data), pages_of(older)
    return b"".join(
        others[number] if number < len(others) and chance.random() < 0.5 else page for number, page in enumerate(pages)
    )


def truncated(data: bytes, older: bytes, chance: random.Random) -> bytes:
    return data[: PAGE_BYTES * chance.randrange(1, len(data) // PAGE_BYTES)]


def newest_meta_only(data: bytes, older: bytes, chance: random.Random) -> bytes:
    """Both meta pages reached the disk, of the rest what was there before."""
    return data[: 2 * PAGE_BYTES] + older[2 * PAGE_BYTES :]


def half_a_meta(data: bytes, older: bytes, chance: random.Random) -> bytes:
    return data[:64] + bytes(PAGE_BYTES - 64) + data[PAGE_BYTES : PAGE_BYTES + 40] + data[2 * PAGE_BYTES - 40 :]


def nothing(data: bytes, older: bytes, chance: random.Random) -> bytes:
    return b""


TEARINGS = [zeroed, half_older, truncated, newest_meta_only, half_a_meta, nothing]
Tear = Callable[[bytes, bytes, random.Random], bytes]


def survive(ledger: str) -> list[str]:
    """Start daemons until one serves and has verified its state; what became of each."""
    instance, outcomes = Instance.of(ledger), []
    for _ in range(4):
        with ForkedDaemon(Path(ledger), *NEVER, waits=False) as daemon:
            outcome = _served(instance, daemon)
            if outcome in ("right", "wrong, rebuilt"):
                assert daemon.stop() == 0
                return [*outcomes, outcome]
            code = daemon.join(10.0)
            assert code is not None, outcome
            outcomes.append(signal.Signals(-code).name if code < 0 else f"exit {code}")
    # LMDB's own assertions end the process, and nothing tells the next start: see the architecture's weak points.
    assert set(outcomes) <= {"SIGABRT", "SIGSEGV", "SIGBUS", "exit 1"}, outcomes
    instance.boot_file.unlink()
    with ForkedDaemon(Path(ledger), *NEVER) as daemon:
        assert _served(instance, daemon) == "right"
        assert daemon.stop() == 0
    return [*outcomes, "right without boot.json"]


def _served(instance: Instance, daemon: ForkedDaemon) -> str:
    deadline = time.monotonic() + 20.0
    was_wrong = False
    while daemon.is_alive and time.monotonic() < deadline:
        try:
            commands.call(instance, protocol.PING, {}, 1.0)
            commands.call(instance, protocol.WAIT, {"event_id": 500, "timeout_ms": 5_000}, 6.0)
            report = commands.call(instance, protocol.VERIFY, {"fold": None}, 10.0)
        except DaemonAbsentError:
            time.sleep(0.005)
            continue
        except DaemonError:
            continue
        if report["ok"] and report["folds"] and report["as_of"] == 500:
            return "wrong, rebuilt" if was_wrong else "right"
        was_wrong = was_wrong or not report["ok"]
    return "ended" if not daemon.is_alive else "neither serves nor ends"
