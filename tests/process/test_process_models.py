"""The ways in which servers use processes and threads: prefork, multiprocessing, many threads, many clients.

Always with real processes beside a real daemon; what is read equals a full replay.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_client import Cache, connect
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.crowd import check_crowd, check_end_state, slots
from tests.support.daemons import DEADLINE_S, environment, is_alive, run_python, until

WORKERS = 8
CLIENT_THREADS = 6
REQUESTS_PER_THREAD = 50
KILLS = 10


# A prefork server.


class Prefork:
    """gunicorn with eight sync workers whose parent has loaded the application."""

    def __init__(self, ledger: str, folder: Path) -> None:
        if importlib.util.find_spec("gunicorn") is None:
            pytest.fail("gunicorn is not installed: pip install -e '.[test]'")
        self.socket = str(folder / "http.sock")
        self.log = folder / "gunicorn.log"
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--worker-class", "sync",
                 "--bind", f"unix:{self.socket}", "--no-control-socket", "tests.support.prefork_app:app"],
                env=environment(PREFORK_LEDGER=ledger),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )  # fmt: skip

    def children(self) -> list[int]:
        """The workers that live."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [pid for pid in map(int, path.read_text(encoding="ascii").split()) if is_alive(pid)]

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to one request; None where its worker died."""
        connection = http.client.HTTPConnection("localhost", timeout=DEADLINE_S)
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(DEADLINE_S)
            connection.sock.connect(self.socket)
            connection.request("GET", f"/{key}")
            response = connection.getresponse()
            body = response.read()
        except (ConnectionError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        assert response.status == 200, self.log.read_text(encoding="utf-8")
        result: dict[str, Any] = json.loads(body)
        return result


@pytest.fixture
def prefork() -> Iterator[Callable[[str], Prefork]]:
    servers: list[Prefork] = []
    with tempfile.TemporaryDirectory(prefix="pmm-") as folder:

        def start(ledger: str) -> Prefork:
            server = Prefork(ledger, Path(folder))
            servers.append(server)

            def is_up() -> bool:
                assert server.process.poll() is None, server.log.read_text(encoding="utf-8")
                return os.path.exists(server.socket) and len(server.children()) == WORKERS

            until(is_up, "gunicorn and its workers")
            return server

        yield start
        for server in servers:
            children = server.children() if server.process.poll() is None else []
            server.process.kill()
            server.process.wait()
            for pid in children:
                os.kill(pid, signal.SIGKILL)


def test_a_prefork_server_with_eight_children(
    ledger: str, start_daemon: StartDaemon, prefork: Callable[[str], Prefork]
) -> None:
    """Hazard 9: the cache is opened, used and appended with before the fork; workers are killed and replaced."""
    daemon = start_daemon(ledger)
    server = prefork(ledger)
    acknowledged: dict[str, dict[str, Any]] = {}
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            done, attempt = 0, 0
            while done < REQUESTS_PER_THREAD:
                attempt += 1
                key = f"{number}-{attempt}"
                answer = server.get(key)
                if answer is not None:
                    acknowledged[key] = answer
                    done += 1
        except BaseException as error:
            failures.append(error)

    first = set(server.children())
    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENT_THREADS)]
    for thread in threads:
        thread.start()
    killed = []
    for kill in range(KILLS):
        until(
            lambda least=kill * 20: len(acknowledged) > least or failures,  # type: ignore[misc]
            "requests are answered",
        )
        # One that has just served, and may be in the middle of its next request.
        served = [answer["pid"] for answer in list(acknowledged.values())[-5:]]
        victim = next((pid for pid in served if pid in server.children()), server.children()[0])
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
        until(lambda pid=victim: not is_alive(pid), "the worker is gone")  # type: ignore[misc]
    for thread in threads:
        thread.join(DEADLINE_S * 2)
    assert failures == []
    until(lambda: len(server.children()) == WORKERS, "killed workers are replaced")
    assert len(acknowledged) == CLIENT_THREADS * REQUESTS_PER_THREAD
    pids = {answer["pid"] for answer in acknowledged.values()}
    assert len(set(killed)) == KILLS
    assert len(pids) > WORKERS
    assert pids - first, "replaced workers serve, too"
    for key, answer in acknowledged.items():
        assert answer["seen"], (key, answer)
        assert answer["as_of"] >= answer["id"]
        assert answer["name"] == "before the fork"
        assert answer["daemon"] is not False
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(DEADLINE_S) == 0, server.log.read_text(encoding="utf-8")
    rows = dict(ledgers.execute(ledger, "SELECT content, id FROM events WHERE kind = 'commitment_open'"))
    assert {key: rows[key] for key in acknowledged} == {key: answer["id"] for key, answer in acknowledged.items()}
    check_end_state(ledger, daemon)
    until(lambda: slots(ledger) == {daemon.pid}, "the slots of dead workers are free", DEADLINE_S)


# multiprocessing.


def work_with(cache: Cache, name: str, steps: int = 15) -> int:
    """Append and read one's own back, with commands in between; returns how many events were appended."""
    newest = 0
    for step in range(steps):
        key = f"{name}-{step}"
        event_id = cache.append("commitment_open", key, {"cid": key, "text": key})
        assert event_id > newest
        newest = event_id
        commitments = cache.commitments()
        assert commitments.as_of >= event_id
        assert key in commitments.open
        frame = cache.frame()
        assert frame.as_of >= event_id
        assert key in frame.commitments().open
        if step % 5 == 0:
            cache.wait_for(event_id, DEADLINE_S)
            assert cache.commitments(consistency="snapshot").as_of >= event_id
            assert cache.stats()["daemon"]["as_of"] >= event_id
            assert cache.embed(f"text {step}").shape == cache.embed("another").shape
    return steps


_inherited: Cache | None = None


