"""The hazards of SQLite, LMDB and a hostile ledger, each with real processes where the promise is about them.

`docs/RELIABILITY.md` lists them with the answer to each, its tests, and what makes these fail.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import errors, limits
from pmm_shm.folds.engine import quarantine_of
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.files import ledger_file_id
from pmm_shm.ledger.freshness import WAL_INDEX_HEADER_BYTES, Freshness
from pmm_shm.ledger.locks import WAL_DMS_BYTE, holds_lock
from pmm_shm.projection.replay import replay
from pmm_shm.wire import protocol
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.answers import everything, replayed, strict
from tests.support.daemons import DEADLINE_S, environment, run_python, until
from tests.support.hazards import HOSTILE_KINDS, event, fill, insert_hostile
from tests.support.sources import sources

JOURNALS = ("wal", "delete")
NEVER = ("--verify-every", "0")


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code with pipes; what still runs at the end is killed, stopped or not."""
    processes: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], text: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def elsewhere(path: str, *statements: str) -> None:
    """Statements in another process, which closes its connection: the last one to do so empties and deletes the WAL."""
    code = """
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
for statement in json.loads(sys.argv[2]):
    connection.execute(statement).fetchall()
connection.close()
"""
    ended = run_python(code, path, json.dumps(statements))
    assert ended.returncode == 0, ended.stderr


INSERT = "INSERT INTO events (ts, kind, content, meta) VALUES ('2026-01-01T00:00:00Z', 'user', 'elsewhere', '{}')"
# Holds the ledger open until it is told to end; answers with the result of each statement it is given.
HOLDER = """
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, uri=True, timeout=10)
print(connection.execute("SELECT max(id) FROM events").fetchall()[0][0], flush=True)
for statement in sys.stdin:
    print(json.dumps(connection.execute(statement).fetchall()), flush=True)
"""


def ask(holder: subprocess.Popen[str], statement: str) -> Any:
    tell(holder, statement)
    return json.loads(line(holder))


def sha256(*paths: str) -> list[str]:
    """Digests made by another process: here, closing a file of the ledger would drop SQLite's locks."""
    done = subprocess.run(["sha256sum", *paths], check=True, capture_output=True, text=True)
    return [row.split()[0] for row in done.stdout.splitlines()]


# Hazard 1.


OPENERS = {
    "open",
    "fdopen",
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "touch",
    "mmap",
    "connect",
    "memfd",
}
# What opens a file or a database, per module: nobody else may, and none of these is given a file of the ledger but the
# two marked so. Sockets connect, too.
ALLOWED: dict[str, dict[str, int]] = {
    "server/pmm_cached/indexer.py": {"self._tables.open": 2},  # Tables of vectors.
    "pmm_shm/instance/file_systems.py": {"open": 1},  # /proc/self/mountinfo
    "pmm_shm/ledger/opening.py": {
        "sqlite3.connect": 2
    },  # The ledger, by SQLite; without locks only where none are held.
    "pmm_shm/ledger/restore.py": {"os.open": 1, "sqlite3.connect": 1},  # New files beside the ledger: copies.
    "pmm_shm/ledger/backup.py": {"sqlite3.connect": 1},  # The copy, under its temporary name.
    "pmm_shm/ledger/new_file.py": {"os.open": 4},  # New databases, before anyone uses them, and their directory.
    "pmm_shm/ledger/freshness.py": {"os.open": 1, "_libc.mmap": 1},  # The -shm file: opened once, never closed.
    "pmm_shm/ledger/locks.py": {"os.open": 1},  # fdinfo of processes, and /proc/locks
    "pmm_shm/store/making.py": {"lmdb.open": 1},
    "pmm_shm/store/environment.py": {
        "lmdb.open": 1,
        "open": 1,
        "os.open": 1,
    },  # data.mdb, which LMDB does not lock; lock.mdb, as long as the environment is open
    "pmm_shm/ledger/shape.py": {"file.read_text": 1},  # A TOML file of the user, or of the package.
    "pmm_shm/ledger/shape_record.py": {"file.read_text": 1},  # In the instance directory.
    "pmm_shm/ledger/shape_view.py": {"sqlite3.connect": 1},  # An empty database in memory.
    "pmm_shm/store/boot.py": {"open": 2},
    "pmm_shm/instance/making.py": {"os.open": 1, "open": 1},  # What is made in the instance directory.
    "client/pmm_shm_cli/benchmark.py": {"open": 1, "sqlite3.connect": 1},  # /proc/cpuinfo, its own copy
    "pmm_shm/wire/endpoints.py": {"instance.endpoints_file.read_text": 1, "probe.connect": 1},
    # data.mdb, and lock.mdb, which a process that has LMDB's environment open does not open so.
    "pmm_shm/store/inspection.py": {"open": 1, "(directory / LOCK_TABLE_FILE).read_bytes": 1},
    "client/pmm_shm_cli/doctor/gathering.py": {"probe.connect": 1},
    "client/pmm_shm_cli/doctor/machine.py": {"file.read_text": 1},  # /etc/pmm-cached
    "client/pmm_shm_cli/doctor/processes.py": {"open": 2},  # /proc
    "server/pmm_cached/sizes.py": {"os.open": 1},
    "server/pmm_cached/workers.py": {"Path(f'/proc/{pid}/stat').read_bytes": 1},
    "client/pmm_shm_client/autostart.py": {"open": 1, "path.read_text": 1},
    "client/pmm_shm_client/commands.py": {"self._socket.connect": 1},
    "client/pmm_shm_client/aio.py": {"socket.connect": 1},
    "client/pmm_shm_cli/synthetic.py": {"sqlite3.connect": 1},  # New ledgers, before anyone uses them.
    "client/pmm_shm_terminal/program.py": {"os.open": 3, "os.fdopen": 1},  # /dev/null
    # The figure, which is no file of the ledger, and whether this command made the one that is there.
    "client/pmm_shm_cli/commands/plot.py": {"target.write_bytes": 1, "open": 1},
    "client/pmm_shm_cli/commands/transfer.py": {"open": 1},  # The lines to import, before any ledger is opened.
    "client/pmm_shm_cli/process_usage.py": {"Path(f'/proc/{pid}/stat').read_bytes": 1},
    "client/pmm_shm_client/stopping.py": {"probe.connect": 1},  # The daemon's socket.
    "pmm_shm/installation.py": {"found.read_text": 1},  # What pip recorded.
    # Reports of `pmm-shm run`, in the instance directory.
    "pmm_shm/instance/run_reports.py": {"os.open": 1, "open": 1},
    # Events that a source has lost.
    "pmm_shm/ledger/source/lost.py": {"open": 1},
    # The report of a follower or a run.
    "pmm_shm/ledger/source/report.py": {"open": 1},
    # PostgreSQL.
    "pmm_shm/ledger/source/server.py": {"SourceSession.connect": 1},
    # The index of words: a file of the daemon's own.
    "pmm_shm/words/file.py": {"sqlite3.connect": 2, "os.open": 1},
    # The index of words, and one in memory.
    "client/pmm_shm_client/word_search.py": {"sqlite3.connect": 1},
    # /proc
    "client/pmm_shm_terminal/state.py": {"Path(f'/proc/{pid}/cmdline').read_bytes": 1},
    # A file with a token.
    "client/pmm_shm_terminal/tokens.py": {"os.open": 2, "open": 1, "os.fdopen": 1},
    # PostgreSQL.
    # What an editor has written, and the history of the chat.
    "client/pmm_shm_chat/typing_lines.py": {"os.open": 1},
    # A lock beside the ledger.
    "client/pmm_shm_pmm/autonomy.py": {"os.open": 1},
    # Sources of PMM, and the list of those known.
    "client/pmm_shm_pmm/known_sources.py": {
        "_TABLE.read_text": 1,
        "Path(further).read_text": 1,
        "Path(path).read_text": 1,
    },
    # The ledger, before the program takes the place of this process.
    "client/pmm_shm_pmm/launching.py": {"_sqlite().connect": 1},
    # The report of a follower or a run.
    "client/pmm_shm_pmm/report.py": {"os.open": 1, "open": 1},
    # Files of the package.
    "client/pmm_shm_web/assets.py": {"(FOLDER / 'page.css').read_text": 1, "path.read_bytes": 1},
    # A browser.
    "client/pmm_shm_web/serving.py": {"webbrowser.open": 1},
    # Events that a source has lost.
    "server/pmm_replicator/forks.py": {"os.open": 1, "open": 2},
    "server/pmm_replicator/report.py": {"self._path.read_bytes": 1},
    "pmm_shm/ledger/json_lines.py": {"sqlite3.connect": 1},  # A new ledger, under its temporary name.
}


