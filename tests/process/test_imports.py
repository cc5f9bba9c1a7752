"""What a worker imports: a first read, and all plain reads, load nothing that they do not need."""

from __future__ import annotations

import json

import pytest

from pmm_shm.ledger.eventlog import EventLog
from tests.conftest import StartDaemon
from tests.support.daemons import environment, run_python

NEEDLESS = {
    "_hashlib",
    "asyncio",
    "concurrent.futures",
    "copy",
    "dataclasses",
    "email",
    "enum",
    "heapq",
    "importlib.metadata",
    "inspect",
    "json",
    "logging",
    "mmap",
    "numpy",
    "pathlib",
    "pmm_shm.crash_points",
    "pmm_shm.instance.making",
    "pmm_shm.ledger.append",
    "pmm_shm.ledger.chain",
    "pmm_shm.ledger.instants",
    "pmm_shm.ledger.new_events",
    "pmm_shm.ledger.schema",
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
    "re",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "typing",
    "urllib",
    "zmq",
}
"""Each costs a worker between a tenth of a millisecond and forty, and up to ten megabytes."""

MODULES_MAX = 51
"""Of ours, in a first read."""

READS = """
import json, sys
# What the interpreter's own start-up loads, where it is set up so, and what the libraries below do, is not ours.
import lmdb, msgpack, sqlite3
before = set(sys.modules)
from pmm_shm_client import connect
cache = connect(sys.argv[1])
assert cache.metrics().as_of == 2 and cache._reader.replays == 0
first = set(sys.modules)
cache.identity(), cache.commitments(), cache.stage(), cache.recent(), cache.history(), cache.fold("directives")
cache.self_model(), cache.directives(), cache.active_directives(), cache.frame()
print(json.dumps([sorted(first - before), sorted(set(sys.modules) - first)]))
"""

# From Python 3.12 on, a fork beside threads says so on stderr.
QUIET = environment(PYTHONWARNINGS="ignore::DeprecationWarning")


def test_reads_import_only_what_they_need(ledger: str, start_daemon: StartDaemon) -> None:
    with EventLog(ledger) as log:
        log.append_many([("user", "hello", {}), ("reflection", "so it is", {})])
    start_daemon(ledger)
    done = run_python(READS, ledger, forked=False)
    assert done.returncode == 0, done.stderr
    first, later = json.loads(done.stdout)
    assert "pmm_shm_client.reads" in first
    assert NEEDLESS & set(first) == set()
    assert sum(name.split(".")[0] in ("pmm_shm", "pmm_shm_client") for name in first) <= MODULES_MAX
    assert later == []


FORKS = """
import os, sys, threading, time
import pmm_shm_client
if sys.argv[1] == "before the hooks":
    import logging
import pmm_shm.ledger.connection
from pmm_shm.late import late_imports
if sys.argv[1] == "after the hooks":
    import logging

begun = threading.Event()

class Slow:
    def find_spec(self, name, *_):
        if name == "logging":
            begun.set()
            time.sleep(0.2)  # The fork begins, and waits for this import.

def load():
    with late_imports:
        import logging

def log(stream):
    import logging
    logging.basicConfig(stream=stream)
    logging.warning("free")

if sys.argv[1] == "while a fork waits":
    assert "logging" not in sys.modules
    sys.meta_path.insert(0, Slow())
    threading.Thread(target=load).start()
    begun.wait()
for _ in range(2):
    child = os.fork()
    # A thread: the lock is re-entrant, and would let in the one that has forked.
    thread = threading.Thread(target=log, args=(sys.stdout,), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "the lock of logging is held"
    if not child:
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("loaded", ["before the hooks", "after the hooks", "while a fork waits"])
def test_a_fork_leaves_the_lock_of_logging_free_whenever_that_was_imported(loaded: str) -> None:
    done = run_python(FORKS, loaded, env=QUIET, forked=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("free") == 4


WAITS = """
import os, sys, threading
import pmm_shm.ledger.connection
from pmm_shm.late import late_imports
import logging

held, forking = threading.Event(), threading.Event()

def load():
    with late_imports:
        held.set()
        forking.wait()
        # What a module of another package does when it is imported.
        logging.getLogger("made.while.a.fork.waits")

thread = threading.Thread(target=load)
thread.start()
held.wait()
# The youngest hook runs first, before that of logging.
os.register_at_fork(before=lambda: threading.Timer(0.2, forking.set).start())
child = os.fork()
if not child:
    logging.getLogger("made.in.the.child")
    os._exit(0)
thread.join()
assert os.waitpid(child, 0)[1] == 0
logged = threading.Thread(target=logging.getLogger, args=("made.afterwards",), daemon=True)
logged.start()
logged.join(10)
assert not logged.is_alive(), "the lock of logging is held"
"""


def test_a_fork_waits_for_an_import_that_makes_a_logger() -> None:
    done = run_python(WAITS, env=QUIET, forked=False)
    assert (done.returncode, done.stderr) == (0, "")


WITHIN_IMPORTS = """
import json, sys
from pmm_shm_client import connect

cache, found = connect(sys.argv[1]), []

class Interrupting:
    "Calls as a signal handler does, before each module of ours that the module of the event log imports."

    is_inside = False

    def find_spec(self, name, path=None, target=None):
        if "pmm_shm.ledger.eventlog" in sys.modules and name.startswith("pmm_shm.") and not self.is_inside:
            self.is_inside = True
            try:
                found.append(cache.append("nested"))
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
            self.is_inside = False

sys.meta_path.insert(0, Interrupting())
outer = cache.append("outer")
print(json.dumps([found, outer, cache.append("after"), [event.id for event in cache.events()]]))
"""


def test_a_call_while_its_thread_imports_what_an_append_needs_is_refused(ledger: str) -> None:
    EventLog(ledger).close()
    done = run_python(WITHIN_IMPORTS, ledger, forked=False)
    assert done.returncode == 0, done.stderr
    found, outer, after, ids = json.loads(done.stdout)
    written = [one for one in found if isinstance(one, int)]
    refused = [one for one in found if not isinstance(one, int)]
    assert refused
    assert all(one.startswith("LedgerBusyError: pmm_shm.ledger.") and "\n" not in one for one in refused), refused
    assert ids == sorted([*written, outer, after])
