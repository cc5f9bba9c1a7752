"""`EventLog` through its public interface; concurrency with real processes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import threading
import time
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import errors, limits
from pmm_shm.ledger.eventlog import EventLog
from tests.support import ledgers
from tests.support.eventlog import INDEXES, indexes

JOURNALS = ("wal", "delete")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


def ids(events: list[dict[str, Any]]) -> list[int]:
    return [event["id"] for event in events]


# Creation and opening.


def test_a_new_ledger_has_the_specified_schema(path: str) -> None:
    EventLog(path)
    columns = [row[1:3] for row in ledgers.execute(path, "PRAGMA table_info(events)")]
    names = ["id", "ts", "kind", "content", "meta", "prev_hash", "hash"]
    assert columns == [(name, "INTEGER" if name == "id" else "TEXT") for name in names]
    assert indexes(path) == INDEXES
    assert ledgers.execute(path, "PRAGMA journal_mode") == [("wal",)]


def test_an_event_reads_back_as_it_was_written(path: str) -> None:
    meta = {"z": 1, "a": {"big": 1 << 80, "text": "é\ud800"}, "n": None}
    with EventLog(path) as log:
        assert log.append("kind", "content \0 é", meta) == 1
        event = log.get_event(1)
        assert event is not None
        assert {**event, "ts": ""} == {"id": 1, "ts": "", "kind": "kind", "content": "content \0 é", "meta": meta}
        assert list(event["meta"]) == ["z", "a", "n"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", event["ts"])
        assert log.get_event(2) is None
        assert log.get_event(1 << 70) is None
    assert ledgers.execute(path, "SELECT meta FROM events") == [(json.dumps(meta),)]


@pytest.mark.parametrize("blank", ["zero bytes", "no tables"])
def test_a_blank_database_becomes_a_ledger_only_when_asked(path: str, blank: str) -> None:
    Path(path).touch()
    if blank == "no tables":
        ledgers.execute(path, "PRAGMA user_version = 3")
    with pytest.raises(errors.NotALedgerError):
        EventLog(path, create=False)
    with EventLog(path) as log:
        assert log.append("k") == 1


@pytest.mark.parametrize("create", [True, False])
def test_what_is_not_a_ledger_is_refused_and_left_alone(tmp_path: Path, create: bool) -> None:
    other, text = tmp_path / "other.db", tmp_path / "text.db"
    ledgers.execute(other, "CREATE TABLE things (a)")
    text.write_bytes(b"not a database, but long enough to have a header " * 100)
    lacking = tmp_path / "lacking.db"
    ledgers.execute(lacking, "CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT)")
    (tmp_path / "dir.db").mkdir()
    for path in (other, text, lacking):
        before = path.read_bytes()
        with pytest.raises(errors.NotALedgerError):
            EventLog(path, create=create)
        assert path.read_bytes() == before
    with pytest.raises(errors.NotALedgerError):
        EventLog(tmp_path / "dir.db", create=create)


def test_no_ledger_is_made_beside_the_wal_of_a_missing_one(path: str, tmp_path: Path) -> None:
    """SQLite deletes such a -wal with the first look at the new file, and the commits in it are gone."""
    lost = str(tmp_path / "lost.db")
    with EventLog(path) as log:
        log.append("note", "acknowledged")
        shutil.copyfile(path + "-wal", lost + "-wal")
    wal = Path(lost + "-wal").read_bytes()
    assert b"acknowledged" in wal
    with pytest.raises(errors.LedgerReplacedError, match="missing, but its -wal holds commits"):
        EventLog(lost)
    assert Path(lost + "-wal").read_bytes() == wal
    assert not os.path.exists(lost)


def test_a_missing_file_or_directory(tmp_path: Path) -> None:
    with pytest.raises(errors.LedgerNotFoundError):
        EventLog(tmp_path / "no.db", create=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(errors.LedgerUnwritableError) as caught:
        EventLog(tmp_path / "no" / "no.db")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [":memory:", "", "file:x.db?mode=memory", "a\0b"])
def test_a_path_must_be_a_file(name: str) -> None:
    with pytest.raises(errors.ConfigError):
        EventLog(name)


# Reads.


def test_reads_select_and_order(path: str) -> None:
    ledgers.build(path, ids=[2, 3, 7, 8, 1 << 41])
    with EventLog(path) as log:
        assert ids(log.read_all()) == [2, 3, 7, 8, 1 << 41]
        assert ids(log.read_after_id(after_id=3)) == [7, 8, 1 << 41]
        assert ids(log.read_after_id(after_id=3, limit=1)) == [7]
        assert log.read_after_id(after_id=1 << 70) == []
        assert ids(log.read_tail(limit=2)) == [8, 1 << 41]
        assert log.read_tail(limit=0) == []
        assert ids(log.query(kind="note")) == [7, 3]
        assert ids(log.query(kind="other", limit=2)) == [1 << 41, 8]
        assert ids(log.query(limit=1)) == [1 << 41]
        assert log.query(kind="\ud800") == []


def test_reads_of_more_than_a_batch(path: str) -> None:
    count = 2 * limits.TAIL_ROWS_MAX + 3
    with EventLog(path) as log:
        log.append_many([("even" if n % 2 else "odd", "", None) for n in range(count)])
        everything = list(range(1, count + 1))
        assert ids(log.read_all()) == everything
        assert ids(log.read_tail(limit=count - 1)) == everything[1:]
        assert ids(log.query()) == everything[::-1]
        assert ids(log.query(kind="odd")) == everything[::2][::-1]
        assert ids(log.read_after_ts(after_ts="2000-01-01", limit=count - 1)) == everything[:-1]


def test_read_after_ts_compares_instants(path: str) -> None:
    stamps = [
        "2026-01-01T12:00:00Z",
        "2026-01-01T12:00:00.000001+00:00",
        "2026-01-01T13:00:00+02:00",  # 11:00 UTC
        "2025-12-31T20:00:00-23:00",  # 19:00 UTC on the first
        "2026-01-01T12:00:01",  # without an offset: UTC
        "2026-01-02",
        "yesterday",
        "",
        "2026-13-01T00:00:00Z",
        "2026-01-01 12:00:00,5z",
    ]
    ledgers.build(path, 0)
    for stamp in stamps:
        ledgers.execute(path, "INSERT INTO events (ts, kind, content, meta) VALUES (?, 'k', '', '{}')", stamp)
    with EventLog(path) as log:
        for indexed in (False, True):
            assert ids(log.read_after_ts(after_ts="2026-01-01T12:00:00Z")) == [2, 4, 5, 6, 10]
            assert ids(log.read_after_ts(after_ts="2026-01-01T07:00:00-05:00", limit=2)) == [2, 4]
            assert ids(log.read_after_ts(after_ts="2026-01-01T11:59:59.999999")) == [1, 2, 4, 5, 6, 10]
            assert ids(log.read_after_ts(after_ts="0001-01-01")) == [1, 2, 3, 4, 5, 6, 10]
            assert ids(log.read_after_ts(after_ts="9999-12-31T23:59:59Z")) == []
            if not indexed:
                log.append_many([{"kind": "k", "ts": "1999-01-01T00:00:00Z"}])
                ledgers.execute(path, "DELETE FROM events WHERE id = 11")
        assert indexes(path) >= INDEXES
        for nonsense in ("", "today", "2026-02-30", "2026-01-01T12:00:00+25:00"):
            with pytest.raises(ValueError, match="after_ts"):
                log.read_after_ts(after_ts=nonsense)


def test_no_row_makes_a_read_raise(path: str) -> None:
    ledgers.build_hostile(path, hashed=False)
    with EventLog(path) as log:
        events = log.read_all()
        assert len(events) == len(ledgers.HOSTILE)
        for event, (kind, _, _, content, meta) in zip(events, ledgers.HOSTILE, strict=True):
            assert event["kind"] == (kind if isinstance(kind, str) else "")
            assert event["content"] == content
            if meta is None:
                assert math.isnan(event["meta"]["a"])
            else:
                assert event["meta"] == meta
            assert log.get_event(event["id"])["content"] == content  # type: ignore[index]
        assert len(log.read_tail(limit=100)) == len(log.read_after_ts(after_ts="2020-01-01")) == len(events)
        assert len(log.query(kind="k")) == len(events) - 2
        log.append("k")
        assert log.verify_chain().rows_checked == 1


# What cannot be appended.


CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR
NESTED: list[Any] = []
for _ in range(limits.META_DEPTH_MAX):
    NESTED = [NESTED]
VERY_NESTED: list[Any] = []
for _ in range(100_000):
    VERY_NESTED = [VERY_NESTED]
REFUSED: list[tuple[Any, ...]] = [
    ("",),
    (None,),
    (7,),
    ("k\ud800",),
    ("k", None),
    ("k", b""),
    ("k", "\udfff"),
    ("k", "", []),
    ("k", "", "{}"),
    ("k", "", {"a": object()}),
    ("k", "", {("a",): 1}),
    ("k", "", CIRCULAR),
    ("k", "", {"a": NESTED}),
    ("k", "", {"a": VERY_NESTED}),
    ("k", "", {"a": 10**4_300}),
]


@pytest.mark.parametrize("arguments", REFUSED, ids=range(len(REFUSED)))
def test_an_event_that_would_not_read_back_is_refused(path: str, arguments: tuple[Any, ...]) -> None:
    with EventLog(path) as log:
        with pytest.raises(errors.InvalidEventError):
            log.append(*arguments)
        with pytest.raises(errors.InvalidEventError, match="event 1 "):
            log.append_many([("k", "", None), arguments])
        assert log.read_all() == []
        assert log.append("k") == 1


def test_an_event_at_the_limits_is_stored(path: str) -> None:
    inner = NESTED[0][0]
    with EventLog(path) as log:
        log.append("k", "", {"a": inner, "i": -(10**4_300 - 1), "x": math.inf})
        log.append("k", "", UserDict(a=1))  # type: ignore[arg-type]
        assert [event["meta"] for event in log.read_all()] == [
            {"a": inner, "i": -(10**4_300 - 1), "x": math.inf},
            {"a": 1},
        ]
        assert log.verify_chain().ok


def test_append_many_is_all_or_nothing(path: str) -> None:
    with EventLog(path) as log:
        assert log.append_many([]) == []
        mapping = {"kind": "b", "content": "c", "meta": {"x": 1}, "ts": "2026-01-01T00:00:00Z"}
        assert log.append_many(iter([("a", "", None), mapping, {"kind": "c"}])) == [1, 2, 3]
        assert log.get_event(2) == {"id": 2, **mapping}
        for bad in ({"kind": "a", "ts": "now"}, {"kind": "a", "id": 3}, {"content": "a"}, "kind", 3, ()):
            with pytest.raises(errors.InvalidEventError):
                log.append_many([("a", "", None), bad])  # type: ignore[list-item]
        ledgers.execute(
            path, "CREATE TRIGGER t BEFORE INSERT ON events WHEN NEW.kind = 'x' BEGIN SELECT RAISE(FAIL, 'no'); END"
        )
        with pytest.raises(errors.LedgerUnwritableError):
            log.append_many([("a", "", None), ("x", "", None)])
        assert len(log.read_all()) == 3
        assert log.append("a") == 4
        assert log.verify_chain().ok


def test_ids_are_never_used_again(path: str) -> None:
    with EventLog(path) as log:
        log.append_many([("k", "", None)] * 3)
        ledgers.execute(path, "DELETE FROM events WHERE id = 3")
        assert log.append("k") == 4
        ledgers.execute(
            path, "INSERT INTO events (id, ts, kind, content, meta) VALUES (?, 't', 'k', '', '{}')", (1 << 63) - 1
        )
        with pytest.raises(errors.LedgerUnwritableError, match="ids"):
            log.append("k")


@pytest.mark.parametrize(
    ("sql", "next_id"),
    [
        ("DELETE FROM events", 5),
        ("DELETE FROM events WHERE id > 2", 5),
        ("INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'k', '', '{}')", 6),
        ("UPDATE sqlite_sequence SET seq = 9 WHERE name = 'events'", 10),
        ("DELETE FROM sqlite_sequence", 5),
    ],
)
def test_an_append_links_to_what_others_left_of_its_own(path: str, sql: str, next_id: int) -> None:
    with EventLog(path) as log:
        log.append_many([("k", str(number), None) for number in range(4)])
        ledgers.execute(path, sql)
        for event_id in (next_id, next_id + 1):
            assert log.append("k", "é", {"n": event_id}) == event_id
        assert log.verify_chain().ok


@pytest.mark.parametrize("column", ["ts", "kind", "content", "meta", "prev_hash"])
@pytest.mark.parametrize("value", ["'edited'", "CAST('edited' AS BLOB)", "CAST(x'ff' AS TEXT)"])
def test_an_append_refuses_its_own_newest_event_edited(path: str, column: str, value: str) -> None:
    with EventLog(path) as log:
        log.append("k", "content", {"n": 1})
        ledgers.execute(path, f"UPDATE events SET {column} = {value}")
        with pytest.raises(errors.ChainError, match="event 1 "):
            log.append("k")


def test_a_table_that_remembers_no_ids(path: str) -> None:
    ledgers.execute(
        path,
        "CREATE TABLE events (id INTEGER PRIMARY KEY, ts TEXT, kind TEXT, content TEXT, meta TEXT, prev_hash TEXT, "
        "hash TEXT)",
    )
    with EventLog(path) as log:
        assert [log.append("k"), log.append("k", "é"), *log.append_many([("k", "", None)] * 2)] == [1, 2, 3, 4]
        ledgers.execute(path, "DELETE FROM events WHERE id > 2")
        assert log.append("k") == 3
        assert log.verify_chain().ok


def test_meta_that_holds_itself(path: str) -> None:
    meta: dict[str, Any] = {}
    meta["self"] = [meta]
    with EventLog(path) as log:
        with pytest.raises(errors.InvalidEventError, match="meta: nested too deep"):
            log.append("k", "", meta)
        assert log.append("k", "", {"n": 1}) == 1


# Several writers.


def test_threads_share_one_event_log(path: str) -> None:
    with EventLog(path) as log:

        def run() -> None:
            for _ in range(50):
                assert log.get_event(log.append("k")) is not None

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.verify_chain().rows_checked == 200


# Closing, replacement, lost locks, dead writers.


def test_close_empties_the_wal_and_the_log_can_be_used_again(path: str) -> None:
    other = EventLog(path)
    other.read_all()
    closed: list[int] = []
    with EventLog(path) as log:
        log.add_close_hook(lambda: closed.append(1))
        log.append("k")
        assert os.stat(path + "-wal").st_size > 0
    assert closed == [1]
    assert os.stat(path + "-wal").st_size == 0
    assert log.append("k") == 2
    assert len(other.read_all()) == 2
    log.close()
    other.close()
    assert os.stat(path + "-wal").st_size == 0


def test_close_does_not_wait_for_a_reader(path: str) -> None:
    log = EventLog(path)
    log.append("k")
    reader = ledgers.connect(path)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM events").fetchall()
    log.append("k")
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < log.timeout / 2
    reader.close()


@pytest.mark.parametrize("journal", JOURNALS)
def test_an_append_goes_to_the_file_that_replaced_the_ledger(path: str, journal: str, tmp_path: Path) -> None:
    ledgers.build(path, 2, journal=journal)
    new = ledgers.build(tmp_path / "new.db", 700, journal=journal)
    with EventLog(path) as log:
        log.append("k")
        log.read_all()
        if journal == "wal":
            ledgers.execute(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        os.replace(new, path)
        assert log.append("k") == 701
        assert len(log.read_all()) == 701
        assert log.append("k") == 702
        assert log.verify_chain().rows_checked == 702


def test_a_removed_ledger_is_not_made_anew(path: str) -> None:
    with EventLog(path) as log:
        log.append("k")
        for name in ("", "-wal", "-shm"):
            os.remove(path + name)
        with pytest.raises(errors.LedgerNotFoundError):
            log.append("k")
        with pytest.raises(errors.LedgerNotFoundError):
            log.read_all()
        assert not os.path.exists(path)
