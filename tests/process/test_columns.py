"""Folds that ask for other columns of the ledger: by every route, with hostile values, and without the column."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest

from pmm_shm.errors import FoldError
from pmm_shm.folds.contract import Column, Fold, checked_fold
from pmm_shm.folds.engine import DecodeFold
from pmm_shm.folds.state import State
from pmm_shm.frozen import frozen
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.rows import Event
from pmm_shm.projection.replay import replay
from pmm_shm_client import EventLog, connect
from tests.conftest import StartDaemon

TABLE = """CREATE TABLE events (id INTEGER PRIMARY KEY, room BLOB, ts TEXT, kind TEXT, content TEXT, meta TEXT,
 "a ""b" INT)
"""


class Rooms(Fold):
    """Keeps what it is given of two columns."""

    name = "rooms"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"said": ("content",), "tick": ()}
    columns = ("room", 'a "b')

    def apply(self, event: Event, state: State) -> None:
        if event.columns["room"] == "poison":
            raise ValueError("no such room")
        state.table("said")[event.id] = [event.columns["room"], event.columns['a "b'], event.content, event.meta]

    def view(self, state: State) -> Any:
        return frozen(dict(sorted(state.table("said").items())))


HOSTILE: list[Any] = ["hall", 7, 0.5, b"\xff\x00", None, "poison", "x" * 3_000, "é"]


@pytest.fixture
def ledger(tmp_path: Any) -> str:
    path = str(tmp_path / "rooms.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(TABLE)
    return path


def said(path: str, *rooms: Any, kind: str = "said", invalid: bool = False) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for number, room in enumerate(rooms):
            place = "CAST(? AS TEXT)" if invalid else "?"
            connection.execute(
                f'INSERT INTO events (room, ts, kind, content, meta, "a ""b") VALUES ({place}, ?, ?, ?, ?, ?)',
                (room, "2026-01-01T00:00:00Z", kind, f"text {number}", '{"k": 1}', number),
            )


def expected(path: str) -> dict[int, list[Any]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.text_factory = bytes
        rows = connection.execute('SELECT id, room, "a ""b", kind, content FROM events ORDER BY id').fetchall()
    found = {}
    for event_id, room, other, kind, content in rows:
        if isinstance(room, bytes) and connection_type(path, event_id) == "text":
            try:
                room = room.decode()
            except UnicodeDecodeError:
                room = None
        if kind in (b"said", b"tick") and room != "poison":
            found[event_id] = [room, other, content.decode() if kind == b"said" else "", {}]
    return found


def connection_type(path: str, event_id: int) -> Any:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT typeof(room) FROM events WHERE id = ?", (event_id,)).fetchall()[0][0]


def test_every_route_of_reads_gives_the_columns(ledger: str) -> None:
    with connect(ledger, folds=[Rooms]) as cache:
        said(ledger, *HOSTILE)
        said(ledger, b"\xff\xfe", invalid=True)
        said(ledger, "elsewhere", kind="other")
        assert cache.fold("rooms") == expected(ledger)
        # A short tail comes in whole rows, a long one does not.
        said(ledger, "short", kind="tick")
        assert cache.fold("rooms") == expected(ledger)
        said(ledger, *HOSTILE * 40)
        assert cache.fold("rooms") == expected(ledger)
        assert cache.frame().fold("rooms") == expected(ledger)
        assert len(cache.frame_at(4).fold("rooms")) == 4
    with closing(Connection(ledger, "ro")) as connection:
        assert Rooms().view(replay(connection, [Rooms()])[1]["rooms"]) == expected(ledger)


def test_a_log_of_many_batches_gives_the_columns(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmm_shm.limits.TAIL_ROWS_MAX", 64)
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute(
            """WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 300)
            INSERT INTO events (room, ts, kind, content, meta) SELECT 'hall ' || n, '', 'said', '', '{}' FROM numbers"""
        )
    with connect(ledger, folds=[Rooms]) as cache:
        found = cache.fold("rooms")
        assert found == expected(ledger)
        assert len(found) == 300


def test_a_daemon_keeps_verifies_and_quarantines_them(ledger: str, start_daemon: StartDaemon) -> None:
    said(ledger, *HOSTILE)
    said(ledger, b"\xff\xfe", invalid=True)
    daemon = start_daemon(ledger, "--fold", "tests.process.test_columns:Rooms", "--verify-every", "1")
    with connect(ledger, folds=[Rooms], consistency="wait") as cache:
        assert cache.fold("rooms") == expected(ledger)
        said(ledger, "later", "poison", b"\x00")
        said(ledger, b"\xfe", invalid=True)
        assert cache.fold("rooms") == expected(ledger)
        assert cache.fold("rooms", consistency="snapshot") == expected(ledger)
        report = cache.verify()
        assert report.ok
        assert "rooms" in report.folds
        reasons = [(event_id, fold, reason) for event_id, fold, reason in daemon.stats()["quarantine"]]
        assert (9, "decode", "room is not UTF-8") in map(tuple, reasons)
        assert (6, "rooms", "ValueError: no such room") in map(tuple, reasons)
        cache.invalidate("rooms")
        assert cache.fold("rooms") == expected(ledger)
        assert cache.verify().ok


def test_an_edit_of_such_a_column_is_found(ledger: str, start_daemon: StartDaemon) -> None:
    said(ledger, "hall", "kitchen")
    start_daemon(ledger, "--fold", "tests.process.test_columns:Rooms")
    with connect(ledger, folds=[Rooms], consistency="wait") as cache:
        said(ledger, "roof")
        assert cache.verify().ok
        with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
            connection.execute("UPDATE events SET room = 'cellar' WHERE id = 1")
        assert "rooms" in str(cache.verify().difference) or "changed" in str(cache.verify().difference)
        assert cache.verify().ok
        assert cache.fold("rooms") == expected(ledger)


def test_without_the_column_one_clear_line(ledger: str, start_daemon: StartDaemon) -> None:
    said(ledger, "hall")
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE events DROP COLUMN room")
    line = "the table `events` lacks `room`, which the fold 'rooms' asks for"
    daemon = start_daemon(ledger, "--fold", "tests.process.test_columns:Rooms")
    with connect(ledger, folds=[Rooms]) as cache:
        with pytest.raises(FoldError, match=line):
            cache.fold("rooms")
        # Whoever does not ask for it never hears of it.
        assert cache.recent().as_of == 1
        assert line in daemon.stats()["last_error"]
        with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
            connection.execute("ALTER TABLE events ADD COLUMN room")
        said(ledger, "roof")
        assert cache.fold("rooms") == expected(ledger) | {1: [None, 0, "text 0", {}]}
        assert cache.verify().ok
    with closing(Connection(ledger, "ro")) as connection:
        replay(connection, [Rooms()])


def test_the_request_is_part_of_the_identity_and_the_default_costs_no_byte() -> None:
    class Fewer(Rooms):
        columns = ("room",)

    class None_(Rooms):
        columns = ()

    assert len({Rooms().identity(), Fewer().identity(), None_().identity()}) == 3
    assert None_().identity() == ("rooms", 1, b"\x80")
    # The quarantine of decoding is another one, too: it lists what is no text in them.
    kinds = [["said", ["content"]], ["tick", []]]
    assert DecodeFold([None_()]).parameters == {"kinds": kinds}
    asked = [['a "b', ["said", "tick"]], ["room", ["said", "tick"]]]
    assert DecodeFold([Rooms()]).parameters == {"kinds": kinds, "columns": asked}


@pytest.mark.parametrize("columns", ["hash", ("id",), ("meta",), (7,), ("",), None])
def test_a_request_that_means_nothing_is_refused(columns: Any) -> None:
    fold = Rooms()
    fold.columns = columns
    with pytest.raises(FoldError, match="`columns`"):
        checked_fold(fold)


def test_a_fold_of_all_kinds_gets_the_hash(tmp_path: Any) -> None:
    class Hashes(Fold):
        name = "hashes"
        version = 1
        columns = ("hash",)

        def apply(self, event: Event, state: State) -> None:
            state["last"] = [event.id, event.content, event.meta, event.columns["hash"]]

        def view(self, state: State) -> Any:
            return frozen(state.get("last"))

    path = str(tmp_path / "agent.db")
    with EventLog(path) as log, connect(path, folds=[Hashes]) as cache:
        log.append("user", "hello", {"a": 1})
        with closing(sqlite3.connect(path)) as connection:
            stored = connection.execute("SELECT hash FROM events").fetchall()[0][0]
        assert cache.fold("hashes") == [1, "hello", {"a": 1}, stored]
