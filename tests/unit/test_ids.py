"""A table of events whose ids are, or could be, no integers is refused, and the message names the column."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.errors import NotALedgerError
from pmm_shm.ledger.backup import backup
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.support import doctor, ledgers

OTHERS = "ts TEXT, kind TEXT, content TEXT, meta TEXT"
VIEW = (
    "CREATE TABLE log (seq INTEGER PRIMARY KEY, at TEXT); "
    "CREATE VIEW events AS SELECT seq AS id, at AS ts, at AS kind, at AS content, at AS meta FROM log"
)
UUIDS = [str(uuid.UUID(int=number * 7919)) for number in range(1, 20)]
REFUSED: dict[str, tuple[str, list[Any]]] = {
    "UUIDs": (f"CREATE TABLE events (id TEXT PRIMARY KEY, {OTHERS})", UUIDS),
    "no event yet": (f"CREATE TABLE events (id TEXT PRIMARY KEY, {OTHERS})", []),
    "no key": (f"CREATE TABLE events (id INTEGER, {OTHERS})", [1, 2, 3, 3, 5, None, 4]),
    "no type": (f"CREATE TABLE events (id PRIMARY KEY, {OTHERS})", [1, 2]),
    "a key of two columns": (f"CREATE TABLE events (id INTEGER, {OTHERS}, PRIMARY KEY (id, ts))", [1, 2]),
    "texts in a key of integers": (f"CREATE TABLE events (id INT PRIMARY KEY, {OTHERS})", [1, "a", 2]),
    "NULL in a key of integers": (f"CREATE TABLE events (id INT PRIMARY KEY, {OTHERS})", [1, None, 2]),
    "a fraction among others": (f"CREATE TABLE events (id INT PRIMARY KEY, {OTHERS})", [1, 2.5, 3]),
    "a fraction without rowids": (f"CREATE TABLE events (id INTEGER PRIMARY KEY, {OTHERS}) WITHOUT ROWID", [1, 2.5, 3]),
    "texts without rowids, in UTF-16": (
        f"PRAGMA encoding = 'UTF-16'; CREATE TABLE events (id INTEGER PRIMARY KEY, {OTHERS}) WITHOUT ROWID",
        [1, "a"],
    ),
    "fractions": (f"CREATE TABLE events (id INT PRIMARY KEY, {OTHERS})", [1, 2.5]),
    "texts without rowids": (f"CREATE TABLE events (id INTEGER PRIMARY KEY, {OTHERS}) WITHOUT ROWID", [1, "a"]),
    "blobs": (f"CREATE TABLE events (id INT PRIMARY KEY, {OTHERS})", [b"\x01", b"\x02"]),
    "a view": (VIEW, []),
}
ACCEPTED = {
    "rowids": f"CREATE TABLE events (id INTEGER PRIMARY KEY, {OTHERS})",
    "a key that is no rowid": f"CREATE TABLE events (id INT PRIMARY KEY, {OTHERS})",
    "no rowids": f"CREATE TABLE events (id INTEGER PRIMARY KEY, {OTHERS}) WITHOUT ROWID",
    "names in capitals": "CREATE TABLE EVENTS (ID INTEGER PRIMARY KEY, TS TEXT, KIND TEXT, CONTENT TEXT, META TEXT)",
    "descending": f"CREATE TABLE events (id INTEGER PRIMARY KEY DESC, {OTHERS})",
}
USES: dict[str, Callable[[str, Path], object]] = {
    "connect": lambda path, _: connect(path),
    "open": lambda path, _: EventLog(path),
    "open without making": lambda path, _: EventLog(path, create=False),
    "backup": lambda path, folder: backup(path, str(folder / "backup.db")),
}


def make(path: Path, sql: str, ids: list[Any]) -> str:
    connection = ledgers.connect(path)
    connection.executescript(sql)
    for event_id in ids:
        connection.execute("INSERT INTO events VALUES (?, 't', 'user', 'm', '{}')", (event_id,))
    connection.close()
    return str(path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_without_integer_ids_is_refused(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "l.db", *REFUSED[name])
    before = Path(path).read_bytes()
    for use in USES.values():
        with pytest.raises(NotALedgerError, match="column `id`"):
            use(path, tmp_path)
    found = doctor.worst(doctor.examined(path), "rows")
    assert found.severity == "error"
    assert "column `id`" in found.found
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("sql", ACCEPTED.values(), ids=ACCEPTED)
def test_any_key_that_holds_integers_is_accepted(tmp_path: Path, sql: str) -> None:
    path = make(tmp_path / "l.db", sql, [-4, 1, 7])
    with EventLog(path) as log, connect(path) as cache:
        assert log.append("user", "more") == 8
        assert [message.id for message in cache.recent().messages] == [-4, 1, 7, 8]
        assert cache.verify().events == 4


@pytest.mark.parametrize("bad", ["'text'", "x'01'", "2.5e300"])
def test_an_id_that_comes_later_is_refused_then(tmp_path: Path, bad: str) -> None:
    path = make(tmp_path / "l.db", f"CREATE TABLE events (id INT PRIMARY KEY, {OTHERS})", [1, 2, 3])
    with EventLog(path) as log, connect(path) as cache:
        assert cache.metrics().as_of == 3
        ledgers.execute(path, f"INSERT INTO events VALUES ({bad}, 't', 'user', 'm', '{{}}')")
        for use in (cache.metrics, cache.frame, cache.verify, lambda: log.append("user", "more")):
            with pytest.raises(NotALedgerError, match="column `id`"):
                use()


def test_a_fraction_that_comes_between_later_integers(tmp_path: Path) -> None:
    path = make(tmp_path / "l.db", f"CREATE TABLE events (id INT PRIMARY KEY, {OTHERS})", [1, 2, 3])
    with connect(path) as cache:
        assert cache.metrics().as_of == 3
        for event_id in (3.5, 4):
            ledgers.execute(path, "INSERT INTO events VALUES (?, 't', 'user', 'm', '{}')", event_id)
        for use in (cache.metrics, cache.frame, cache.verify):
            with pytest.raises(NotALedgerError, match=r"column `id`.*3\.5"):
                use()


@pytest.mark.parametrize("name", ["UUIDs", "a view"])
def test_a_table_that_is_replaced_in_place(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file, opened by reader and writer, gets another table `events`."""
    monkeypatch.setattr(limits, "TRUST_PERIOD_S", 0.0)
    path = ledgers.build(tmp_path / "l.db", 5)
    with EventLog(path) as log, connect(path) as cache:
        assert log.append("user", "more") == cache.metrics().as_of == len(log.read_all())
        ledgers.execute(path, "DROP TABLE events")
        make(Path(path), *REFUSED[name])
        for use in (cache.metrics, log.read_all, lambda: log.append("user", "more")):
            with pytest.raises(NotALedgerError, match="column `id`"):
                use()
