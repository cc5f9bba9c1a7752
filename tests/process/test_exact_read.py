"""The exact read, finding by finding: each test fails without what it speaks of (see `docs/RELIABILITY.md`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.ledger.files import ledger_file_id
from pmm_shm.ledger.locks import WAL_DMS_BYTE, holds_lock
from pmm_shm_client import connect
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.daemons import run_python
from tests.support.publishing import MARKS, Publisher, fill


def in_child(action: Callable[[], Any]) -> Any:
    """What `action` returns in the child of a fork, as JSON; an exception as text."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = json.dumps(action())
        except BaseException as error:
            answer = json.dumps(f"{type(error).__name__}: {error}")
        os.write(writable, answer.encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return json.loads(answer)


# The mark, and the connection that reads.


def test_every_open_drops_what_was_remembered(ledger: str) -> None:
    """A fork closes the connections; whoever closes last deletes the `-shm`, and a memo's mark never changes again."""
    fill(ledger, 8)
    with connect(ledger) as cache:
        before = cache.metrics(), cache.recent()
        assert (before[0].as_of, before[1].as_of) == (8, 8)
        shm_id = cache._reader.connection.shm_id
        in_child(lambda: None)
        assert not cache._reader.connection.is_open
        insert = "INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', 'new', '{}')"
        for statement in ("SELECT max(id) FROM events", insert):
            ended = run_python(
                "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
                "c.execute(sys.argv[2]).fetchall(); c.close()",
                ledger,
                statement,
            )
            assert ended.returncode == 0, ended.stderr
            assert not os.path.exists(ledger + "-shm")
        assert cache.metrics().as_of == 9
        assert cache._reader.connection.shm_id != shm_id
        assert cache.recent().messages[-1].content == "new"


# Fork and threads.


def test_connections_are_closed_before_a_fork_and_opened_anew_on_both_sides(
    ledger: str, publish: Callable[[str], Publisher]
) -> None:
    fill(ledger, 64)
    publish(ledger).close()
    with connect(ledger) as cache:
        cache.append("user", "before")
        everything(cache)
        connection, environment = cache._reader.connection, cache._reader.snapshots.locator.environment
        epoch = connection.epoch

        def child() -> Any:
            was_open, same = connection.is_open, cache._reader.snapshots.locator.environment is environment
            appended = cache.append("user", "child")
            held = holds_lock(ledger_file_id(ledger + "-shm"), WAL_DMS_BYTE)
            return was_open, same, appended, held, everything(cache) == replayed(ledger), cache._reader.replays

        assert in_child(child) == [False, False, 66, True, True, 0]
        assert not connection.is_open
        assert cache.append("user", "parent") == 67
        assert everything(cache) == replayed(ledger)
        assert connection.epoch > epoch
        assert holds_lock(ledger_file_id(ledger + "-shm"), WAL_DMS_BYTE)


def test_commits_of_a_child_survive_the_parents_end(ledger: str) -> None:
    """Without locks of its own the child's WAL is deleted by whoever else closes the ledger last, commits and all."""
    code = """
import os, subprocess, sys
from pmm_shm_client import connect
cache = connect(sys.argv[1])
cache.append("user", "parent"), cache.metrics()
ended, end = os.pipe()
if os.fork():
    cache.append("user", "parent"), cache.metrics()
    cache.close()
    os._exit(0)
os.close(end)
cache.append("user", "child"), cache.metrics()
os.read(ended, 1)
for _ in range(3):
    subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]], check=True)
    print(cache.append("user", "child"), cache.metrics().as_of, flush=True)
os._exit(0)
"""
    other = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM events').fetchall(); c.close()"
    )
    ended = run_python(code, ledger, other, forked=False)
    assert ended.stdout == "4 4\n5 5\n6 6\n", ended.stderr
    rows = ledgers.execute(ledger, "SELECT content, count(*) FROM events GROUP BY content ORDER BY content")
    assert rows == [("child", 4), ("parent", 2)]


def test_a_host_programs_connection_across_a_fork_is_found_out(ledger: str) -> None:
    """SQLite believes in the parent's locks, in the child: reads and appends refuse."""
    fill(ledger, 8)
    code = """
import os, sqlite3, sys
from pmm_shm.errors import LockLostError
from pmm_shm_client import connect
own = sqlite3.connect(sys.argv[1])
own.execute("SELECT count(*) FROM events").fetchall()
cache = connect(sys.argv[1])
cache.append("user", "before"), cache.metrics()
child = os.fork()
if child == 0:
    refused = 0
    for call in (cache.metrics, cache.frame, lambda: cache.append("user", "lost"), cache.self_model):
        try:
            call()
        except LockLostError as error:
            refused += 1
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), cache.append("user", "parent"), cache.metrics().as_of)
"""
    ended = run_python(code, ledger, forked=False)
    assert ended.stdout == "4 10 10\n", ended.stderr


