"""What a worker imports: a first read, and all plain reads, load nothing that they do not need."""

from __future__ import annotations

import json

from pmm_shm.ledger.eventlog import EventLog
from tests.conftest import StartDaemon
from tests.support.daemons import run_python

NEEDLESS = {
    "asyncio",
    "concurrent.futures",
    "dataclasses",
    "email",
    "importlib.metadata",
    "inspect",
    "numpy",
    "pmm_shm.vectors.embedder",
    "pmm_shm.wire.endpoints",
    "pmm_shm.wire.protocol",
    "pmm_shm.projection.verification",
    "pmm_shm_client.autostart",
    "pmm_shm_client.commands",
    "pmm_shm_client.embeddings",
    "pmm_shm_client.searching",
    "pwd",
    "random",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "zmq",
}
"""Each costs a worker between half a millisecond and forty, and up to ten megabytes."""

READS = """
import json, sys
# What the interpreter's own start-up loads, where it is set up so, and what the libraries below do, is not ours:
# pathlib, for one, loads pwd from Python 3.13 on.
import lmdb, msgpack, pathlib, sqlite3
before = set(sys.modules)
from pmm_shm_client import connect
cache = connect(sys.argv[1])
assert cache.metrics().as_of == 2 and cache._reader.replays == 0
first = set(sys.modules)
cache.identity(), cache.commitments(), cache.stage(), cache.recent(), cache.history(), cache.fold("directives")
cache.self_model(), cache.directives(), cache.active_directives(), cache.frame()
print(json.dumps([sorted(first - before), sorted(set(sys.modules) - first)]))
"""


def test_reads_import_only_what_they_need(ledger: str, start_daemon: StartDaemon) -> None:
    with EventLog(ledger) as log:
        log.append_many([("user", "hello", {}), ("reflection", "so it is", {})])
    start_daemon(ledger)
    done = run_python(READS, ledger, forked=False)
    assert done.returncode == 0, done.stderr
    first, later = json.loads(done.stdout)
    assert "pmm_shm_client.reads" in first
    assert NEEDLESS & set(first) == set()
    assert later == []