def test_no_module_opens_files_but_those_that_are_known_to(ledger: str) -> None:
    """Hazard 1: closing a descriptor of the ledger's files drops SQLite's locks of the whole process."""
    found: dict[str, dict[str, int]] = {}
    for name, _, tree in sources():
        calls = Counter(
            ast.unparse(node.func)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and (node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")) in OPENERS
        )
        # The client's own `connect`, and what the command line opens, take a path and give a `Cache`.
        calls = Counter({call: count for call, count in calls.items() if call != "connect"})
        if calls:
            found[name] = dict(calls)
    assert found == ALLOWED
    freshness = (ledgers.ROOT / "pmm_shm/ledger/freshness.py").read_text(encoding="utf-8")
    # The one that closes does so with files that are deleted and not in use; see `test_descriptors_do_not_pile_up`.
    closing = freshness.replace("on_close(", "").replace("connection.close(", "")
    assert closing.count("close(") == closing.count("os.close(mapped.descriptor)") == 1


def test_nothing_that_a_process_does_drops_its_locks(
    ledger: str, start_daemon: StartDaemon, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 1: another process opens and closes the ledger behind every step; the WAL and each commit stay."""
    fill(ledger, 20)
    daemon = start_daemon(ledger, *NEVER)
    daemon.stop()
    with connect(ledger) as cache:
        appended = cache.append("user", "kept")
        inode = os.stat(ledger + "-wal").st_ino

        def second_cache() -> None:
            with connect(ledger) as second:
                second.frame()

        def second_log() -> None:
            with EventLog(ledger) as log:
                log.read_tail(limit=1)
                log.verify_chain()

        steps: list[Callable[[], Any]] = [
            lambda: everything(cache), lambda: everything(cache.frame()), cache.stats, cache.verify, second_cache,
            second_log, lambda: replayed(ledger), lambda: strict(cache, max_trait_delta=0.01),
        ]  # fmt: skip
        for step in steps:
            step()
            elsewhere(ledger, "SELECT count(*) FROM events")
            assert os.stat(ledger + "-wal").st_ino == inode
            assert holds_lock(ledger_file_id(ledger + "-shm"), WAL_DMS_BYTE)
        assert cache.append("user", "kept, too") == appended + 1
    elsewhere(ledger, "SELECT count(*) FROM events")
    assert ledgers.execute(ledger, "SELECT max(id) FROM events") == [(appended + 1,)]


# Hazard 2.


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_writer_commits_while_a_client_replays(
    ledger: str, journal: str, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 2: 50,000 events are folded, and no commit of a writer waits for it."""
    fill(ledger, 50_000)
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    reader = spawn(
        "import sys; from pmm_shm_client import connect; cache = connect(sys.argv[1]); print('begin', flush=True); "
        "print(cache.metrics().as_of, flush=True)",
        ledger,
    )
    assert line(reader) == "begin"
    # A commit that waits for the end of the reader's statement fails.
    connection = sqlite3.connect(ledger, timeout=0.5, isolation_level=None)
    commits = 0
    waiting = threading.Thread(target=lambda: answers.append(line(reader)))
    answers: list[str] = []
    waiting.start()
    while waiting.is_alive():
        connection.execute(INSERT)
        commits += 1
        waiting.join(0.01)
    connection.close()
    (answer,) = answers
    # It really was in the middle: several commits came while it folded, and it reached one of them.
    assert commits > 5
    assert int(answer) > 50_000


def test_the_wal_stays_small_while_daemon_and_clients_read(
    ledger: str, start_daemon: StartDaemon, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 2: an open statement would keep every checkpoint from starting the WAL over."""
    fill(ledger, 100)
    daemon = start_daemon(ledger, *NEVER)
    reader = spawn(
        """
import sys, threading
from pmm_shm_client import connect
cache = connect(sys.argv[1])
print("ready", flush=True)
threading.Thread(target=sys.stdin.readline, daemon=True).start()
while threading.active_count() > 1:
    cache.frame()
print(cache.metrics().as_of, flush=True)
""",
        ledger,
    )
    assert line(reader) == "ready"
    connection = sqlite3.connect(ledger, timeout=5, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 100").fetchall()
    written, largest = 0, 0
    for number in range(2_800):
        connection.execute(
            "INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', ?, '{}')", (f"{number} " + "x" * 16_000,)
        )
        written += 16_000
        largest = max(largest, os.stat(ledger + "-wal").st_size)
    connection.close()
    assert written > 44_000_000
    # On a busy machine a reader is interrupted within its statements, and a checkpoint comes to its end less often.
    assert largest < 15_000_000
    tell(reader)
    assert line(reader) == "2900"
    daemon.wait_published(2_900)


# Hazard 3.


@pytest.mark.parametrize("journal", JOURNALS)
def test_daemon_and_readers_write_nothing_to_the_ledger(
    ledger: str, journal: str, start_daemon: StartDaemon, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 3: neither a checkpoint nor an index, not even beside a WAL that nobody has emptied."""
    elsewhere(
        ledger,
        f"PRAGMA journal_mode = {journal}",
        *[f"DROP INDEX {name}" for name in ("idx_events_kind_id", "idx_events_ts_id", "idx_metrics_lookup")],
        *[INSERT] * 20,
    )
    holder = spawn(HOLDER, ledger)
    line(holder)
    ask(holder, "PRAGMA wal_autocheckpoint = 0")
    ask(holder, INSERT)
    files = [ledger] + ([ledger + "-wal"] if journal == "wal" else [])

    def look() -> Any:
        return sha256(*files), [(os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in files]

    before = look()
    assert journal == "delete" or before[1][1][1] > 0
    daemon = start_daemon(ledger, "--verify-every", "1")
    code = """
import sys
from pmm_shm_client import EventLog, connect
with connect(sys.argv[1]) as cache:
    cache.frame(), cache.verify(), cache.invalidate(), cache.stats(), cache.directives()
    print(cache.metrics().as_of)
with EventLog(sys.argv[1]) as log:
    log.read_all(), log.verify_chain()
"""
    assert run_python(code, ledger).stdout == "21\n"
    assert look() == before
    daemon.stop()
    assert run_python(code.replace("cache.invalidate(), ", ""), ledger).stdout == "21\n"
    assert look() == before
    assert ask(holder, INSERT) == []


# Hazard 4.


THIRD_PARTY = {
    "click",
    "inotify_simple",
    "lmdb",
    "matplotlib",
    "msgpack",
    "msgspec",
    "numpy",
    "openai",
    "prometheus_client",
    "prompt_toolkit",
    "pydantic_core",
    "pytest",
    "rich",
    "wordllama",
    "zmq",
    # The log in PostgreSQL, the page, and the tools for assistants.
    "anyio",
    "jinja2",
    "markdown_it",
    "markupsafe",
    "mcp",
    "psycopg",
    "pydantic",
    "starlette",
    "uvicorn",
}
OWN = set(ledgers.PACKAGES)


def test_the_only_sqlite_is_the_standard_librarys() -> None:
    """Hazard 4: two SQLite libraries in one process break each other's locks."""
    imported: set[str] = set()
    for _, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) - OWN <= THIRD_PARTY
    ended = run_python(
        "import re, pmm_cached.main, pmm_shm_client; maps = open('/proc/self/maps').read(); "
        "print(len(set(re.findall(r'\\S*/libsqlite3\\S*|\\S*sqlcipher\\S*', maps))))",
        forked=False,
    )
    assert ended.stdout in ("0\n", "1\n"), ended.stderr


# Hazard 5.


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_replaced_ledger_is_followed(ledger: str, tmp_path: Path, journal: str, start_daemon: StartDaemon) -> None:
    """Hazard 5: client within a second, daemon by a rebuild; the new log is shorter, and then longer, than the old."""
    fill(ledger, 60)
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        for turn, count in enumerate((20, 90)):
            other = str(tmp_path / f"other{turn}.db")
            fill(other, count, 7)
            ledgers.execute(other, f"PRAGMA journal_mode = {journal}")
            rebuilds = daemon.stats()["rebuilds"]
            os.replace(other, ledger)
            until(lambda wanted=count: cache.metrics().as_of == wanted, deadline_s=limits.REPLACEMENT_NOTICED_S)
            assert everything(cache) == replayed(ledger)
            until(lambda n=rebuilds: daemon.stats()["rebuilds"] > n, "the daemon rebuilds")
            daemon.wait_published(count)
            assert daemon.stats()["as_of"] == count
            assert daemon.stats()["problem"] is None
            with connect(ledger, consistency="snapshot") as other_cache:
                assert everything(other_cache) == replayed(ledger)
            assert cache.append("user", "to the new one") == count + 1
            daemon.wait_published(count + 1)
            assert everything(cache) == replayed(ledger)
            # What the next turn replaces must lie in the file, not in its WAL.
            cache._log.close()
            until(lambda: ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0)


def test_a_replacement_beside_a_full_wal_stops_client_and_daemon(
    ledger: str, tmp_path: Path, start_daemon: StartDaemon, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 5: whoever opened the new file would play the old WAL into it: nobody does, and the remedy is named."""
    fill(ledger, 30)
    other = str(tmp_path / "other.db")
    fill(other, 50, 7)
    expected = replayed(other)
    daemon = start_daemon(ledger, *NEVER)
    holder = spawn(HOLDER, ledger)
    line(holder)
    ask(holder, "PRAGMA wal_autocheckpoint = 0")
    cache = connect(ledger)
    assert cache.append("user", "in the wal") == 31
    assert cache.metrics().as_of == 31
    daemon.wait_published(31)
    os.replace(other, ledger)
    before = sha256(ledger, ledger + "-wal")
    until(lambda: daemon.stats()["problem"], "the daemon stops following")
    problem = daemon.stats()["problem"]
    assert f"move {ledger}-wal to another name" in problem

    def refused() -> bool:
        try:
            cache.metrics()
        except errors.LedgerReplacedError as error:
            return str(error) == problem
        return False

    until(refused, deadline_s=limits.REPLACEMENT_NOTICED_S)
    for call in (cache.frame, cache.self_model, lambda: cache.append("user", "lost")):
        with pytest.raises(errors.LedgerReplacedError):
            call()  # type: ignore[operator]
    cache.close()
    assert daemon.stop() == 0
    holder.kill()
    holder.wait()
    assert sha256(ledger, ledger + "-wal") == before
    # The remedy.
    os.rename(ledger + "-wal", str(tmp_path / "saved-wal"))
    start_daemon(ledger, *NEVER)
    with connect(ledger) as again:
        assert everything(again) == expected == replayed(ledger)


# Hazard 6.


def restore(path: str, backup: str) -> None:
    """SQLite's backup interface, into the same file, by another process."""
    code = "import sqlite3, sys; a, b = map(sqlite3.connect, sys.argv[1:]); b.backup(a); a.close(), b.close()"
    ended = run_python(code, path, backup)
    assert ended.returncode == 0, ended.stderr


def cut(path: str, backup: str) -> None:
    elsewhere(path, "DELETE FROM events WHERE id > 40")


def rename(path: str, backup: str) -> None:
    elsewhere(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    os.replace(backup, path)


@pytest.mark.parametrize("roll_back", [cut, restore, rename])
@pytest.mark.parametrize("with_daemon", [False, True])
def test_a_state_from_the_future_is_never_served(
    ledger: str, tmp_path: Path, roll_back: Callable[[str, str], None], with_daemon: bool, start_daemon: StartDaemon
) -> None:
    """Hazard 6: truncated, or rolled back to a backup, and perhaps continued up to the same ids."""
    fill(ledger, 40)
    backup = str(tmp_path / "backup.db")
    subprocess.run(["cp", ledger, backup], check=True)
    fill(ledger, 60, 40)
    daemon = start_daemon(ledger, *NEVER) if with_daemon else None
    with connect(ledger) as cache:
        everything(cache)
        roll_back(ledger, backup)
        if roll_back is rename:
            until(lambda: cache.metrics().as_of == 40, deadline_s=limits.REPLACEMENT_NOTICED_S)
        assert cache.metrics().as_of == 40
        assert everything(cache) == replayed(ledger)
        if daemon is not None:
            until(lambda: daemon.stats()["as_of"] == 40 and daemon.stats()["is_published"], "the daemon rebuilds")
            assert everything(cache) == replayed(ledger)
        # Continued up to the very id that was folded before, with other events.
        with EventLog(ledger) as log:
            log.append_many([{**event(number), "content": "another history"} for number in range(3, 63)])
        assert everything(cache) == replayed(ledger)
        with connect(ledger) as fresh:
            assert everything(fresh) == replayed(ledger)
    if daemon is not None:
        daemon.wait_published(ledgers.execute(ledger, "SELECT max(id) FROM events")[0][0])
        with connect(ledger, consistency="snapshot") as published:
            assert everything(published) == replayed(ledger)


def test_the_same_ids_with_another_history_are_found_by_the_anchor(
    ledger: str, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """Hazard 6: rolled back and continued between two reads: the head's id is that of before."""
    fill(ledger, 40)
    backup = str(tmp_path / "backup.db")
    subprocess.run(["cp", ledger, backup], check=True)
    fill(ledger, 60, 40)
    daemon = start_daemon(ledger, *NEVER)
    with EventLog(backup) as log:
        log.append_many([{**event(number), "content": "another history"} for number in range(3, 63)])
    with connect(ledger) as cache:
        everything(cache)
        restore(ledger, backup)
        assert cache.metrics().as_of == 100
        assert everything(cache) == replayed(ledger)
        until(lambda: daemon.stats()["rebuilds"] == 2, "the daemon rebuilds")
        with connect(ledger, consistency="snapshot") as published:
            assert everything(published) == replayed(ledger)


@pytest.mark.parametrize("sealed", [False, True])
def test_an_edit_of_a_past_row_is_found_by_the_next_verification(
    ledger: str, sealed: bool, start_daemon: StartDaemon
) -> None:
    """Hazard 6: an edit that changes the state; and one of a column that neither a fold nor the chain looks at."""
    fill(ledger, 2_100)
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache:
        assert cache.verify().ok
        assert daemon.stats()["sealed_blocks"] == 3
        if sealed:
            # A tick's content: no fold declares it.
            edited = ledgers.execute(ledger, "SELECT min(id) FROM events WHERE kind = 'autonomy_tick'")[0][0]
            ledgers.execute(ledger, "UPDATE events SET content = 'edited' WHERE id = ?", edited)
        else:
            edited = 1
            ledgers.execute(ledger, "UPDATE events SET meta = ? WHERE id = 1", '{"trait": "o", "delta": 0.3}')
        report = cache.verify()
        assert not report.ok
        assert re.search("row among the events 1 to 1024" if sealed else "self_model", report.difference or "")
        assert everything(cache) == replayed(ledger)
        numbers = daemon.stats()
        assert numbers["verifications_failed"] == 1
        assert numbers["last_difference"] == report.difference
        until(lambda: daemon.stats()["rebuilds"] == 2 and daemon.stats()["is_published"], "the daemon rebuilds")
        assert everything(cache) == replayed(ledger)
        with connect(ledger, consistency="snapshot") as published:
            assert everything(published) == replayed(ledger)
        assert cache.verify().ok
        # The chain names the first row that was changed.
        with EventLog(ledger) as log:
            assert log.verify_chain().first_bad_id == edited


def test_a_periodic_verification_finds_an_edit_by_itself(ledger: str, start_daemon: StartDaemon) -> None:
    """Hazard 6: nobody asks; so many events after the edit it is found and repaired."""
    fill(ledger, 200)
    daemon = start_daemon(ledger, "--verify-every", "50", "--verify-budget", "1")
    until(lambda: daemon.stats()["verifications_passed"] >= 1, "the first verification")
    ledgers.execute(ledger, "UPDATE events SET meta = ? WHERE id = 1", '{"trait": "o", "delta": 0.3}')
    fill(ledger, 60, 200)
    until(lambda: daemon.stats()["verifications_failed"] == 1, "the verification")
    until(lambda: daemon.stats()["rebuilds"] == 2 and daemon.stats()["is_published"], "the rebuild")
    daemon.wait_published(260)
    with connect(ledger, consistency="snapshot") as published:
        assert everything(published) == replayed(ledger)


# Hazard 7.


PINNED = """
import os, signal, sys
from pathlib import Path
from pmm_shm.store.environment import open_reader
environment = open_reader(Path(sys.argv[1]))
with environment.read() as transaction:
    print(transaction.id(), flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
print("released", flush=True)
sys.stdin.readline()
"""


def test_a_stopped_reader_delays_rebuilds_and_nothing_else(
    ledger: str, start_daemon: StartDaemon, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 7: its pages are pinned; the map grows, the daemon names it, and no further rebuild piles up."""
    fill(ledger, 30)
    daemon = start_daemon(ledger, *NEVER, "--map-size", str(1 << 20))
    reader = spawn(PINNED, str(Instance.of(ledger).directory))
    assert int(line(reader)) > 0
    with connect(ledger) as cache:
        for turn in range(12):
            with EventLog(ledger) as log:
                meta = {"text": "x" * 2_000}
                log.append_many([("commitment_open", "c", {**meta, "cid": f"{turn} {n}"}) for n in range(60)])
            daemon.wait_published(30 + 60 * (turn + 1))
            assert cache.metrics().as_of == 30 + 60 * (turn + 1)
        numbers = daemon.stats()
        assert numbers["map_growths"] >= 1
        assert numbers["oldest_reader_pid"] == reader.pid
        assert numbers["oldest_reader_behind_txns"] > 0
        assert numbers["problem"] is None

        # The first rebuild flips: the reader is now older than the last flip, and the second waits for it.
        daemon.call(protocol.INVALIDATE, {"fold": None})
        assert daemon.stats()["rebuilds"] == 2
        answer: list[Any] = []
        waiting = threading.Thread(target=lambda: answer.append(daemon.call(protocol.INVALIDATE, {"fold": None})))
        waiting.start()
        until(lambda: daemon.stats()["rebuild_waits_for_pid"] == reader.pid, "the rebuild waits")
        size = os.stat(Instance.of(ledger).data_file).st_size
        cache.append("user", "while it waits")
        daemon.wait_published(cache.metrics().as_of)
        assert daemon.stats()["rebuilds"] == 2
        assert os.stat(Instance.of(ledger).data_file).st_size <= size + (1 << 18)
        assert waiting.is_alive()
        os.kill(reader.pid, signal.SIGCONT)
        assert line(reader) == "released"
        waiting.join(DEADLINE_S)
        assert answer
        numbers = daemon.stats()
        assert numbers["rebuilds"] == 3
        assert numbers["rebuild_waits_for_pid"] is None
        assert numbers["oldest_reader_pid"] is None
        assert everything(cache) == replayed(ledger)


def test_a_dead_reader_is_cleared(
    ledger: str, start_daemon: StartDaemon, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 7: one that was killed within a transaction holds nothing back."""
    fill(ledger, 30)
    daemon = start_daemon(ledger, *NEVER)
    reader = spawn(PINNED, str(Instance.of(ledger).directory))
    line(reader)
    until(lambda: daemon.stats()["oldest_reader_pid"] == reader.pid)
    reader.kill()
    reader.wait()
    assert daemon.stats()["oldest_reader_pid"] is None
    for _ in range(2):
        daemon.call(protocol.INVALIDATE, {"fold": None})
    assert daemon.stats()["rebuilds"] == 3


# Hazard 8.


SMALL_READER = """
import sys, threading
from pmm_shm.store import environment
from pmm_shm_client import connect
environment.open_map.__defaults__ = (int(sys.argv[2]),)
caches = [connect(sys.argv[1]) for _ in range(3)]
print(caches[0].metrics().as_of, flush=True)
failures, as_of, stop = [], [0, 0, 0], threading.Event()

def work(number):
    try:
        while not stop.is_set():
            caches[number].frame()
        as_of[number] = caches[number].frame().as_of
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
sys.stdin.readline()
stop.set()
for thread in threads:
    thread.join()
folded, replays = caches[0]._reader.events_folded, sum(cache._reader.replays for cache in caches)
opened = caches[0]._reader.snapshots.locator.environment.env.info()["map_size"]
print(failures, caches[0].metrics().as_of, min(as_of), replays, opened > int(sys.argv[2]), flush=True)
"""


def test_readers_of_the_old_map_size_go_on(
    ledger: str, start_daemon: StartDaemon, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 8: the daemon's map outgrows that of a reader with several threads and caches: every read is answered."""
    fill(ledger, 30)
    daemon = start_daemon(ledger, *NEVER, "--map-size", str(1 << 20))
    reader = spawn(SMALL_READER, ledger, str(1 << 20))
    assert line(reader) == "30"
    for turn in range(12):
        with EventLog(ledger) as log:
            meta = {"text": "x" * 3_000}
            log.append_many([("commitment_open", "c", {**meta, "cid": f"{turn} {n}"}) for n in range(60)])
        daemon.wait_published(30 + 60 * (turn + 1))
    assert daemon.stats()["map_growths"] >= 2
    tell(reader)
    assert line(reader) == "[] 750 750 0 True"


def test_client_and_daemon_work_where_address_space_is_limited(ledger: str) -> None:
    """Hazard 8: 1 TiB cannot be mapped under `ulimit -v`; a smaller map can."""
    fill(ledger, 300)
    code = """
import os, resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from pmm_shm_client import connect
from pmm_shm_client.autostart import start_daemon
start_daemon(sys.argv[1])
with connect(sys.argv[1]) as cache:
    cache.wait_for(300)
    cache.frame()
    published = cache.metrics(consistency="snapshot").as_of
    print(cache.metrics().as_of, published, cache._reader.replays, cache.stats()["daemon"]["pid"])
"""
    ended = run_python(code, ledger, forked=False)
    assert ended.returncode == 0, ended.stderr
    *numbers, pid = map(int, ended.stdout.split())
    os.kill(pid, signal.SIGTERM)
    assert numbers == [300, 300, 0]


# Hazard 9.


def test_a_fork_leaves_environment_context_and_connections_to_the_parent(
    ledger: str, start_daemon: StartDaemon
) -> None:
    """Hazard 9: both sides go on reading the shared snapshot, asking the daemon and appending; so does a grandchild."""
    fill(ledger, 100)
    start_daemon(ledger, *NEVER)
    code = """
import os, sys
from pmm_shm_client import commands, connect
cache = connect(sys.argv[1])

def use(name):
    appended = cache.append("user", name)
    cache.wait_for(appended)
    assert cache.frame().as_of >= appended
    assert cache.metrics(consistency="snapshot").as_of >= appended
    assert cache.stats()["daemon"]["as_of"] >= appended
    assert cache._reader.replays == 0, (name, cache._reader.replays, cache._reader.snapshots.locator.failure)

use("before")
context, environment = commands.context(), cache._reader.snapshots.locator.environment
for generation in ("child", "grandchild"):
    child = os.fork()
    if child:
        use("parent of " + generation)
        status = os.waitpid(child, 0)[1]
        use("parent of " + generation)
        os._exit(os.waitstatus_to_exitcode(status))
    try:
        use(generation)
        assert commands.context() is not context
        assert cache._reader.snapshots.locator.environment is not environment
    except BaseException as error:
        print(generation, repr(error), file=sys.stderr, flush=True)
        os._exit(1)
os._exit(0)
"""
    ended = run_python(code, ledger, forked=False)
    assert ended.returncode == 0, ended.stderr
    with connect(ledger) as cache:
        assert [entry.content for entry in cache.recent().messages[-7:]].count("parent of child") == 2
        assert {entry.content for entry in cache.recent().messages[-7:]} == {
            "before", "child", "grandchild", "parent of child", "parent of grandchild",
        }  # fmt: skip
        assert everything(cache) == replayed(ledger)
        assert cache.metrics().as_of == 107


# Hazard 18.


def test_hostile_rows_are_the_same_everywhere_and_stop_nobody(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """Hazard 18: replay, client, client beside a daemon and snapshot agree; what was replaced is counted."""
    path = str(tmp_path / "ledger.db")
    connection = ledgers.connect(path)
    connection.execute("PRAGMA journal_mode = wal")
    ledgers.make_table(connection, strict=False)
    connection.close()
    fill(path, 20)
    insert_hostile(path)
    head = ledgers.execute(path, "SELECT max(id) FROM events")[0][0]
    expected = replayed(path)
    with connect(path) as alone:
        assert everything(alone) == expected
        assert alone.metrics().as_of == head
    daemon = start_daemon(path, *NEVER)
    with connect(path) as beside, connect(path, consistency="snapshot") as published:
        assert everything(beside) == everything(published) == expected
        assert beside.verify().ok
        # The same rows again, now one step at a time through the follower.
        insert_hostile(path)
        head = ledgers.execute(path, "SELECT max(id) FROM events")[0][0]
        assert everything(beside) == replayed(path)
        daemon.wait_published(head)
        assert everything(published) == replayed(path)
        assert beside.verify().ok
        appended = beside.append("user", "goes on")
        daemon.wait_published(appended)
        assert beside.recent().messages[-1].content == "goes on"
    numbers = daemon.stats()
    from pmm_cached.follower import all_folds

    connection_of = Connection(path, "ro")
    _, states = replay(connection_of, all_folds())
    connection_of.close()
    count, entries = quarantine_of(states, 20)
    assert numbers["quarantined"] == count > 2 * len(HOSTILE_KINDS) * 7
    assert [tuple(entry) for entry in numbers["quarantine"]] == [tuple(entry) for entry in entries]
    assert numbers["health"] == "degraded"
    assert numbers["problem"] is None
    reasons = {entry.reason for entry in quarantine_of(states, 10_000)[1]}
    wanted = ("nested too deep", "integer too long", "not an object", "not JSON", "not text", "not UTF-8")
    assert {f"meta: {reason}" for reason in wanted} <= reasons
    assert {"content is not UTF-8", "content is not text"} <= reasons


# Hazard 19.


GAPS = {
    "small": [1, 2, 5, 9],
    "huge": [1, 2, 1 << 40, (1 << 40) + 1, 1 << 62],
    "negative": [-(1 << 62), -7, -1, 3],
    "all negative": [-9, -5, -2],
    "zero": [0],
}


@pytest.mark.parametrize("name", GAPS)
@pytest.mark.parametrize("published_when", ["empty", "half", "full"])
def test_gaps_between_ids_stall_nobody(ledger: str, name: str, published_when: str, start_daemon: StartDaemon) -> None:
    """Hazard 19: a gap of any size is one step, for the kinds that folds need and for those they do not."""
    ids = GAPS[name]
    kinds = ("nobody's", "commitment_open", "user", "nobody's, either")

    def insert(some: list[int]) -> None:
        connection = ledgers.connect(ledger)
        for number in some:
            kind = kinds[ids.index(number) % 4] if len(ids) > 1 else "user"
            meta = json.dumps({"cid": f"c{number}", "text": "t"})
            connection.execute(
                "INSERT INTO events (id, ts, kind, content, meta) VALUES (?, 't', ?, 'text', ?)", (number, kind, meta)
            )
        connection.close()

    first = {"empty": 0, "half": len(ids) // 2, "full": len(ids)}[published_when]
    insert(ids[:first])
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache, connect(ledger, consistency="snapshot") as published:
        everything(cache)
        for number in ids[first:]:
            insert([number])
            began = time.monotonic()
            assert everything(cache) == replayed(ledger)
            assert time.monotonic() - began < 2.0
        until(lambda: daemon.stats()["as_of"] == ids[-1], "the daemon reaches the head")
        until(lambda: everything(published) == replayed(ledger), "it is published")
        assert everything(cache) == replayed(ledger)
        assert cache.verify().ok
        if ids[-1] > 0:
            assert cache.append("user", "behind them all") == ids[-1] + 1
            daemon.wait_published(ids[-1] + 1)
            assert everything(cache) == replayed(ledger)


# Hazards 26 to 30.


def test_a_shm_file_made_anew_is_mapped_anew(ledger: str) -> None:
    """Hazard 26: the last connection to close deletes it, the next makes another: the old map never changes."""
    fill(ledger, 10)
    with connect(ledger) as cache:
        for turn in range(3):
            everything(cache)
            before = cache._freshness.header
            # What a fork does: this process's connections close, and are opened anew on their first use.
            cache._reader.connection.close()
            cache._log.close()
            elsewhere(ledger, "SELECT max(id) FROM events")
            assert not os.path.exists(ledger + "-shm")
            elsewhere(ledger, INSERT)
            assert cache.metrics().as_of == 11 + 2 * turn
            assert everything(cache) == replayed(ledger)
            elsewhere(ledger, INSERT)
            assert cache.metrics().as_of == 12 + 2 * turn
            assert cache._freshness.header is not None
            assert cache._freshness.header is not before
            assert cache._reader.connection.shm_id == ledger_file_id(ledger + "-shm")


@pytest.mark.parametrize("freshness", ["auto", "data_version"])
def test_a_shm_file_that_somebody_removed_is_not_trusted(ledger: str, freshness: Any) -> None:
    """Hazard 26: removed under its users, it leaves them with a map that stands still: they refuse rather than err."""
    fill(ledger, 10)
    code = """
import sys, time
from pmm_shm.errors import LockLostError
from pmm_shm_client import connect
cache = connect(sys.argv[1], freshness=sys.argv[2])
cache.append("user", "own"), cache.metrics()
print("ready", flush=True)
sys.stdin.readline()
deadline = time.monotonic() + 1.0
refused = set()
while time.monotonic() < deadline and len(refused) < 3:
    for name, call in (("read", cache.metrics), ("append", lambda: cache.append("user", "x")), ("frame", cache.frame)):
        try:
            call()
        except LockLostError:
            refused.add(name)
print(sorted(refused), flush=True)
"""
    user = subprocess.Popen(
        [sys.executable, "-c", code, ledger, freshness],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert line(user) == "ready"
        os.unlink(ledger + "-shm")
        elsewhere(ledger, INSERT)
        answer, _ = user.communicate("\n")
        assert answer == "['append', 'frame', 'read']\n"
    finally:
        user.kill()
        user.wait()


ROLLED_BACK = [
    "PRAGMA cache_size = 1",
    "BEGIN IMMEDIATE",
    "UPDATE events SET content = 'never'",
    "INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', 'never', '{}')",
    "ROLLBACK",
]
CRASHED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE events SET content = 'never'")
sql = "INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', ?, '{}')"
connection.executemany(sql, [("x" * 5000,)] * 300)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("journal", JOURNALS)
def test_what_changes_the_mark_alone_changes_no_answer(ledger: str, journal: str, start_daemon: StartDaemon) -> None:
    """Hazard 27: a rolled-back writer, a crashed one, checkpoints and a VACUUM; a commit behind each is seen."""
    fill(ledger, 200)
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache, connect(ledger, freshness="data_version") as other:
        head = 200

        def crash() -> None:
            ended = run_python(CRASHED, ledger)
            assert ended.returncode == -signal.SIGKILL

        disturbances: list[Callable[[], None]] = [
            lambda: elsewhere(ledger, *ROLLED_BACK),
            crash,
            lambda: elsewhere(ledger, "PRAGMA wal_checkpoint(PASSIVE)"),
            lambda: elsewhere(ledger, "PRAGMA wal_checkpoint(TRUNCATE)"),
            lambda: elsewhere(ledger, "VACUUM"),
            lambda: elsewhere(ledger, "ANALYZE"),
            lambda: elsewhere(ledger, "PRAGMA wal_checkpoint(RESTART)", "VACUUM"),
        ]
        for disturb in disturbances:
            before = everything(cache)
            disturb()
            assert everything(cache) == everything(other) == before
            elsewhere(ledger, INSERT)
            head += 1
            assert cache.metrics().as_of == other.metrics().as_of == head
            assert everything(cache) == everything(other) == replayed(ledger)
            daemon.wait_published(head)
        assert daemon.stats()["rebuilds"] == 1
        assert daemon.stats()["problem"] is None
        assert cache._reader.replays == other._reader.replays == 0


@pytest.mark.parametrize("names", [("metrics", "recent"), ("recent", "metrics")])
def test_a_constant_header_brings_no_memo_back(
    ledger: str, names: tuple[str, str], spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Hazard 28: the same inode and the same 48 bytes of an empty WAL, and other content."""
    fill(ledger, 10)
    cache = connect(ledger)
    connection = cache._reader.connection
    before = {name: getattr(cache, name)() for name in names}
    header, shm_id = cache._freshness.take(), connection.shm_id
    assert isinstance(header, bytes)
    assert len(header) == WAL_INDEX_HEADER_BYTES
    # A reader elsewhere keeps the -shm file alive, and may not delete it in the end.
    holder = spawn(HOLDER, f"file:{ledger}?mode=ro")
    line(holder)
    cache._log.close()
    connection.close()
    elsewhere(ledger, INSERT, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert holder.stdin is not None
    holder.stdin.close()
    holder.wait()
    # Opened anew, nothing but the epoch tells that the memos are of another time.
    assert getattr(cache, names[0])().as_of == 11
    assert (cache._freshness.take(), connection.shm_id) == (header, shm_id)
    assert getattr(cache, names[1])().as_of == 11
    assert before[names[1]].as_of == 10
    assert everything(cache) == replayed(ledger)
    cache.close()


def test_a_data_version_of_another_epoch_is_another_mark(ledger: str) -> None:
    """Hazard 29: a new connection begins to count anew, and may arrive at a number that was there before."""
    fill(ledger, 10)
    connection = Connection(ledger, "ro")
    freshness = Freshness(connection, "data_version")
    marks, versions = set(), []
    for _ in range(4):
        with connection.lock:
            mark = freshness.take()
        assert isinstance(mark, tuple)
        assert mark not in marks
        marks.add(mark)
        versions.append(mark[1])
        connection.close()
        elsewhere(ledger, INSERT)
    # The hazard is there: the number alone would say that nothing has happened.
    assert len(set(versions)) < 4


def test_the_follower_looks_again_after_its_connection_was_reopened(ledger: str) -> None:
    """Hazard 29: a commit between close and open is news, whatever number the new connection begins with."""
    from pmm_cached.follower import Follower, all_folds
    from pmm_cached.status import Status
    from pmm_shm.store.writer import StoreWriter

    fill(ledger, 10)
    ledgers.execute(ledger, "PRAGMA journal_mode = delete")
    instance = Instance.of(ledger)
    instance.directory.mkdir()
    writer = StoreWriter(instance)
    follower = Follower(ledger, writer, all_folds(), Status(ledger))
    try:
        for _ in range(3):
            while not follower.step().is_complete:
                pass
            follower._mark = follower._take_mark()
            assert not follower.has_news()
            follower.connection.close()
            elsewhere(ledger, INSERT)
            assert follower.has_news()
    finally:
        follower.close()
        writer.close()


def test_an_environment_made_anew_is_opened_anew(ledger: str, start_daemon: StartDaemon) -> None:
    """Hazard 30: the same transaction ids at the same position, with other content, under a client that goes on."""
    fill(ledger, 100)
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache, connect(ledger, consistency="snapshot") as published:
        for turn in range(3):
            assert everything(cache) == everything(published) == replayed(ledger)
            assert daemon.stop() == 0
            meta = json.dumps({"trait": "o", "delta": 0.1 * (turn + 1)})
            ledgers.execute(ledger, "UPDATE events SET meta = ? WHERE id = 1", meta)
            for name in ("data.mdb", "lock.mdb"):
                os.unlink(Instance.of(ledger).directory / name)
            daemon = start_daemon(ledger, *NEVER)
            # Meanwhile the old one is an older snapshot, which knows nothing of an edit.
            time.sleep(limits.TRUST_PERIOD_S)
            assert everything(cache) == everything(published) == replayed(ledger)
            appended = cache.append("user", "on top")
            daemon.wait_published(appended)
            assert published.metrics().as_of == appended
        assert cache._reader.replays == 0
