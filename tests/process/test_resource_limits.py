"""A process that runs out of file descriptors, threads or memory: no abort, reads and embeddings go on, and commands
raise an error of ours that names the limit.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_cached.background import BackgroundThread
from pmm_shm_client import connect
from tests.support.daemons import environment, run_daemon, run_python
from tests.support.fork_daemon import ForkedDaemon
from tests.support.hazards import fill

EVENTS = 30
CHILD = """
import asyncio, json, os, resource, sys, threading
from pmm_shm_client import connect, connect_async
cache = connect(sys.argv[1])
what, early, spare = sys.argv[2], sys.argv[3] == "early", int(sys.argv[4])
calls = {
    "read": lambda: cache.metrics().as_of,
    "wait": lambda: cache.wait_for(cache.metrics().as_of + 1, timeout=0.3),
    "embed": lambda: len(cache.embed("a text")),
    "stats": lambda: cache.stats()["daemon"]["as_of"],
    "verify": lambda: bool(cache.verify()),
}
if early:
    for call in calls.values():
        try:
            call()
        except Exception:
            pass
import numpy, zmq  # C modules of a program that uses them anyway
held, over = [], threading.Event()
if what == "descriptors":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for _ in range(spare):
        os.close(held.pop())
elif what == "threads":
    # As an interpreter whose system refuses them; `ulimit -u` does not bind root.
    before, left = threading.Thread.start, [spare]
    def start(self):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        before(self)
    threading.Thread.start = start
else:
    # Of address space: what is used, and some megabytes.
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (spare << 20), resource.RLIM_INFINITY))
said = {}
for name, call in calls.items():
    try:
        said[name] = call()
    except BaseException as error:
        said[name] = f"{type(error).__name__}: {error}"
if what == "memory":
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
elif what == "threads":
    threading.Thread.start = before
for descriptor in held:
    os.close(descriptor)
said["afterwards"] = [cache.metrics().as_of, cache.stats()["daemon"]["as_of"]]
print(json.dumps(said))
"""
LIMITS = {"descriptors": "(ulimit -n)", "threads": "(ulimit -u)", "memory": "(ulimit -"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("limits") / "agent.db")
    fill(path, EVENTS)
    with ForkedDaemon(Path(path)), connect(path) as cache:
        cache.wait_for(EVENTS)
        yield path


def said_by(ledger: str, what: str, when: str, spare: int) -> dict[str, Any]:
    done = run_python(CHILD, ledger, what, when, str(spare), forked=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("when", ["late", "early"])
@pytest.mark.parametrize(
    ("what", "spare"),
    [*(("descriptors", spare) for spare in (0, 1, 2, 4, 7, 11)), ("threads", 0), ("threads", 1), ("memory", 2)],
)
def test_a_worker_at_its_limit_reads_embeds_and_says_which_limit(served: str, what: str, when: str, spare: int) -> None:
    """Whether the connection to the daemon was used before or not, and whatever is left."""
    said = said_by(served, what, when, spare)
    assert said["read"] == EVENTS
    assert said["embed"] == 32
    assert said["afterwards"] == [EVENTS, EVENTS]
    for name, answer in {"wait": "DaemonTimeoutError", "stats": EVENTS, "verify": True}.items():
        is_answer = said[name] == answer or str(said[name]).startswith("DaemonTimeoutError")
        assert is_answer or (said[name].startswith("ResourceLimitError: ") and LIMITS[what] in said[name]), said
    # With one that is left, a socket may still fit.
    if what == "descriptors" and spare < 2 and (spare == 0 or said["stats"] != EVENTS):
        assert said["stats"].endswith("this process is out of file descriptors; it may have 64 (ulimit -n)")


ASYNC_CHILD = """
import asyncio, json, os, resource, sys
from pmm_shm.errors import PmmShmError
from pmm_shm_client import connect_async
async def main():
    async with await connect_async(sys.argv[1]) as cache:
        as_of = cache.metrics().as_of
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        said = []
        calls = (lambda: cache.wait_for_async(as_of + 1, 0.2), lambda: anext(cache.announcements()), cache.stats_async)
        for call in calls:
            try:
                said.append(await call())
            except PmmShmError as error:
                said.append(f"{type(error).__name__}: {error}")
        for descriptor in held:
            os.close(descriptor)
        said.append(cache.metrics().as_of)
    print(json.dumps(said))
