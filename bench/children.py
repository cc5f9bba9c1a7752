"""Other processes of a benchmark: `python -m bench.children NAME JSON` runs one of `CHILDREN`.

One line of JSON out for each answer; what comes in on stdin says when to go on.
"""

from __future__ import annotations

import compileall
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.daemons import environment

NOTHING = "nothing"
_ROOT = Path(__file__).resolve().parent.parent


class Child:
    """One of `CHILDREN` in a separate process; a context manager that leaves nothing behind."""

    def __init__(self, name: str, *arguments: Any) -> None:
        command = [sys.executable, "-m", "bench.children", name, json.dumps(arguments)]
        self._process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Child:
        assert self.listen() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, word: str = "go") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def listen(self) -> Any:
        """The next line it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "a child process ended"
        return json.loads(line)

    def ask(self, word: str = "go") -> Any:
        self.tell(word)
        return self.listen()


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def appender(ledger: str) -> None:
    """Appends one event for each line but `NOTHING`: the next of a turn. Says the id of the newest."""
    from pmm_shm.ledger.eventlog import EventLog
    from pmm_shm_cli.benchmark import turn_event

    number = event_id = 0
    with EventLog(ledger, create=False) as log:
        say("ready")
        for line in sys.stdin:
            if line.strip() != NOTHING:
                event_id = log.append(*turn_event(number))
                number += 1
            say(event_id)


def writer(ledger: str, name: str) -> None:
    """For each line, a number of seconds: appends flat out for so long. Says [[id, when it was committed, ns], ...]."""
    from pmm_shm.ledger.eventlog import EventLog
    from pmm_shm_cli.benchmark import turn_events

    events = [event for number in range(8) for event in turn_events(number)]
    with EventLog(ledger, create=False) as log:
        log.append("note", name)
        say("ready")
        for line in sys.stdin:
            committed: list[tuple[int, int]] = []
            end = time.monotonic() + float(line)
            while time.monotonic() < end:
                event_id = log.append(*events[len(committed) % len(events)])
                committed.append((event_id, time.monotonic_ns()))
            say(committed)


def observer(ledger: str) -> None:
    """From the first line on looks at what is published, every 0.2 ms or so, up to the event that the second line
    names. Says [[as_of, when it was seen, ns], ...]."""
    import threading

    from pmm_shm_client.cache import Cache

    ends: list[int] = []

    def wait_for_end() -> None:
        ends.append(int(sys.stdin.readline()))

    with Cache(ledger, consistency="snapshot") as cache:
        seen = [(cache.metrics().as_of, time.monotonic_ns())]
        say("ready")
        sys.stdin.readline()
        threading.Thread(target=wait_for_end, daemon=True).start()
        while not ends or seen[-1][0] < ends[0]:
            as_of = cache.metrics().as_of
            if as_of != seen[-1][0]:
                seen.append((as_of, time.monotonic_ns()))
            time.sleep(0.0002)
    say(seen)


def turner(ledger: str) -> None:
    """For each line, seconds and a delay: ten turns a second for so long, each an append, the metrics, the self-model.
    Says how long each append took, and how long the first read behind it, in µs.
    """
    from pmm_shm_cli.benchmark import turn_event
    from pmm_shm_client import connect

    with connect(ledger) as cache:
        number = 0

        def turn() -> tuple[float, float]:
            nonlocal number
            event, number = turn_event(number), number + 1
            began = time.perf_counter()
            event_id = cache.append(*event)
            appended = time.perf_counter()
            metrics = cache.metrics()
            read = time.perf_counter()
            cache.self_model()
            assert metrics.as_of >= event_id
            return (appended - began) * 1e6, (read - appended) * 1e6

        _take_turns(turn)


def bare_turner(ledger: str) -> None:
    """The same with bare sqlite3: the transaction of an append, and the rows behind the last one."""
    from bench import bare
    from pmm_shm_cli.benchmark import turn_event

    with bare.connection(Path(ledger)) as appending, bare.connection(Path(ledger)) as reading:
        appender, number = bare.Appender(appending), 0
        appending.execute("PRAGMA busy_timeout = 30000")
        (last_id,) = reading.execute("SELECT max(id) FROM events").fetchone()

        def turn() -> tuple[float, float]:
            nonlocal number, last_id
            event, number = turn_event(number), number + 1
            began = time.perf_counter()
            event_id = appender.append(*event)
            appended = time.perf_counter()
            rows = reading.execute(BEHIND, (last_id,)).fetchall()
            read = time.perf_counter()
            last_id = rows[-1][0]
            assert last_id >= event_id
            return (appended - began) * 1e6, (read - appended) * 1e6

        _take_turns(turn)


BEHIND = "SELECT id, ts, kind, content, meta FROM events WHERE id > ? ORDER BY id"
_TURN_S = 0.1


def _take_turns(turn: Callable[[], tuple[float, float]]) -> None:
    turn()
    say("ready")
    for line in sys.stdin:
        seconds, delay_s = map(float, line.split())
        samples = []
        # No turn includes what the other group has appended meanwhile.
        turn()
        due = time.monotonic() + delay_s
        end = due + seconds
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            samples.append(turn())
            due += _TURN_S
        say(list(zip(*samples, strict=True)))


BARE_IMPORTS = "import lmdb, msgpack, sqlite3"

UNIQUE_BYTES = """
def unique_bytes():
    private = b"Private_Clean", b"Private_Dirty"
    with open("/proc/self/smaps_rollup", "rb") as lines:
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(private))
"""

BARE_PROCESS = f"""
{BARE_IMPORTS}
{UNIQUE_BYTES}
print(unique_bytes())
"""

READ_EVERY_VIEW = """
cache = connect(sys.argv[1])
views = [
    cache.identity(), cache.commitments(), cache.metrics(), cache.stage(), cache.recent(), cache.fold("directives"),
]
cache.self_model(), cache.directives(), cache.active_directives()
"""

READING_PROCESS = f"""
import sys
from pmm_shm_client import connect
{UNIQUE_BYTES}
{READ_EVERY_VIEW}
used = unique_bytes()
from bench.children import deep_bytes
print(used, deep_bytes(views), cache.metrics().as_of)
"""


CHAT_IMPORTS = "import asyncio, json, logging, pathlib, hashlib, httpx"

CHAT_PROCESS = f"""
import sys
{CHAT_IMPORTS}
{UNIQUE_BYTES}
before = unique_bytes()
from pmm_shm_client import connect
{READ_EVERY_VIEW}
print(before, unique_bytes() - before)
"""

MEMORY_PARTS = ("threading", "contextlib", "ctypes")
"""What a reading process imports of the standard library beyond the bare imports, each with what it imports."""

MEMORY_PROCESS = f"""
import sys
{BARE_IMPORTS}
{UNIQUE_BYTES}
steps = [unique_bytes()]
for part in {MEMORY_PARTS}:
    __import__(part)
    steps.append(unique_bytes())
