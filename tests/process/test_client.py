"""The client: consistency, commands and their deadlines, autostart, asyncio, threads, fork, exit."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.errors import (
    ClosedError,
    CommandError,
    DaemonAbsentError,
    DaemonTimeoutError,
    UnknownFoldError,
)
from pmm_shm.instance.paths import Instance
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_client import AsyncCache, Cache, EventLog, connect, connect_async
from tests.conftest import StartDaemon
from tests.support import answers, daemons, ledgers
from tests.support.waiting import SHORT_S, at_most, raises_within


def name_of(cache: Cache, **options: Any) -> Any:
    return cache.identity(**options).name


# Consistency.


def test_a_snapshot_is_what_is_published_whatever_the_ledger_says(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger, consistency="snapshot") as cache:
        first = cache.append("identity_adopt", "Ada", {})
        daemon = start_daemon(ledger)
        assert (name_of(cache), cache.identity().as_of) == ("Ada", first)
        daemon.freeze()
        second = cache.append("identity_adopt", "Eve", {})
        assert (name_of(cache), cache.frame().as_of) == ("Ada", first)
        assert (name_of(cache, consistency="exact"), cache.frame(consistency="exact").as_of) == ("Eve", second)
        assert name_of(cache) == "Ada"
        daemon.thaw()
        daemons.until(lambda: name_of(cache) == "Eve")
        daemon.stop()
        assert name_of(cache) == "Eve"


def test_wait_gives_what_the_head_was_at_the_call(ledger: str, start_daemon: StartDaemon) -> None:
    start_daemon(ledger)
    with connect(ledger, consistency="wait") as cache, connect(ledger) as exact:
        for number in range(20):
            event_id = exact.append("identity_adopt", f"name {number}", {})
            assert (name_of(cache), cache.identity().as_of) == (f"name {number}", event_id)
            assert cache.frame().as_of == event_id
            assert name_of(exact, consistency="wait") == f"name {number}"
        assert cache.stats()["projection"]["events_processed"] == 0


def test_wait_with_a_stopped_daemon_raises_within_its_deadline(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger, consistency="wait", timeout=SHORT_S) as cache:
        daemon = start_daemon(ledger)
        cache.append("identity_adopt", "Ada", {})
        assert name_of(cache) == "Ada"
        daemon.freeze()
        cache.append("identity_adopt", "Eve", {})
        for read in (cache.identity, cache.metrics, cache.frame):
            assert ledger in raises_within(DaemonTimeoutError, read)
        assert name_of(cache, consistency="exact") == "Eve"
        daemon.thaw()
        daemon.wait_published(2)
        assert name_of(cache) == "Eve"


def test_wait_without_a_daemon_raises_unless_all_is_published(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger, consistency="wait") as cache:
        cache.append("identity_adopt", "Ada", {})
        raises_within(DaemonAbsentError, cache.identity)
        start_daemon(ledger).stop()
        assert name_of(cache) == "Ada"
        cache.append("debug", "", {})
        raises_within(DaemonAbsentError, cache.identity)


# Commands.


def test_wait_for_returns_once_published(cache: Cache, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(cache.path)
    for _ in range(10):
        event_id = cache.append("debug", "", {})
        assert cache.wait_for(event_id, 30.0) >= event_id
        assert daemon.stats()["as_of"] >= event_id
    daemon.stop()
    assert cache.wait_for(event_id) >= event_id


def test_wait_for_an_event_that_does_not_come_times_out(cache: Cache, start_daemon: StartDaemon) -> None:
    start_daemon(cache.path)
    started = time.monotonic()
    # The daemon's answer, or its absence on a busy machine.
    said = raises_within(DaemonTimeoutError, lambda: cache.wait_for(10, SHORT_S))
    assert re.search(r"event 10 was not published|the daemon did not answer wait", said)
    assert time.monotonic() - started >= SHORT_S * 0.5
    raises_within(DaemonTimeoutError, lambda: cache.wait_for(10, 0.0))
    raises_within(DaemonTimeoutError, lambda: cache.wait_for(1 << 62, 0.1))


def test_wait_for_is_answered_when_the_event_comes(cache: Cache, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(cache.path)
    found: list[int] = []
    before = daemon.stats()["commands"]
    waiter = threading.Thread(target=lambda: found.append(cache.wait_for(1, 30.0)))
    waiter.start()
    # Each look at the stats is a command too, and counts itself.
    looks = itertools.count(2)
    daemons.until(lambda: daemon.stats()["commands"] >= before + next(looks), "the daemon knows of the waiter")
    assert cache.append("debug", "", {}) == 1
    waiter.join(30)
    assert found == [1]


def test_verify_reports_the_same_with_and_without_a_daemon(cache: Cache, start_daemon: StartDaemon) -> None:
    cache.append("identity_adopt", "Ada", {})
    daemon = start_daemon(cache.path)
    with_daemon = cache.verify()
    one = cache.verify("metrics")
    daemon.stop()
    assert set(cache.verify().folds) == set(with_daemon.folds)
    assert cache.verify("metrics") == one
    assert one.folds == ("metrics",)
    assert (with_daemon.as_of, with_daemon.events) == (1, 1)


def test_invalidate_all_and_one(cache: Cache, start_daemon: StartDaemon) -> None:
    cache.append("identity_adopt", "Ada", {})
    daemon = start_daemon(cache.path)
    before = daemon.stats()["rebuilds"]
    expected = answers.everything(cache)
    assert cache.invalidate() == 1
    assert cache.invalidate("metrics") == 1
    assert cache.invalidate(fold="self_model") == 1
    assert daemon.stats()["rebuilds"] == before + 3
    assert answers.everything(cache) == expected
    assert cache.verify()


def test_reads_go_on_exactly_through_rebuilds(cache: Cache, start_daemon: StartDaemon) -> None:
    start_daemon(cache.path)
    stop = threading.Event()
    failures: list[BaseException] = []

    def rebuild() -> None:
        try:
            with connect(cache.path) as other:
                while not stop.is_set():
                    other.invalidate()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=rebuild)
    thread.start()
    try:
        for number in range(150):
            event_id = cache.append("identity_adopt", f"name {number}", {})
            assert (name_of(cache), cache.frame().as_of) == (f"name {number}", event_id)
    finally:
        stop.set()
        thread.join(30)
    assert failures == []
    assert cache.verify()


@pytest.mark.parametrize("has_daemon", [False, True])
def test_an_unknown_fold_is_a_clear_error(cache: Cache, start_daemon: StartDaemon, has_daemon: bool) -> None:
    if has_daemon:
        start_daemon(cache.path)
    for action in (lambda: cache.fold("nope"), lambda: cache.frame().fold("nope"), lambda: cache.verify("nope")):
        text = raises_within(UnknownFoldError, action)
        assert "'nope'" in text
        assert "self_model" in text
    text = raises_within(CommandError if has_daemon else DaemonAbsentError, lambda: cache.invalidate("nope"))
    assert "nope" in text or not has_daemon


def test_a_killed_daemon_is_an_absent_one(cache: Cache, start_daemon: StartDaemon) -> None:
    cache.append("identity_adopt", "Ada", {})
    start_daemon(cache.path).kill()
    raises_within(DaemonAbsentError, cache.invalidate, 0.0)
    assert cache.stats()["daemon"] is None
    assert cache.verify().as_of == 1
    cache.append("identity_adopt", "Eve", {})
    assert name_of(cache) == "Eve"


def test_commands_to_a_stopped_daemon_raise_within_their_deadline(cache: Cache, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(cache.path)
    cache.append("identity_adopt", "Ada", {})
    assert name_of(cache) == "Ada"
    daemon.freeze()
    actions: list[Callable[[], Any]] = [
        lambda: cache.wait_for(100, SHORT_S),
        lambda: cache.verify(timeout=SHORT_S),
        lambda: cache.verify("metrics", timeout=SHORT_S),
        lambda: cache.invalidate(timeout=SHORT_S),
        lambda: cache.invalidate("metrics", timeout=SHORT_S),
    ]
    for number, action in enumerate(actions):
        raises_within(DaemonTimeoutError, action)
        event_id = cache.append("identity_adopt", f"name {number}", {})
        assert (name_of(cache), cache.frame().as_of) == (f"name {number}", event_id)
    with at_most(1.0):
        assert cache.stats()["daemon"] is None
    daemon.thaw()
    assert cache.wait_for(event_id, 30.0) == event_id
    assert cache.stats()["daemon"]["pid"] == daemon.pid


def test_reads_do_not_wait_for_a_stopped_daemon(cache: Cache, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(cache.path)
    cache.frame()
    daemon.freeze()
    with at_most(2.0):
        for number in range(50):
            cache.append("identity_adopt", f"name {number}", {})
            assert name_of(cache) == f"name {number}"
            cache.frame()
    assert answers.everything(cache) == answers.replayed(cache.path)


def test_stats_of_the_daemon(cache: Cache, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(cache.path)
    event_id = cache.append("identity_adopt", "Ada", {})
    cache.wait_for(event_id, 30.0)
    numbers = cache.stats()["daemon"]
    assert numbers["pid"] == daemon.pid
    assert numbers["ledger"] == cache.path
    assert (numbers["as_of"], numbers["head_id"], numbers["lag_events"]) == (event_id, event_id, 0)
    assert (numbers["is_published"], numbers["health"], numbers["problem"]) == (True, "healthy", None)
    assert set(numbers["folds"]) >= {"self_model", "metrics", "stage", "directives", "recent", "history"}
    assert (numbers["malformed_messages"], numbers["quarantined"]) == (0, 0)


# Connect and close.


def test_the_instance_directory_can_be_elsewhere(
    tmp_path: Path, ledger: str, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMM_SHM_DIR", str(tmp_path / "run"))
    start_daemon(ledger)
    with connect(ledger) as cache:
        cache.wait_for(cache.append("identity_adopt", "Ada", {}), 30.0)
        assert name_of(cache, consistency="snapshot") == "Ada"
    assert not Path(ledger + "-cache").exists()
    assert [entry.name.startswith("ledger.db-") for entry in (tmp_path / "run").iterdir()] == [True]


def test_a_path_too_long_for_sockets_works(tmp_path: Path, start_daemon: StartDaemon) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    path = str(folder / "ledger.db")
    with EventLog(path) as log, connect(path) as cache:
        daemon = start_daemon(path)
        event_id = log.append("identity_adopt", "Ada", {})
        assert cache.wait_for(event_id, 30.0) == event_id
        sockets = find_endpoints(daemon.instance)
        assert len(os.fsencode(sockets.announcements)) <= limits.SOCKET_PATH_BYTES_MAX
        assert cache.verify()
        daemon.stop()
        assert not Path(sockets.commands).exists()
        if Path(sockets.commands).parent.exists():
            Path(sockets.commands).parent.rmdir()


def test_a_symbolic_link_is_the_ledger_it_leads_to(tmp_path: Path, ledger: str, start_daemon: StartDaemon) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(ledger)
    start_daemon(ledger)
    with connect(link) as cache:
        event_id = cache.append("identity_adopt", "Ada", {})
        assert cache.wait_for(event_id, 30.0) == event_id
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_dir()} == {"ledger.db-cache"}


def test_a_cache_reads_its_own_append_where_a_link_took_the_place_of_the_folder(tmp_path: Path) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    for one in (folder, other):
        one.mkdir()
        with EventLog(one / "ledger.db") as log:
            log.append("user_message", "one", {})
    with connect(folder / "ledger.db") as cache:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(other)
        assert cache.append("identity_adopt", "Ada", {}) == 2
        assert (name_of(cache), cache.identity().as_of, len(cache.events())) == ("Ada", 2, 2)
    with EventLog(other / "ledger.db") as log:
        assert len(log.read_all()) == 2


DROPPED = """
import gc, os, sys
from pmm_shm_client import connect
gc.disable()
cache = connect(sys.argv[1])
cache.append("user_message", "one", {})
cache.events()
cache = connect(sys.argv[1])
child = os.fork()
cache.append("user_message", "two", {})
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_cache_that_was_dropped_unclosed_holds_no_file_open_across_a_fork(ledger: str) -> None:
    done = daemons.run_python(DROPPED, ledger, forked=False)
    assert (done.returncode, done.stderr) == (0, "")