def work_in_child(path: str, name: str, is_inherited: bool) -> None:
    if is_inherited:
        assert _inherited is not None
        assert _inherited._reader.connection.is_open is False
        work_with(_inherited, name)
    else:
        with connect(path) as cache:
            work_with(cache, name)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing(
    ledger: str, start_daemon: StartDaemon, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard 9: a forked child goes on with its parent's cache; others open their own beside it, and cannot be handed
    the parent's by mistake.
    """
    daemon = start_daemon(ledger)
    context = multiprocessing.get_context(method)
    # What a spawned child is told of this module, it must be able to import.
    with connect(ledger) as cache:
        work_with(cache, "parent before")
        monkeypatch.setattr(sys.modules[__name__], "_inherited", cache)
        if method != "fork":
            with pytest.raises(TypeError, match="pickle"):
                context.Process(target=work_with, args=(cache, "x")).start()
        children: list[Any] = [
            context.Process(target=work_in_child, args=(ledger, f"child {number}", method == "fork"))  # type: ignore[attr-defined]
            for number in range(3)
        ]
        for child in children:
            child.start()
        work_with(cache, "parent beside")
        for child in children:
            child.join(DEADLINE_S * 2)
        assert [child.exitcode for child in children] == [0, 0, 0]
        work_with(cache, "parent after")
        assert len(cache.commitments().open) == 15 * 6
    check_end_state(ledger, daemon)


# Threads.


def test_sixteen_threads_share_one_client(ledger: str, start_daemon: StartDaemon) -> None:
    """Reads, appends and commands at once through one cache."""
    daemon = start_daemon(ledger)
    failures: list[BaseException] = []
    frames: list[tuple[int, dict[str, Any]]] = []
    with connect(ledger) as cache:

        def work(number: int) -> None:
            try:
                work_with(cache, str(number))
                if number % 4 == 0:
                    assert cache.verify().ok
                frame = cache.frame()
                frames.append((frame.as_of, everything(frame)))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        interval = sys.getswitchinterval()
        # More interleavings in less time.
        sys.setswitchinterval(0.0002)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE_S * 2)
        finally:
            sys.setswitchinterval(interval)
        assert failures == []
        assert len(cache.commitments().open) == 16 * 15
        assert max(frames)[1] == replayed(ledger)
    check_end_state(ledger, daemon)


THREADED_FORK = """
import os, sys, threading, traceback
from pmm_shm_client import connect
path = sys.argv[1]
cache = connect(path)
second = connect(path, freshness="data_version")
is_done = False
failures = []

def work(number):
    own, step = second if number % 3 == 0 else cache, 0
    try:
        while not is_done:
            step += 1
            event_id = own.append("autonomy_tick")
            assert own.metrics().as_of >= event_id
            own.frame(), own.embed(f"text {number} {step % 50}")
            if step % 4 == 0:
                own.wait_for(event_id, 30.0), own.stats()
    except BaseException:
        failures.append(traceback.format_exc())

threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
children = []
for number in range(10):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for step in range(5):
                for own in (cache, second):
                    key = f"{number}-{step}-{own is second}"
                    event_id = own.append("commitment_open", key, {"cid": key, "text": key})
                    commitments = own.commitments()
                    assert commitments.as_of >= event_id and key in commitments.open
                    assert own.frame().as_of >= event_id
                    own.embed(key)
            own.wait_for(event_id, 30.0)
            assert own.stats()["daemon"]["pid"]
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.append(pid)
    cache.append("user", "between forks"), cache.frame()
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
is_done = True
for thread in threads:
    thread.join()
print(codes, failures, len(cache.commitments().open), flush=True)
"""


def test_a_process_with_busy_threads_forks(ledger: str, start_daemon: StartDaemon) -> None:
    """Hazard 9: ten forks while eight threads read, append and give commands; nobody hangs, parent or child."""
    daemon = start_daemon(ledger)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", THREADED_FORK, ledger],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=DEADLINE_S * 2)
    except subprocess.TimeoutExpired:
        pytest.fail("parent or child hangs")
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    assert (stdout, stderr) == (f"{[0] * 10} [] 100\n", "")
    check_end_state(ledger, daemon)


OPENED_DURING_FORK = """
import os, sys, threading, time, traceback
from pmm_shm.ledger.eventlog import EventLog
path, others = sys.argv[1], []
log = EventLog(path)
log.append("user", "before")
held, opened = threading.Event(), threading.Event()

def hold():
    with log._reader.lock:
        held.set()
        opened.wait(10)

def open_another():
    held.wait()
    time.sleep(0.2)  # The fork has begun, and waits for the lock.
    others.append(EventLog(path))
    others[0].append("user", "during")
    opened.set()

threads = [threading.Thread(target=target) for target in (hold, open_another)]
for thread in threads:
    thread.start()
held.wait()
child = os.fork()
if not child:
    code = 1
    try:
        others[0].append("user", "in the child")
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)
assert os.waitpid(child, 0)[1] == 0
others[0].append("user", "in the parent")
print([event["content"] for event in log.read_all()])
"""


def test_a_connection_that_is_made_while_a_fork_waits_does_not_cross_it(ledger: str) -> None:
    """Hazard 9: the fork has listed the connections before."""
    # From Python 3.12 on, a fork beside threads says so on stderr.
    quiet = environment(PYTHONWARNINGS="ignore::DeprecationWarning")
    done = run_python(OPENED_DURING_FORK, ledger, env=quiet, forked=False)
    assert (done.stdout, done.stderr) == ("['before', 'during', 'in the child', 'in the parent']\n", "")


# Many clients.


def test_fifty_clients_at_once(ledger: str, start_daemon: StartDaemon) -> None:
    check_crowd(ledger, start_daemon(ledger), 50)
