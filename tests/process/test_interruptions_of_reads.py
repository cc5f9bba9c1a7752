"""What comes in the middle: exceptions within a read or a batch, signal handlers that read, locks that merge.

Whatever it is, the next exact read equals a replay.
"""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import Engine, quarantine_of
from pmm_shm.folds.self_model import SelfModelFold
from pmm_shm.folds.state import State
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.rows import Event
from pmm_shm_client import EventLog, connect
from tests.support.golden_cases import make_ledger
from tests.support.interruptions import equals_replay

_COUNT = "SELECT count(*) FROM events"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = tmp_path / "pmm.db"
    make_ledger(ledger)
    return ledger


@pytest.mark.parametrize("method", ["view", "patch"])
@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt, MemoryError, LedgerBusyError])
def test_a_view_that_is_interrupted_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: type[BaseException]
) -> None:
    with connect(path) as cache:
        cache.append("commitment_open", "", {"cid": "before", "text": "x"})
        cache.commitments()
        cache.append("commitment_open", "", {"cid": "lost", "text": "x"})
        with monkeypatch.context() as patches:

            def interrupted(*_: object) -> Any:
                # A signal strikes once.
                patches.undo()
                raise error

            patches.setattr(SelfModelFold, "view", interrupted)
            patches.setattr(SelfModelFold, "patch", interrupted)
            with pytest.raises(error):
                cache.commitments()
        cache.append("commitment_open", "", {"cid": "after", "text": "x"})
        assert list(cache.commitments().open) == ["before", "lost", "after"]
        assert equals_replay(cache)


@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT"])
def test_a_read_that_is_struck_beside_its_transaction_leaves_none_open(path: Path, statement: str) -> None:
    """It would show all later reads an old moment."""

    class Struck(sqlite3.Connection):
        is_armed = True

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            is_struck, Struck.is_armed = Struck.is_armed and sql == statement, Struck.is_armed and sql != statement
            if is_struck and sql == "COMMIT":
                raise TimeoutError
            found = super().execute(sql, *arguments)
            if is_struck:
                raise TimeoutError
            return found

    connection = Connection(path, "ro")
    with closing(connection), connection.lock:
        handle = connection.handle()
        connection._handle = sqlite3.connect(path, isolation_level=None, factory=Struck)
        handle.close()
        with pytest.raises(TimeoutError), connection.one_snapshot():
            connection.handle().execute(_COUNT)
        before = connection.handle().execute(_COUNT).fetchone()[0]
        with EventLog(path) as log:
            log.append("user_message", "later")
        with connection.one_snapshot():
            assert connection.handle().execute(_COUNT).fetchone()[0] == before + 1


def test_nothing_is_remembered_of_a_connection_whose_close_is_struck(path: Path) -> None:
    """The mark of an empty WAL is a constant, which comes again when nobody has locked the file in between."""

    class Struck(sqlite3.Connection):
        def close(self) -> None:
            super().close()
            raise TimeoutError

    def opened(mode: str = "rw") -> sqlite3.Connection:
        return sqlite3.connect(f"file:{path}?mode={mode}", uri=True, isolation_level=None)

    with EventLog(path) as log:
        log.append("user_message", "one")
    with connect(path) as cache:
        assert cache.metrics().as_of == cache.stage().as_of == 1
        connection = cache._reader.connection
        with connection.lock:
            handle = connection.handle()
            connection._handle = sqlite3.connect(path, isolation_level=None, factory=Struck)
            connection._handle.execute("PRAGMA query_only = ON")
            handle.close()
        with pytest.raises(TimeoutError):
            connection.close()
        with closing(opened("ro")) as reader, closing(opened()) as writer:
            # It keeps the file that the mark is in.
            assert reader.execute(_COUNT).fetchone() == (1,)
            writer.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('', 'user_message', 'two', '{}')")
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with closing(opened("ro")) as reader:
            assert reader.execute(_COUNT).fetchone() == (2,)
            assert cache.metrics().as_of == cache.stage().as_of == 2


def test_a_read_that_is_struck_where_its_transaction_has_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(path) as cache:
        cache.metrics()
        cache.append("user_message", "one")

        def struck(*_: object) -> Any:
            monkeypatch.undo()
            cache._reader.connection.handle().execute("BEGIN")
            raise TimeoutError

        monkeypatch.setattr(cache._reader, "_at_head", struck)
        with pytest.raises(TimeoutError) as caught:
            cache.metrics()
        assert caught.value is not None
        cache.metrics()
        newest = cache.append("user_message", "two")
        assert cache.metrics().as_of == newest
        assert equals_replay(cache)