# The freshness mark.


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_data_version_by_setting_sees_every_append(tmp_path: Path, journal: str, start_daemon: StartDaemon) -> None:
    path = ledgers.build(tmp_path / "ledger.db", journal=journal)
    start_daemon(path)
    with connect(path, freshness="data_version") as cache, connect(path) as other:
        for number in range(20):
            writer = (cache, other)[number % 2]
            event_id = writer.append("identity_adopt", f"name {number}", {})
            for reader in (cache, other):
                assert (name_of(reader), reader.identity().as_of) == (f"name {number}", event_id)
        before = cache.stats()["projection"]["cache_hits"]
        cache.identity()
        assert cache.stats()["projection"]["cache_hits"] == before + 1


# Autostart.


AUTOSTART = """
import sys
from pmm_shm_client import connect
print("ready", flush=True)
sys.stdin.readline()
with connect(sys.argv[1], autostart=True) as cache:
    event_id = cache.append("identity_adopt", "Ada", {})
    assert cache.wait_for(event_id, 30.0) >= event_id
    print(cache.stats()["daemon"]["pid"], flush=True)
"""


def autostart(ledger: str, count: int) -> list[int]:
    """Pids of the daemons that `count` processes see which start one at the same time."""
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", AUTOSTART, ledger],
            env=daemons.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    done = [(*starter.communicate(timeout=60), starter.returncode) for starter in starters]
    assert [(error, code) for _, error, code in done] == [("", 0)] * count
    return [int(out) for out, _, _ in done]