before = set(sys.modules)
from pmm_shm_client import connect
import pmm_shm_client.cache
own = set(sys.modules) - before
steps.append(unique_bytes())
{READ_EVERY_VIEW}
steps.append(unique_bytes())
print(*steps, len(own))
"""


def deep_bytes(value: Any, seen: set[int] | None = None) -> int:
    """The size of a value and of everything it holds, each object once; shared objects are counted, too."""
    import gc

    known: set[int] = set() if seen is None else seen
    total, left = 0, [value]
    while left:
        one = left.pop()
        if id(one) in known or isinstance(one, (type, type(sys))) or callable(one):
            continue
        known.add(id(one))
        total += sys.getsizeof(one)
        left += gc.get_referents(one)
    return total


def compile_packages() -> None:
    """Compile our packages, as an installation does; this environment may keep Python from doing it by itself."""
    for folder in ("pmm_shm", "client", "server"):
        assert compileall.compile_dir(_ROOT / folder, quiet=1)


def run_python(code: str, *arguments: str) -> str:
    """The output of a new process that runs this code in the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=_ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CHILDREN: dict[str, Callable[..., None]] = {"appender": appender, "writer": writer, "observer": observer}
CHILDREN |= {"turner": turner, "bare_turner": bare_turner}


if __name__ == "__main__":
    CHILDREN[sys.argv[1]](*json.loads(sys.argv[2]))
