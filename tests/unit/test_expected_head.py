"""Optimistic appends: an append that expects a head writes only where it still is the head."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import errors
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from pmm_shm_client import connect
from tests.support import ledgers


@pytest.fixture(params=["wal", "delete"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return ledgers.build(tmp_path / "agent.db", 0, journal=request.param)


def test_an_append_goes_where_the_head_is_the_expected_one_and_nowhere_else(path: str) -> None:
    with EventLog(path) as log, connect(path) as cache:
        assert cache.append("user", "a", expected_head=0) == 1
        assert cache.append("user", "b", expected_head=cache.metrics().as_of) == 2
        assert cache.append("user", "c", {"n": 1}, expected_head=cache.frame()) == 3
        assert log.append("user", "d", expected_head=cache.frame()) == 4
        assert cache.append_many([("user", "e", {}), {"kind": "user"}], expected_head=4) == [5, 6]
        before = ledgers.raw_rows(path)
        for expected in (0, 5, 7, -1, 1 << 70):
            with pytest.raises(errors.HeadMovedError, match=f"expected event {expected} .* is 6; nothing") as caught:
                cache.append("user", "x", expected_head=expected)
            assert caught.value.head_id == 6
            with pytest.raises(errors.HeadMovedError):
                log.append_many([("user", "x", {})] * 2, expected_head=expected)
        assert ledgers.raw_rows(path) == before
        assert cache.append("user", "f", expected_head=6) == 7
        assert log.verify_chain().ok


def test_a_frame_is_void_after_any_append(path: str) -> None:
    with EventLog(path) as other, connect(path) as cache:
        frame = cache.frame()
        other.append("user", "first")
        with pytest.raises(errors.HeadMovedError) as caught:
            cache.append("user", "x", expected_head=frame)
        assert caught.value.head_id == 1
        frame = cache.frame()
        copy = pickle.loads(pickle.dumps(frame))
        other.append("user", "second")
        for one in (frame, copy):
            with pytest.raises(errors.HeadMovedError):
                cache.append_many([("user", "x", {})], expected_head=one)
        assert cache.append("user", "third", expected_head=pickle.loads(pickle.dumps(cache.frame()))) == 3


def test_a_restored_ledger_with_the_same_newest_id_is_another(path: str, tmp_path: Path) -> None:
    backup = str(tmp_path / "backup.db")
    with EventLog(path) as log, EventLog(backup) as other:
        log.append("user", "ours")
        other.append("user", "theirs")
    with connect(path) as cache:
        frame = cache.frame()
        restore(backup, path)
        with pytest.raises(errors.HeadMovedError, match="event 1 is another one") as caught:
            cache.append("user", "x", expected_head=frame)
        assert caught.value.head_id == 1
        assert [event.content for event in cache.events()] == ["theirs"]
        # A number alone cannot tell them apart.
        assert cache.append("user", "y", expected_head=frame.as_of) == 2
        assert cache.append("user", "z", expected_head=cache.frame()) == 3


def test_a_frame_of_a_ledger_whose_newest_row_is_not_utf8_and_that_got_a_column(path: str) -> None:
    with connect(path) as cache:
        cache.append("user", "a")
        # A row of another program, without hashes.
        ledgers.execute(
            path, "INSERT INTO events (ts, kind, content, meta) VALUES ('2026-01-01', 'user', CAST(x'ff' AS TEXT), '')"
        )
        frame = cache.frame()
        ledgers.execute(path, "ALTER TABLE events ADD COLUMN tenant TEXT")
        assert cache.append("user", "b", expected_head=frame) == 3


def test_frames_of_the_other_ways_to_read_have_a_position_too(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(path) as cache:
        cache.append("user", "a")
    monkeypatch.setenv("PMM_USE_PROJECTION_CACHE", "false")
    with connect(path) as cache:
        frame = cache.frame()
        assert cache.append("user", "b", expected_head=frame) == 2
        with pytest.raises(errors.HeadMovedError):
            cache.append("user", "c", expected_head=frame)


def test_a_batch_of_nothing_only_compares(path: str) -> None:
    with connect(path) as cache:
        assert cache.append_many([], expected_head=0) == cache.append_many([]) == []
        with pytest.raises(errors.HeadMovedError):
            cache.append_many([], expected_head=1)
        assert cache.append("user", "free again") == 1


@pytest.mark.parametrize("expected", ["1", 1.0, True, object()])
def test_what_is_neither_an_id_nor_a_frame_is_refused(path: str, expected: Any) -> None:
    with connect(path) as cache:
        with pytest.raises(errors.ConfigError, match="expected_head"):
            cache.append("user", expected_head=expected)
        assert cache.append("user") == 1


def test_the_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(errors.HeadMovedError("moved", 7)))
    assert (str(error), error.head_id) == ("moved", 7)


# Decisions.


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_a_decision_for_nothing_writes_nothing(path: str, nothing: Any) -> None:
    with connect(path) as cache:
        assert cache.decide(lambda frame: nothing) == []
        assert cache.events() == []


def test_a_decision_ends_at_its_timeout_and_with_its_own_errors(path: str) -> None:
    with EventLog(path) as other, connect(path) as cache:
        with pytest.raises(errors.HeadMovedError):
            cache.decide(lambda frame: other.append("user") and [("response", "", {})], timeout=0)
        assert [event.kind for event in cache.events()] == ["user"]
        with pytest.raises(errors.ConfigError):
            cache.decide(lambda frame: [], timeout="soon")  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidEventError):
            cache.decide(lambda frame: [("", "", {})])
        with pytest.raises(ZeroDivisionError):
            cache.decide(lambda frame: [1 // 0])  # type: ignore[list-item]
        assert cache.append("user") == 2


# A ledger that is made by `connect`.


def test_connect_makes_a_ledger_where_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with pytest.raises(errors.LedgerNotFoundError, match=r"new\.db: no such file; create=True makes a new ledger"):
        connect(path)
    assert not path.exists()
    with connect(path, create=True) as cache:
        assert cache.append("user", "hello") == 1
        assert cache.metrics().as_of == 1
    with connect(path, create=True) as cache:
        assert [event.content for event in cache.events()] == ["hello"]


def test_connect_makes_no_ledger_of_another_database(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    ledgers.execute(path, "CREATE TABLE other (x)")
    with pytest.raises(errors.NotALedgerError):
        connect(path, create=True)
    assert ledgers.execute(path, "SELECT name FROM sqlite_master") == [("other",)]