@pytest.mark.parametrize("count", [1, 2])
def test_autostart_starts_exactly_one_daemon_that_outlives_its_clients(ledger: str, count: int) -> None:
    try:
        pids = autostart(ledger, count)
        assert len(set(pids)) == 1
        # The others exit by themselves; one that is late would take over from the first.
        daemons.until(lambda: daemons.serving(ledger) == pids[:1], "one daemon is left")
        assert daemons.is_alive(pids[0])
        with connect(ledger, autostart=True) as cache:
            assert cache.stats()["daemon"]["pid"] == pids[0]
            assert name_of(cache, consistency="wait") == "Ada"
        os.kill(pids[0], signal.SIGTERM)
        daemons.until(lambda: not daemons.is_alive(pids[0]), "SIGTERM ends the daemon")
    finally:
        for pid in daemons.serving(ledger):
            daemons.end(pid)


def test_autostart_in_this_process_leaves_no_warning_behind(ledger: str) -> None:
    code = (
        "import sys, gc\n"
        "from pmm_shm_client import connect\n"
        "with connect(sys.argv[1], autostart=True) as cache:\n"
        "    print(bool(cache.verify(timeout=30.0)))\n"
        "gc.collect()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, ledger],
        env=daemons.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    try:
        assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)
    finally:
        for pid in daemons.serving(ledger):
            daemons.end(pid)