@pytest.mark.parametrize("freshness", MARKS)
def test_a_lock_that_is_lost_meanwhile_ends_reads_and_appends(ledger: str, freshness: Any) -> None:
    """Another library opens and closes the `-shm`: from then on the mark is worth nothing."""
    fill(ledger, 8)
    code = """
import os, sys, time
from pmm_shm.errors import LockLostError
from pmm_shm_client import connect
cache = connect(sys.argv[1], freshness=sys.argv[2])
cache.metrics(), cache.append("user", "own"), cache.metrics()
os.close(os.open(sys.argv[1] + "-shm", os.O_RDWR))
deadline = time.monotonic() + 1.0
refused = set()
while time.monotonic() < deadline and len(refused) < 2:
    for name, call in (("read", cache.metrics), ("append", lambda: cache.append("user", "more"))):
        if name not in refused:
            try:
                call()
            except LockLostError:
                refused.add(name)
print(sorted(refused))
"""
    ended = run_python(code, ledger, freshness)
    assert ended.stdout == "['append', 'read']\n", ended.stderr


# Replacement, and the descriptor of the `-shm` file.


def descriptors(path: str) -> list[tuple[str, bool]]:
    """(number, whether it can only read) of this process's descriptors of a file."""
    inode, found = os.stat(path).st_ino, []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.stat(f"/proc/self/fd/{name}").st_ino == inode:
                flags = next(
                    line for line in Path(f"/proc/self/fdinfo/{name}").read_text().splitlines() if "flags" in line
                )
                found.append((name, int(flags.split()[1], 8) & os.O_ACCMODE == os.O_RDONLY))
        except OSError:
            continue
    return found


def test_the_shm_descriptor_is_opened_once_and_never_closed(ledger: str) -> None:
    fill(ledger, 8)
    with connect(ledger) as first:
        first.metrics()
        inode = os.stat(ledger + "-shm").st_ino
        ours = [name for name, is_read_only in descriptors(ledger + "-shm") if is_read_only]
        assert len(ours) == 1
        for _ in range(3):
            with connect(ledger) as second:
                assert second.metrics().as_of == 8
            in_child(lambda: first.metrics().as_of)
            assert first.metrics().as_of == 8
            # Other processes' exits leave the file in place as long as our lock is held.
            assert ledger_file_id(ledger + "-shm") == first._reader.connection.shm_id
            assert holds_lock(ledger_file_id(ledger + "-shm"), WAL_DMS_BYTE)
            if os.stat(ledger + "-shm").st_ino == inode:
                assert [name for name, is_read_only in descriptors(ledger + "-shm") if is_read_only] == ours
    # Closed caches leave it open, too: nobody knows who else in this process uses the ledger.
    numbers = os.listdir("/proc/self/fd")
    assert ours[0] in numbers


def test_a_hit_makes_no_system_call(ledger: str, publish: Callable[[str], Publisher]) -> None:
    """A thousand hits of each kind under a filter that kills for any system call but `write` and `exit_group`."""
    fill(ledger, 64)
    publish(ledger)
    code = """
import ctypes, gc, os, platform, struct, sys
from pmm_shm_client import connect
numbers = {"x86_64": (1, 231), "aarch64": (64, 94)}.get(platform.machine())
libc = ctypes.CDLL(None)

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

if numbers is None or libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
    sys.exit(77)
load, allow, kill = (0x20, 0, 0, 0), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x80000000)
steps = [load, (0x15, 2, 0, numbers[0]), (0x15, 1, 0, numbers[1]), kill, allow]
program = Program(len(steps), b"".join(struct.pack("HBBI", *step) for step in steps))
cache = connect(sys.argv[1])
reads = (cache.metrics, cache.identity, cache.commitments, cache.stage, cache.recent, lambda: cache.fold("metrics"))

def hit(times):
    for _ in range(times):
        for read in reads:
            read()

hit(1_000)
gc.disable()
cache._freshness.trusted_until = 0.0
hit(1)
if libc.prctl(22, 2, ctypes.byref(program), 0, 0):  # PR_SET_SECCOMP, filter
    os._exit(77)
hit(1_000)
os.write(1, b"done")
os._exit(0)
"""
    ended = run_python(code, ledger, forked=False)
    if ended.returncode == 77:
        pytest.skip("this system lets no process restrict its own system calls")
    assert (ended.stdout, ended.returncode) == ("done", 0), ended.stderr
