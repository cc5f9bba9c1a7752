"""Many clients of one daemon at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.daemons import DEADLINE_S, Daemon, environment, run_python, until


def check_end_state(ledger: str, daemon: Daemon) -> None:
    """The chain is linear, and everything that is published or read equals a replay."""
    with EventLog(ledger) as log, connect(ledger) as cache:
        report = log.verify_chain()
        assert report.ok, report
        assert report.rows_checked == ledgers.execute(ledger, "SELECT count(*) FROM events")[0][0]
        cache.wait_for(log.read_tail(limit=1)[0]["id"], DEADLINE_S)
        expected = replayed(ledger)
        assert everything(cache) == expected
        with connect(ledger, consistency="snapshot") as snapshot:
            assert everything(snapshot) == expected
        assert cache._reader.replays == 0
        assert cache.verify()
    assert daemon.process.poll() is None
    assert daemon.stats()["health"] == "healthy"


SLOTS = """
import lmdb, os, sys
with lmdb.open(sys.argv[1], readonly=True, create=False, map_size=1 << 30) as environment:
    rows = [line.split() for line in environment.readers().splitlines()]
print(*{row[0] for row in rows if row[0].isdecimal()} - {str(os.getpid())})
"""


def slots(ledger: str) -> set[int]:
    """Pids in LMDB's table of readers, whether they read at the moment or not; looked up by another process."""
    done = run_python(SLOTS, f"{ledger}-cache")
    assert done.returncode == 0, done.stderr
    return set(map(int, done.stdout.split()))


CROWD_S = 60.0
CROWD = """
import json, os, signal, sys, traceback
from pmm_shm_client import commands, connect
from tests.support.answers import everything
import pmm_shm_client.cache, zmq
path, expected = sys.argv[1], json.loads(sys.stdin.readline())
go, gate = os.pipe()
leave, leave_gate = os.pipe()
answers_read, answers = os.pipe()
CLIENTS = int(sys.argv[2])

def child(number):
    cache = connect(path)
    assert everything(cache) == expected, "exact"
    assert cache._reader.replays == 0
    published = cache.metrics(consistency="snapshot")
    assert (published.ias, published.gas, published.as_of) == tuple(json.loads(sys.argv[3])), "snapshot"
    assert cache.wait_for(published.as_of, 30.0) >= published.as_of
    # Not `cache.stats()`, which gives up after a second: 200 processes begin on few cores.
    assert commands.call(cache._instance, "stats", {}, 30.0)["as_of"] == published.as_of
    os.write(answers, b"1")
    # Open and at rest until all are there; then one more event, and all look at once.
    newest = int(os.read(go, 16))
    assert cache.metrics().as_of == newest
    assert cache.identity().name == "all are here"
    os.write(answers, b"2")
    os.read(leave, 16)
    # Half of them take leave, half do not.
    if number % 2:
        cache.close()
    os.write(answers, b"3")
    os.kill(os.getpid(), signal.SIGKILL)

pids = []
for number in range(CLIENTS):
    pid = os.fork()
    if pid == 0:
        try:
            os.close(gate), os.close(leave_gate)
            child(number)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    pids.append(pid)
def gather(mark):
    left = CLIENTS
    while left:
        data = os.read(answers_read, left)
        assert data and set(data) == {ord(mark)}, data
        left -= len(data)
os.close(answers)
gather("1")
print("connected", flush=True)
newest = sys.stdin.readline().strip()
for _ in pids:
    os.write(gate, newest.rjust(16).encode())
gather("2")
print("seen", flush=True)
sys.stdin.readline()
os.close(leave_gate)
gather("3")
print(sum(os.waitpid(pid, 0)[1] == signal.SIGKILL for pid in pids), flush=True)
"""


def check_crowd(ledger: str, daemon: Daemon, clients: int) -> None:
    """So many processes, connected and reading beside one daemon; no answer is wrong, and no reader slot is lost."""
    with connect(ledger) as cache:
        cache.append_many(
            [("commitment_open", "", {"cid": number, "text": f"text {number}"}) for number in range(300)]
            + [("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": 0.25}})] * 5
        )
        daemon.wait_published(305)
        metrics = cache.metrics()
        expected = replayed(ledger)
        cache.close()
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", CROWD, ledger, str(clients), json.dumps([metrics.ias, metrics.gas, metrics.as_of])],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def tell(text: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text + "\n")
        process.stdin.flush()
        return process.stdout.readline()

    timer = threading.Timer(CROWD_S, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    try:
        assert tell(json.dumps(expected)) == "connected\n"
        assert len(slots(ledger) - {daemon.pid}) == clients
        with EventLog(ledger) as log:
            newest = log.append("identity_adopt", "all are here")
        assert tell(str(newest)) == "seen\n"
        assert tell("") == f"{clients}\n"
        assert time.monotonic() - started < CROWD_S
    finally:
        timer.cancel()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdin.close()
        process.stdout.close()
    until(lambda: slots(ledger) == {daemon.pid}, "all slots are free")
    check_end_state(ledger, daemon)