def test_autostart_that_fails_says_why(ledger: str) -> None:
    Path(ledger + "-cache").write_text("in the way", encoding="utf-8")
    code = "import sys; from pmm_shm_client import connect; connect(sys.argv[1], autostart=True)"
    done = daemons.run_python(code, ledger)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "DaemonError" in last
    assert ledger + "-cache" in last
    assert Path(ledger + "-cache").read_text(encoding="utf-8") == "in the way"


# asyncio.


def test_the_asyncio_client_without_a_daemon(ledger: str) -> None:
    async def scenario() -> None:
        async with await connect_async(ledger) as cache:
            assert isinstance(cache, AsyncCache)
            event_id = await cache.append_async("identity_adopt", "Ada", {})
            assert (cache.identity().name, cache.identity().as_of) == ("Ada", event_id)
            assert (await cache.stats_async())["daemon"] is None
            assert (await cache.verify_async()).ok
            for call in (cache.wait_for_async(event_id, 30.0), cache.invalidate_async()):
                with pytest.raises(DaemonAbsentError):
                    await call
            with pytest.raises(DaemonAbsentError):
                await cache.announcements().__anext__()
        with pytest.raises(ClosedError):
            cache.identity()

    asyncio.run(scenario())


def test_the_asyncio_client_with_a_daemon(ledger: str, start_daemon: StartDaemon) -> None:
    start_daemon(ledger)

    async def scenario() -> None:
        async with await connect_async(ledger, consistency="snapshot") as cache:
            event_id = await cache.append_async("identity_adopt", "Ada", {})
            assert await cache.wait_for_async(event_id, 30.0) >= event_id
            assert cache.identity().name == "Ada"
            report = await cache.verify_async()
            assert (report.ok, report.as_of) == (True, event_id)
            assert await cache.invalidate_async("metrics") == event_id
            numbers = await cache.stats_async()
            assert numbers["daemon"]["as_of"] == event_id
            assert numbers["projection"]["verifications_passed"] == 1
            with pytest.raises(CommandError):
                await cache.invalidate_async("nope")
            with pytest.raises(UnknownFoldError):
                await cache.verify_async("nope")
            with pytest.raises(DaemonTimeoutError):
                await cache.wait_for_async(1_000, 0.1)
            waits = [cache.wait_for_async(event_id + 1, 30.0) for _ in range(20)]
            # More than a day counts as a day.
            waits.append(cache.wait_for_async(event_id + 1, 1e9))
            found = await asyncio.gather(*waits, cache.append_async("debug", "", {}))
            assert found == [event_id + 1] * 22

    asyncio.run(scenario())