asyncio.run(main())
"""


def test_the_asyncio_client_says_so_too(served: str) -> None:
    done = run_python(ASYNC_CHILD, served, forked=False)
    assert done.returncode == 0, done.stderr
    *said, as_of = json.loads(done.stdout)
    assert as_of == EVENTS
    assert len(said) == 3
    assert all(one.startswith("ResourceLimitError: ") and "(ulimit -n)" in one for one in said)


NO_THREADS = """
import asyncio, json, sys, threading
from pmm_shm.errors import PmmShmError
from pmm_shm_client import connect_async
async def main():
    cache = await connect_async(sys.argv[1])
    async with cache:
        as_of = cache.metrics().as_of
        await asyncio.get_running_loop().shutdown_default_executor()
        def start(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = start
        asyncio.get_running_loop()._default_executor = None
        asyncio.get_running_loop()._executor_shutdown_called = False
        try:
            await cache.embed_async("a new text")
        except PmmShmError as error:
            print(type(error).__name__, "(ulimit -u)" in str(error))
        print(cache.metrics().as_of == as_of)
    print(cache._is_closed)
asyncio.run(main())
"""


def test_the_asyncio_client_without_threads(served: str) -> None:
    done = run_python(NO_THREADS, served, forked=False)
    assert done.stdout == "ResourceLimitError True\nTrue\nTrue\n", done.stderr


PUBLISHED = """
import json, os, resource, sys
from pmm_shm.errors import PmmShmError
from pmm_shm_client import connect
cache, spare = connect(sys.argv[1]), int(sys.argv[2])
calls = (lambda: cache.search("hello"), lambda: cache.recall("hello"), lambda: cache.metrics(consistency="snapshot"))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held, said = [], []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for _ in range(spare):
    os.close(held.pop())
for call in calls:
    try:
        call()
    except PmmShmError as error:
        said.append(str(error))
for descriptor in held:
    os.close(descriptor)
print(json.dumps([said, len(cache.search("hello", k=2)), cache.metrics(consistency="snapshot").as_of]))
"""


@pytest.mark.parametrize("spare", [0, 2])
def test_what_is_published_cannot_be_opened_and_the_message_says_why(served: str, spare: int) -> None:
    """Not that nothing is published, or that a daemon must be started: it runs."""
    done = run_python(PUBLISHED, served, str(spare), forked=False)
    assert done.returncode == 0, done.stderr
    said, hits, as_of = json.loads(done.stdout)
    assert (hits, as_of) == (2, EVENTS)
    # What needs no more descriptors is answered.
    assert said or spare
    for message in said:
        assert message.endswith("this process is out of file descriptors; it may have 64 (ulimit -n)")
        assert "start pmm-cached" not in message


def test_a_backup_without_descriptors_names_the_limit(tmp_path: Path) -> None:
    ledger = str(tmp_path / "own.db")
    fill(ledger, 3)
    ended = subprocess.run(
        [sys.executable, "-m", "pmm_shm_cli", "backup", ledger, f"{ledger}.copy"],
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "this process is out of file descriptors; it may have 8 (ulimit -n)" in ended.stderr
    assert not Path(f"{ledger}.copy").exists()


def test_without_threads_a_command_ends_with_a_line(tmp_path: Path) -> None:
    ledger = str(tmp_path / "own.db")
    fill(ledger, 3)
    code = """
import sys, threading
from pmm_shm_cli.main import main
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
sys.argv = ["pmm-shm", *sys.argv[1:]]
main()
"""
    ended = run_python(code, "backup", ledger, f"{ledger}.copy", forked=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith(f"pmm-shm: {ledger}.copy: this process can start no more threads")
    assert not Path(f"{ledger}.copy").exists()


def test_a_daemon_whose_memory_ends_says_one_line() -> None:
    class Work(BackgroundThread):
        _task = "indexing"

        def _work(self) -> None:
            raise MemoryError

    class Log:
        def exception(self, *_: object, **__: object) -> None:
            pytest.fail("a traceback")

    said: list[str] = []
    work = Work("work", Log(), said.append)  # type: ignore[arg-type]
    work.start()
    assert work.stop(5)
    assert said == [
        "indexing ended: this process is out of memory; see ulimit -v, and the limit of its container or unit"
    ]


def test_a_daemon_knows_its_memory_where_no_file_can_be_opened() -> None:
    """Its watch of the clients asks for that all the time, and its failure would end the daemon."""
    code = """
import resource
from pmm_cached.sizes import process_memory
first = process_memory()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
print(all(process_memory()) and all(first))
"""
    done = run_python(code, forked=False)
    assert done.stdout == "True\n", done.stderr


USE_UP_DESCRIPTORS = """
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
"""

APPENDING = (
    """
import os, resource, sys
from pmm_shm.errors import LedgerError
from pmm_shm_client import EventLog
log = EventLog(sys.argv[1])
"""
    + USE_UP_DESCRIPTORS
    + """try:
    log.append("user", "x")
except LedgerError as error:
    print(f"{type(error).__name__}: {error}")
for descriptor in held:
    os.close(descriptor)
print(log.append("user", "y"))
"""
)


def test_an_append_without_descriptors_names_the_limit_and_writes_nothing(tmp_path: Path) -> None:
    ledger = str(tmp_path / "own.db")
    fill(ledger, 3)
    said, appended = run_python(APPENDING, ledger, forked=False).stdout.splitlines()
    assert said.startswith(f"LedgerUnwritableError: {ledger}: this process is out of file descriptors; it may have 32")
    assert appended == "4"


READING = (
    """
import os, resource, sys
from pmm_shm_client import connect
cache = connect(sys.argv[1])
"""
    + USE_UP_DESCRIPTORS
    + """for descriptor in held[: int(sys.argv[2])]:
    os.close(descriptor)
print(len(cache.events()), cache.newest(cache.event(3).kind).id, cache.event(1).id)
for descriptor in held[int(sys.argv[2]) :]:
    os.close(descriptor)
print(cache.append("user", "y"), len(cache.events()))
"""
)


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_cache_without_descriptors_reads_events_for_the_first_time(tmp_path: Path, spare: int) -> None:
    ledger = str(tmp_path / "own.db")
    fill(ledger, 3)
    done = run_python(READING, ledger, str(spare), forked=False)
    assert (done.stdout, done.stderr) == ("3 3 1\n4 4\n", "")


def test_many_threads_that_wait_share_what_is_left(served: str) -> None:
    """50 threads of a process with few descriptors: each waits, or says why it cannot, and the process lives."""
    code = """
import json, resource, sys, threading
from pmm_shm_client import connect
cache = connect(sys.argv[1]); as_of = cache.metrics().as_of
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
said = []
def wait():
    try:
        cache.wait_for(as_of + 1, timeout=1)
    except Exception as error:
        said.append(type(error).__name__)
threads = [threading.Thread(target=wait) for _ in range(50)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([len(said), sorted(set(said)), cache.metrics().as_of]))
"""
    done = run_python(code, served, forked=False)
    assert done.returncode == 0, done.stderr
    count, kinds, as_of = json.loads(done.stdout)
    assert (count, as_of) == (50, EVENTS)
    assert set(kinds) <= {"DaemonTimeoutError", "ResourceLimitError"}
    assert "ResourceLimitError" in kinds


@pytest.mark.parametrize("descriptors", [24, 48, 90])
def test_a_daemon_with_few_descriptors_says_one_line(tmp_path: Path, descriptors: int) -> None:
    ledger = str(tmp_path / "agent.db")
    fill(ledger, 3)
    ended = subprocess.run(
        [sys.executable, "-m", "pmm_cached", ledger],
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
        capture_output=True,
        text=True,
        check=False,
    )
    line = f"pmm-cached: {ledger}: this process is out of file descriptors; it may have {descriptors} (ulimit -n)\n"
    assert (ended.returncode, ended.stderr) == (1, line)
    assert not Path(f"{ledger}-cache").exists()
    assert run_daemon("--version").returncode == 0


@pytest.mark.parametrize("descriptors", [10, 14, 18])
def test_commands_with_few_descriptors_end_with_a_line_and_no_abort(
    served: str, tmp_path: Path, descriptors: int
) -> None:
    own = str(tmp_path / "own.db")
    fill(own, 3)
    for words in (["doctor", served], ["status", served], ["append", own, "user", "x"]):
        ended = subprocess.run(
            [sys.executable, "-m", "pmm_shm_cli", *words],
            env=environment(),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode in (0, 1, 4), (words, ended.returncode, ended.stderr)
        assert "Traceback" not in ended.stderr, ended.stderr
        assert "no daemon serves it" not in ended.stderr


def test_a_client_that_forgets_the_reserved_descriptor_closes_no_other_file(tmp_path: Path) -> None:
    """A program that becomes a daemon closes every descriptor; its numbers are other files' afterwards."""
    code = """
import os, sys
import pmm_shm_client
from pmm_shm.late import late_imports
os.closerange(3, 256)
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, 64))
with late_imports:
    pass
for descriptor in held:
    os.fstat(descriptor)
print("all open")
"""
    assert run_python(code, forked=False).stdout == "all open\n"