def test_a_read_that_a_refused_call_ends_leaves_no_old_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler reads, is refused, and lets the error through, while the log is found to have changed."""
    with connect(path) as cache:
        cache.append("commitment_open", "", {"cid": "gone", "text": "x"})
        assert "gone" in cache.commitments().open
        with sqlite3.connect(path) as other:
            other.execute("DELETE FROM events WHERE id = (SELECT max(id) FROM events)")

        def struck() -> None:
            # It strikes once.
            monkeypatch.undo()
            signal.raise_signal(signal.SIGUSR1)

        def handler(*_: object) -> None:
            cache.metrics()

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            monkeypatch.setattr(cache._reader, "_on_reset", struck)
            with pytest.raises(LedgerBusyError, match="a read of this thread is under way"):
                cache.commitments()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert "gone" not in cache.commitments().open
        assert equals_replay(cache)


def test_a_failure_from_outside_a_fold_is_not_the_events(path: Path) -> None:
    """A time limit that strikes within `apply` reaches the program, and no answer lacks the event afterwards."""
    with connect(path) as cache:
        with EventLog(path) as log:
            log.append_many([("commitment_open", "", {"cid": f"c{n}", "text": "x"}) for n in range(5_000)])

        class TimeIsUp(Exception):
            """No `OSError`: where a file is looked at, any of them is an answer."""

        def too_late(*_: object) -> None:
            raise TimeIsUp

        def read_for_ever() -> None:
            while True:
                cache.commitments()
                cache.append("commitment_close", "", {"cid": "c1"})

        before = signal.signal(signal.SIGALRM, too_late)
        try:
            # What is raised within a callback of the collector, as Hypothesis has one, reaches nobody.
            gc.disable()
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(TimeIsUp):
                read_for_ever()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            gc.enable()
            signal.signal(signal.SIGALRM, before)
        assert equals_replay(cache)


def test_a_signal_handler_that_reads_is_refused_and_harms_nothing(path: Path) -> None:
    with connect(path) as cache, EventLog(path) as log:
        outcomes: list[str] = []

        def handler(*_: object) -> None:
            try:
                cache.directives()
                outcomes.append("read")
            except LedgerBusyError:
                outcomes.append("refused")

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            for number in range(200):
                log.append_many([("autonomy_directive", f"rule {number % 7}", {})] * 50)
                cache.directives()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert outcomes
        assert sum(row["seen_count"] for row in cache.directives()) == 10_000


def test_locks_that_the_system_merges_are_still_there(path: Path) -> None:
    """Readers on the last of SQLite's read marks hold the byte before the one that every connection keeps locked."""
    with EventLog(path) as log, connect(path) as cache:
        log.append("user", "x")
        cache.metrics()
        readers = []
        for _ in range(5):
            reader = sqlite3.connect(path, isolation_level=None)
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM events").fetchall()
            readers.append(reader)
            log.append("user", "y")
        deadline = time.monotonic() + 2 * limits.TRUST_PERIOD_S
        while time.monotonic() < deadline:
            assert cache.append("user", "z") == cache.metrics().as_of
        with connect(path) as other:
            assert other.metrics() == cache.metrics()
        for reader in readers:
            reader.close()


def test_warnings_come_once_whatever_states_are_read_in_between(path: Path) -> None:
    warnings: list[int] = []

    def on_warn(event: dict[str, Any]) -> None:
        warnings.append(event["meta"]["eid"])

    with connect(path) as cache:
        for cid in ("a", "b"):
            cache.append("commitment_open", "", {"cid": cid, "text": "x"})
        old = cache.frame()
        cache.append("commitment_close", "", {"cid": "a"})
        middle = cache.frame()
        last = cache.append("commitment_close", "", {"cid": "b"})
        cache.self_model(on_warn=on_warn)
        assert warnings == [last - 1, last]
        old.self_model(on_warn=on_warn)
        middle.self_model(strict=False, on_warn=on_warn)
        cache.frame()
        cache.self_model(on_warn=on_warn)
        assert warnings == [last - 1, last]


class OddKeys(Fold):
    """Takes keys and values from meta as they come."""

    name = "odd"
    version = 1
    kinds = {"odd": ("meta",)}  # noqa: RUF012

    def apply(self, event: Event, state: State) -> None:
        state.table("seen")[event.meta["key"]] = {"set": {1}} if event.meta.get("set") else 1

    def view(self, state: State) -> dict[Any, Any]:
        return dict(state.table("seen").items())


@pytest.mark.parametrize("meta", ['{"key": 1.5}', '{"key": true}', '{"key": [1]}', '{"key": "x", "set": true}'])
def test_what_no_store_can_hold_is_the_events_failure(meta: str) -> None:
    state = State()
    rows = [(1, "", "odd", "", '{"key": "good"}'), (2, "", "odd", "", meta), (3, "", "odd", "", '{"key": 7}')]
    Engine([OddKeys()]).apply(rows, {"odd": state})
    assert OddKeys().view(state) == {"good": 1, 7: 1}
    count, entries = quarantine_of({"odd": state}, 10)
    assert (count, [entry.event_id for entry in entries]) == (1, [2])
    assert all(value is not None for _, value in state.changes())


def test_descriptors_do_not_pile_up(path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def cycle() -> None:
        with connect(path) as cache:
            cache.append("autonomy_tick")
            cache.metrics()

    for _ in range(5):
        cycle()
    before = open_files()
    for _ in range(60):
        cycle()
    assert open_files() <= before + 2