def test_announcements_tell_of_new_positions(ledger: str, start_daemon: StartDaemon) -> None:
    start_daemon(ledger)

    async def scenario() -> None:
        async with await connect_async(ledger) as cache:
            announcements = cache.announcements()
            first = asyncio.ensure_future(announcements.__anext__())
            newest = 0
            # The subscription takes effect a little after it was asked for.
            while not first.done():
                newest = await cache.append_async("debug", "", {})
                await asyncio.wait([first], timeout=0.02)
            assert 0 < first.result().as_of <= newest
            newest = await cache.append_async("debug", "", {})
            position, sequence = 0, first.result().sequence
            while position < newest:
                announcement = await asyncio.wait_for(announcements.__anext__(), 30.0)
                assert announcement.as_of >= position
                assert announcement.sequence >= sequence
                position, sequence = announcement.as_of, announcement.sequence
            await announcements.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_a_stopped_daemon_does_not_block_the_event_loop(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    daemon.freeze()

    async def scenario() -> None:
        async with await connect_async(ledger) as cache:
            waiting = asyncio.ensure_future(cache.wait_for_async(10, 1.0))
            verifying = asyncio.ensure_future(cache.verify_async(timeout=1.0))
            ticks = 0
            while not (waiting.done() and verifying.done()):
                await asyncio.sleep(0.01)
                ticks += 1
                cache.append("debug", "", {})
                assert cache.recent().as_of == ticks
                assert ticks < 2_000
            assert ticks > 10
            assert isinstance(waiting.exception(), DaemonTimeoutError)
            assert isinstance(verifying.exception(), DaemonTimeoutError)

    asyncio.run(scenario())


# Threads, fork, exit.


@pytest.mark.parametrize("has_daemon", [False, True])
def test_eight_threads_read_while_one_appends(ledger: str, start_daemon: StartDaemon, has_daemon: bool) -> None:
    if has_daemon:
        start_daemon(ledger)
    appended = 0
    is_done = False
    failures: list[BaseException] = []

    with connect(ledger) as cache:

        def read(number: int) -> None:
            before, reads = 0, 0
            try:
                while not is_done or reads < 5:
                    least = appended
                    answer: Any
                    if number % 4 == 0:
                        answer = cache.frame()
                        assert answer.identity().name == (f"name {answer.as_of}" if answer.as_of else None)
                    elif number % 4 == 1:
                        answer = cache.metrics()
                    elif number % 4 == 2:
                        answer = cache.commitments()
                        assert len(answer.open) == 0
                    else:
                        answer = cache.identity()
                        assert answer.name == (f"name {answer.as_of}" if answer.as_of else None)
                    assert answer.as_of >= max(before, least)
                    before, reads = answer.as_of, reads + 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
        interval = sys.getswitchinterval()
        # More interleavings in less time.
        sys.setswitchinterval(0.0002)
        for thread in threads:
            thread.start()
        try:
            for number in range(1, 61):
                appended = cache.append("identity_adopt", f"name {number}", {})
                assert appended == number
                assert cache.identity().as_of == number
        finally:
            is_done = True
            for thread in threads:
                thread.join(60)
            sys.setswitchinterval(interval)
        assert failures == []
        assert answers.everything(cache) == answers.replayed(ledger)


FORK = """
import os, sys, traceback
from pmm_shm_client import connect
cache = connect(sys.argv[1])
own = [cache.append("identity_adopt", "before", {})]
assert cache.identity().name == "before"
cache.frame(), cache.stats()
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for step in range(20):
                assert cache.identity().as_of >= own[-1]
                own.append(cache.append("commitment_open", "", {"cid": f"{number}-{step}", "text": "x"}))
                assert f"{number}-{step}" in cache.commitments().open
                assert cache.frame().as_of >= own[-1]
            if sys.argv[2] == "True":
                cache.wait_for(own[-1], 30.0)
                assert cache.stats()["daemon"]["pid"]
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.append(pid)
    for step in range(20):
        own.append(cache.append("commitment_open", "", {"cid": f"parent-{number}-{step}", "text": "x"}))
        assert f"parent-{number}-{step}" in cache.commitments().open
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert codes == [0, 0, 0], codes
assert len(cache.commitments().open) == 120
if sys.argv[2] == "True":
    cache.wait_for(121, 30.0)
print(cache.verify().ok, cache.identity().as_of)
"""


@pytest.mark.parametrize("has_daemon", [False, True])
def test_a_process_that_has_read_and_appended_can_fork(
    ledger: str, start_daemon: StartDaemon, has_daemon: bool
) -> None:
    if has_daemon:
        start_daemon(ledger)
    # From Python 3.12 on, a fork beside ZeroMQ's threads says so on stderr.
    quiet = daemons.environment(PYTHONWARNINGS="ignore::DeprecationWarning")
    done = daemons.run_python(FORK, ledger, str(has_daemon), env=quiet, forked=False)
    assert (done.stdout, done.stderr) == ("True 121\n", "")
    with EventLog(ledger) as log, connect(ledger) as cache:
        assert log.verify_chain().ok
        assert answers.everything(cache) == answers.replayed(ledger)


EXIT = """
import sys
from pmm_shm.errors import DaemonError
from pmm_shm_client import connect
cache = connect(sys.argv[1])
cache.append("identity_adopt", "Ada", {})
cache.frame()
for call in (lambda: cache.wait_for(1_000, 0.2), lambda: cache.invalidate(timeout=0.2), cache.stats):
    try:
        call()
    except DaemonError:
        pass
if len(sys.argv) > 2:
    cache.close()
print("done", flush=True)
"""


@pytest.mark.parametrize("state", ["absent", "stopped", "killed"])
@pytest.mark.parametrize("close", [[], ["close"]])
def test_a_process_exits_within_a_second_whatever_the_daemon_does(
    ledger: str, start_daemon: StartDaemon, state: str, close: list[str]
) -> None:
    if state != "absent":
        daemon = start_daemon(ledger)
        daemon.freeze() if state == "stopped" else daemon.kill()
    child = subprocess.Popen(
        [sys.executable, "-c", EXIT, ledger, *close], env=daemons.environment(), stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "done\n"
        with at_most(1.0):
            assert child.wait(30) == 0
    finally:
        child.kill()
        child.communicate()


def test_nothing_is_left_behind_by_a_daemon_that_was_stopped(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    assert daemon.stop() == 0
    instance = Instance.of(ledger)
    assert not any(entry.name.endswith(".sock") for entry in instance.directory.iterdir())
    assert '"stopped"' in daemon.log.read_text(encoding="utf-8")


def test_a_daemon_stops_within_two_seconds_while_clients_read(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        before = daemon.stats()["commands"]
        waiter = threading.Thread(target=lambda: raises_within(DaemonAbsentError, lambda: cache.wait_for(10**6, 30.0)))
        waiter.start()
        # Each look at the stats is a command too, and counts itself.
        looks = itertools.count(2)
        daemons.until(lambda: daemon.stats()["commands"] >= before + next(looks), "the daemon knows of the waiter")
        cache.frame()
        with at_most(limits.STOP_S):
            assert daemon.stop() == 0
        waiter.join(30)
