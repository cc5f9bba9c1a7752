"""Hazards of processes, clocks and permissions, each with real processes where the promise is about them.

The rows' numbers are those of the list of hazards; see `docs/RELIABILITY.md` for the answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from pmm_cached.commands import CommandServer
from pmm_cached.logs import configure
from pmm_cached.status import Status
from pmm_shm.errors import PmmShmError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.files import ledger_file_id
from pmm_shm.ledger.locks import WAL_DMS_BYTE, holds_lock
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints
from pmm_shm.wire.protocol import Request, unpack_reply
from pmm_shm_client import Cache, connect, connect_async
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.daemons import DEADLINE_S, Daemon, environment, run_python, until
from tests.support.hazards import event
from tests.support.mounts import in_mount_namespace
from tests.support.privileges import AS_NOBODY, as_nobody
from tests.support.user_folds import EXAMPLE, Site

# Hazard 14.


class NoTexts:
    """Stands in for the table of text vectors."""

    def has(self, model: str, key: bytes) -> bool:
        return False


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_stalled_subscriber_neither_blocks_the_publisher_nor_grows_its_memory(folder: Path) -> None:
    """Hazard 14: 200,000 announcements to one that never reads; commands are answered all the while."""
    endpoints = Endpoints(*(str(folder / name) for name in ("commands", "admin", "announcements")), os.getpid())
    server = CommandServer(endpoints, None, NoTexts(), Status("x"), configure("json", "error"), lambda _: True, print)  # type: ignore[arg-type]
    server.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stalled, asking = context.socket(zmq.SUB), context.socket(zmq.DEALER)
    try:
        # It reads nothing, and its own side holds next to nothing: what is announced piles up at the publisher.
        stalled.setsockopt(zmq.RCVHWM, 1)
        stalled.setsockopt(zmq.RCVBUF, 4_096)
        stalled.setsockopt(zmq.SUBSCRIBE, b"")
        stalled.connect("ipc://" + endpoints.announcements)
        asking.connect("ipc://" + endpoints.commands)
        until(lambda: _announce_and_poll(server, stalled), "the subscription")

        def announce(start: int) -> None:
            for number in range(start, start + 1_000):
                server.announce(number, number)
            # Behind all that was posted: the publisher has sent or dropped them.
            asking.send(Request(start, protocol.PING, {}, None).pack())
            assert asking.poll(10_000), "the publisher is blocked"
            assert unpack_reply(asking.recv(), start)["pid"] == os.getpid()

        for start in range(0, 20_000, 1_000):
            announce(start)
        before = resident_bytes()
        for start in range(20_000, 200_000, 1_000):
            announce(start)
        assert resident_bytes() - before < 8 << 20
    finally:
        stalled.close(linger=0)
        asking.close(linger=0)
        context.term()
        server.stop()


def _announce_and_poll(server: CommandServer, subscriber: zmq.Socket[bytes]) -> bool:
    server.announce(0, 0)
    return bool(subscriber.poll(20))


STALLED = """
import asyncio, os, signal, sys
from pmm_shm_client import connect_async
async def listen():
    async with await connect_async(sys.argv[1]) as cache:
        async for announcement in cache.announcements():
            print(announcement.as_of, flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
asyncio.run(listen())
"""


def test_reads_are_exact_and_the_newest_position_is_heard_whoever_stalls(
    ledger: str, start_daemon: StartDaemon
) -> None:
    """Hazard 14: one subscriber is stopped for good, one was slow and hears of the newest position, not of all."""
    daemon = start_daemon(ledger)
    stalled = subprocess.Popen(
        [sys.executable, "-c", STALLED, ledger], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert stalled.stdout is not None
    try:
        with connect(ledger) as cache:
            heard = threading.Event()
            listener = threading.Thread(target=lambda: (stalled.stdout.readline(), heard.set()))  # type: ignore[union-attr]
            listener.start()
            while not heard.wait(0.01):
                cache.append("autonomy_tick")
            listener.join()
            assert asyncio.run(_slow_listener(ledger)) <= 3
            newest = cache.append("identity_adopt", "Ada")
            assert cache.wait_for(newest, DEADLINE_S) == newest
            assert everything(cache) == replayed(ledger)
            assert daemon.stats()["as_of"] == newest
    finally:
        stalled.kill()
        stalled.wait()
        stalled.stdout.close()


async def _slow_listener(ledger: str) -> int:
    """How many announcements one had to take, after 200 were missed, to hear of the newest position."""
    async with await connect_async(ledger) as cache:
        announcements = cache.announcements()
        first = asyncio.ensure_future(anext(announcements))
        while not (await asyncio.wait([first], timeout=0.01))[0]:
            await cache.append_async("autonomy_tick")
        for _ in range(200):
            newest = cache.append("autonomy_tick")
            await cache.wait_for_async(newest, DEADLINE_S)
        taken, as_of = 0, 0
        while as_of < newest:
            as_of = (await asyncio.wait_for(anext(announcements), DEADLINE_S)).as_of
            taken += 1
        assert as_of == newest
        await announcements.aclose()
        return taken


# Hazard 16.


FULL_DISK = """
import json, os, subprocess, sys, time
from pmm_shm_client import connect
from pmm_shm.errors import PmmShmError
from tests.support.answers import everything, replayed
from tests.support.daemons import Daemon, until
ledger, shared = sys.argv[1:]
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", shared]).returncode:
    sys.exit(77)
os.environ["PMM_SHM_DIR"] = shared
with connect(ledger) as cache:
    cache.append("identity_adopt", "Ada")
    daemon = Daemon(ledger, forked=False)
    daemon.wait_ready()
    text = "t" * 300
    ids = cache.append_many([("commitment_open", "", {"cid": cid, "text": text}) for cid in range(1, 6_001)])
    newest = cache.append("identity_adopt", "Eve")
    full = until(lambda: (found := daemon.stats())["health"] == "degraded" and found, "it is degraded")
    published = cache.identity(consistency="snapshot").name
    exact = everything(cache) == replayed(ledger)
    behind = full["as_of"] < newest
    subprocess.run(["mount", "-o", "remount,size=64m", shared], check=True)
    cache.wait_for(newest, 30.0)
    until(lambda: daemon.stats()["health"] == "healthy", "it has recovered")
    after = everything(cache) == replayed(ledger) and cache.verify().ok
    print(json.dumps([published, exact, behind, full["problem"], after, daemon.process.poll()]))
    daemon.kill()
"""


def test_a_full_disk_is_survived(ledger: str, tmp_path: Path) -> None:
    """Hazard 16: a tmpfs without room: the old snapshot stands, reads are exact, and it goes on when there is room."""
    shared = tmp_path / "shared"
    shared.mkdir()
    published, exact, behind, problem, after, code = in_mount_namespace(FULL_DISK, ledger, str(shared))
    assert (published, exact, behind, after, code) == ("Ada", True, True, True, None)
    assert str(shared) in problem


# Hazard 20.


def poisoned(failure: str) -> str:
    """The example fold, which fails at one event, half through."""
    source = EXAMPLE.read_text(encoding="utf-8").replace(
        '        state["last"] = tool\n',
        f'        state["last"] = tool\n        if tool == "poison":\n            {failure}\n',
    )
    return source.replace("from collections", "import sys\nfrom collections", 1)


@pytest.mark.parametrize("failure", ['raise ValueError("poison")', "sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_poison_event_is_quarantined_once_and_no_restart_loops(
    ledger: str, tmp_path: Path, start_daemon: StartDaemon, failure: str
) -> None:
    """Hazard 20: folded live, by rebuilds and by verifications; counted once, said, and never the end of a daemon."""
    site = Site(tmp_path / "site")
    site.install(poisoned(failure))
    sys.modules.pop("tool_use", None)

    def healthy(daemon: Daemon, cache: Cache) -> None:
        newest = cache.append("identity_adopt", "Ada")
        daemon.wait_published(newest)
        numbers = daemon.stats()
        assert (numbers["quarantined"], numbers["health"]) == (1, "degraded")
        assert numbers["quarantine"][0][:2] == [poison, "tool_use"]
        assert (numbers["as_of"], numbers["problem"]) == (newest, None)
        assert cache.verify(timeout=DEADLINE_S).ok
        assert everything(cache) == replayed(ledger)

    daemon = start_daemon(ledger, env=site.environment)
    with connect(ledger) as cache:
        cache.append("tool_call", "", {"tool": "search"})
        poison = cache.append("tool_call", "", {"tool": "poison"})
        cache.append("tool_call", "", {"tool": "search"})
        healthy(daemon, cache)
        for turn in range(2):
            daemon.kill() if turn else daemon.stop()
            daemon = start_daemon(ledger, env=site.environment)
            healthy(daemon, cache)
        cache.invalidate(timeout=DEADLINE_S)
        healthy(daemon, cache)
    read = run_python(
        "import sys\nfrom pmm_shm_client import connect\n"
        "with connect(sys.argv[1]) as cache: print(dict(cache.fold('tool_use')['calls']), cache._reader.replays)\n",
        ledger,
        env=site.environment,
    )
    assert (read.stdout, read.stderr, read.returncode) == ("{'search': 2} 0\n", "", 0)
    assert daemon.stop() == 0
    alone = run_python(
        "import sys\nfrom pmm_shm_client import connect\n"
        "from pmm_shm_client import EventLog\n"
        "with connect(sys.argv[1], freshness='data_version') as cache:\n"
        "    cache.append('tool_call', '', {'tool': 'write'})\n"
        "    print(dict(cache.fold('tool_use')['calls']))\n",
        ledger,
        env=site.environment,
    )
    assert (alone.stdout, alone.stderr, alone.returncode) == ("{'search': 2, 'write': 1}\n", "", 0)


def test_who_is_told_to_end_within_a_fold_ends(ledger: str, tmp_path: Path) -> None:
    """Hazard 20: a program whose SIGTERM handler calls `sys.exit` ends, also where the fold fails at that event."""
    site = Site(tmp_path / "site")
    site.install(
        poisoned("""import time
            print("folding", flush=True)
            until = time.monotonic() + 20
            while time.monotonic() < until and not done: pass
            raise ValueError("poison")""").replace("class ToolUse", "done = []\n\n\nclass ToolUse")
    )
    with EventLog(ledger) as log:
        log.append("tool_call", "", {"tool": "poison"})
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, sys\nfrom pmm_shm_client import connect\nimport tool_use\n"
            "def end(*_):\n    tool_use.done.append(1)\n    sys.exit(7)\n"
            "signal.signal(signal.SIGTERM, end)\n"
            "connect(sys.argv[1]).fold('tool_use')\nprint('survived')\n",
            ledger,
        ],
        env=site.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "folding\n"
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 7
    assert "survived" not in stdout


# Hazard 22.


def stamps(count: int, how: str) -> list[str]:
    if how == "backwards":
        return [f"2026-01-01T00:{59 - number // 60 % 60:02}:{59 - number % 60:02}+00:00" for number in range(count)]
    wild = ["9999-12-31T23:59:59+00:00", "1970-01-01T00:00:00Z", "2026-03-29T02:30:00+02:00", "0001-01-01T00:00:00"]
    return [wild[number % 4] for number in range(count)]


def by_id(cache: Cache) -> list[Any]:
    fields = ("first_seen_id", "last_seen_id", "content", "seen_count", "sources")
    return sorted([row[field] for field in fields] for row in cache.directives())


@pytest.mark.parametrize("how", ["backwards", "wild"])
def test_a_ts_orders_nothing(tmp_path: Path, start_daemon: StartDaemon, how: str) -> None:
    """Hazard 22: the same events under a clock that jumps give the same answers, in the order of their ids."""
    events = [event(number) for number in range(300)]
    good, jumping = str(tmp_path / "good.db"), str(tmp_path / "jumping.db")
    with EventLog(good) as log:
        log.append_many([{**one, "ts": ledgers.TS.format(number)} for number, one in enumerate(events, 1)])
    with EventLog(jumping) as log, connect(jumping) as cache:
        daemon = start_daemon(jumping)
        for start in range(0, 300, 50):
            batch = [{**one, "ts": ts} for one, ts in zip(events, stamps(300, how), strict=True)]
            ids = log.append_many(batch[start : start + 50])
            daemon.wait_published(ids[-1])
            assert everything(cache) == replayed(jumping)
        assert log.verify_chain().ok
        assert cache.verify()
        with connect(good) as other:
            for name in ("self_model", "identity", "commitments", "metrics", "stage"):
                assert repr(getattr(cache, name)()) == repr(getattr(other, name)())
            # Rows of directives are listed by their first `ts`, as the contract has it; what they hold is not by it.
            assert by_id(cache) == by_id(other)
            assert [one.id for one in cache.recent().messages] == [one.id for one in other.recent().messages]
            assert cache.metrics().as_of == other.metrics().as_of == 300


JUMPING_DAEMON = """
import random, sys, time
jump = random.Random(1)
time.time = lambda: jump.uniform(0, 4e9)
time.time_ns = lambda: int(jump.uniform(0, 4e18))
from pmm_cached.main import main
main()
"""


def test_a_daemon_and_a_client_whose_clock_jumps_go_on(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard 22: commits, waits, leases, a verification and an end in time while the time of day is noise."""
    process = subprocess.Popen(
        [sys.executable, "-c", JUMPING_DAEMON, "--log-level", "error", ledger],
        env=environment(),
        stdin=subprocess.DEVNULL,
    )
    try:
        jumps = iter(range(10**9, -(10**9), -(10**6)))
        monkeypatch.setattr(time, "time", lambda: next(jumps))
        with connect(ledger) as cache:
            until(lambda: cache.stats()["daemon"] is not None, "the daemon answers")
            for number in range(20):
                newest = cache.append("identity_adopt", f"name {number}")
                assert cache.wait_for(newest, DEADLINE_S) >= newest
                started = time.monotonic()
                cache.embed(f"text {number}")
                assert time.monotonic() - started < 5.0
            assert cache.stats()["daemon"]["embeddings"]["leases_expired"] == 0
            assert cache.verify()
            assert everything(cache) == replayed(ledger)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


# Hazard 24.


ALONE = "without permission to write in its directory"


def test_a_reader_without_write_permission_needs_a_writer_beside_it(open_folder: Path) -> None:
    """Hazard 24: refused alone with a clear error, exact beside a live writer, refused again when it has left."""
    path = open_folder / "ledger.db"
    ledgers.build(path, 3)
    before = sorted(entry.name for entry in open_folder.iterdir())
    alone = as_nobody("read", path)
    assert (alone.returncode, alone.stderr) == (3, "")
    assert alone.stdout.startswith(f"LedgerUnreadableError: {path}: {ALONE}")
    assert alone.stdout.count("\n") == 1
    assert sorted(entry.name for entry in open_folder.iterdir()) == before
    with EventLog(path) as log:
        for expected in (4, 5, 6):
            assert log.append("user", "live") == expected
            beside = as_nobody("read", path)
            assert (beside.stdout, beside.stderr, beside.returncode) == (f"{expected} {expected}\n", "", 0)
        refused = as_nobody("append", path)
        assert refused.returncode == 3
        assert refused.stdout.startswith("LedgerUnwritableError: ")
        assert log.append("user", "live") == 7
    left = as_nobody("read", path)
    assert (left.returncode, ALONE in left.stdout) == (3, True)


def test_a_daemon_without_write_permission_needs_a_writer_beside_it(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard 24: the same of a daemon, whose instance directory lies where it may write."""
    path = open_folder / "ledger.db"
    ledgers.build(path, 3)
    shared = open_folder / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    if os.getuid() == 0:
        # Whose folder it is, his daemon is trusted.
        os.chown(shared, pwd.getpwnam("nobody").pw_uid, -1)
    monkeypatch.setenv("PMM_SHM_DIR", str(shared))
    alone = as_nobody("pmm-cached", path)
    assert (alone.returncode, alone.stdout) == (1, "")
    assert alone.stderr.startswith(f"pmm-cached: {path}: {ALONE}")
    assert alone.stderr.count("\n") == 1
    assert list(shared.iterdir()) == []
    with connect(path) as cache:
        cache.append("user", "live")
        with subprocess.Popen(
            [sys.executable, "-c", AS_NOBODY, "pmm-cached", str(path)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as daemon:
            try:
                until(lambda: cache.stats()["daemon"], "the daemon answers")
                for _ in range(5):
                    newest = cache.append("identity_adopt", "Ada")
                    assert cache.wait_for(newest, DEADLINE_S) >= newest
                assert cache.stats()["daemon"]["problem"] is None
                assert everything(cache) == replayed(str(path))
                assert Instance.of(path).directory.stat().st_uid == daemon_uid(daemon.pid)
            finally:
                daemon.kill()


def daemon_uid(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


# Hazard 32.


FOREIGN = """
import sqlite3, sys
for turn in range(20):
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', 'foreign', '{}')")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    print(flush=True)
    sys.stdin.readline()
"""


def test_a_foreign_process_does_not_truncate_the_shm_file_under_our_lock(
    ledger: str, start_daemon: StartDaemon
) -> None:
    """Hazard 32: it opens, checkpoints and closes; the mapped file keeps inode and size, and the mark tells it all."""
    daemon = start_daemon(ledger)
    shm = ledger + "-shm"
    with connect(ledger) as cache:
        cache.append("user", "own")
        cache.metrics()
        assert cache._reader.freshness.is_trusted()
        inode, size = os.stat(shm).st_ino, os.stat(shm).st_size
        sizes: set[tuple[int, int]] = set()
        is_done = threading.Event()

        def watch() -> None:
            while not is_done.is_set():
                status = os.stat(shm)
                sizes.add((status.st_ino, status.st_size))

        watcher = threading.Thread(target=watch)
        watcher.start()
        foreign = subprocess.Popen(
            [sys.executable, "-c", FOREIGN, ledger], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert foreign.stdin is not None
        assert foreign.stdout is not None
        try:
            for turn in range(2, 22):
                assert foreign.stdout.readline() == "\n"
                assert cache.metrics().as_of == turn
                assert holds_lock(ledger_file_id(shm), WAL_DMS_BYTE)
                foreign.stdin.write("\n")
                foreign.stdin.flush()
            assert foreign.wait(DEADLINE_S) == 0
        finally:
            is_done.set()
            watcher.join()
            foreign.kill()
            foreign.communicate()
        assert sizes == {(inode, size)}
        daemon.wait_published(21)
        assert everything(cache) == replayed(ledger)
        assert cache.append("user", "own") == 22
        assert daemon.process.poll() is None
        with pytest.raises(PmmShmError):
            cache.wait_for(10**6, 0.1)
        assert json.loads(json.dumps(cache.stats()))["daemon"]["problem"] is None
