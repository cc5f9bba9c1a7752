"""The hash chain: both formulas, what they cover, and what they say about damaged ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmm_shm import limits
from pmm_shm.errors import ChainError
from pmm_shm.ledger.chain import ChainReport
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.new_events import event_hash
from tests.support import ledgers

FORMULAS = ("full", "content")
metas = st.dictionaries(
    st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)
)


def verify(path: str | Path) -> ChainReport:
    with EventLog(path, create=False) as log:
        return log.verify_chain()


@given(st.integers(1, 1 << 62), st.text(), st.text(), metas, st.none() | st.text("0123456789abcdef"))
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_hash_is_the_specified_one(
    formula: Any, event_id: int, kind: str, content: str, meta: Any, prev: Any
) -> None:
    row = {"id": event_id, "ts": "t", "kind": kind, "content": content, "meta": meta, "prev_hash": prev}
    assert event_hash(formula, event_id, "t", kind, content, meta, prev) == ledgers.reference_hash(formula, row)


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_a_sound_ledger(tmp_path: Path, formula: Any, journal: str) -> None:
    path = ledgers.build(tmp_path / "l.db", 7, formula=formula, journal=journal)
    report = verify(path)
    assert report == ChainReport(7, 0, formula, None)
    assert report.ok


def test_an_empty_ledger_and_one_without_hash_columns(tmp_path: Path) -> None:
    assert verify(ledgers.build(tmp_path / "empty.db", 0)) == ChainReport(0, 0, None, None)
    path = ledgers.build(tmp_path / "plain.db", 3, hash_columns=False)
    assert verify(path) == ChainReport(0, 3, None, None)


def test_gaps_and_rows_without_a_hash_are_legal(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", ids=[1, 5, 6, 7, 1 << 40], unhashed=(1, 6))
    assert verify(path) == ChainReport(3, 2, "full", None)


CHANGES: list[tuple[str, Any]] = [
    ("ts", "2030-01-01T00:00:00Z"),
    ("kind", "else"),
    ("content", "else"),
    ("meta", '{"n": 99}'),
    ("meta", "{"),
    ("meta", b"{}"),
    ("content", b"\xff"),
    ("prev_hash", None),
    ("prev_hash", "0" * 64),
    ("hash", "0" * 64),
    ("hash", b"\xff"),
    ("id", 1000),
]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(("column", "value"), CHANGES)
@pytest.mark.parametrize("victim", [2, 4, 5])
def test_the_first_changed_row_is_named(tmp_path: Path, formula: str, column: str, value: Any, victim: int) -> None:
    path = ledgers.build(tmp_path / "l.db", 5, formula=formula)
    ledgers.execute(path, f"UPDATE events SET {column} = ? WHERE id = ?", value, victim)
    report = verify(path)
    if formula == "content" and column == "ts":
        assert report.ok  # What the formula leaves unprotected.
    elif column == "id":
        # The row has moved behind the others: the one after its place misses it, unless it was the last anyway.
        expected = {2: 3, 4: 5, 5: None if formula == "content" else 1000}
        assert report.first_bad_id == expected[victim]
    else:
        assert report.first_bad_id == victim
        assert report.rows_checked == victim


def test_the_first_row_must_begin_the_chain(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 3)
    ledgers.execute(path, "DELETE FROM events WHERE id = 1")
    assert verify(path) == ChainReport(1, 0, "full", 2)


def test_a_first_row_that_fits_no_formula(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 3)
    ledgers.execute(path, "UPDATE events SET content = 'else' WHERE id = 1")
    assert verify(path) == ChainReport(1, 0, None, 1)


def test_a_removed_row_and_spacing_in_meta(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 5)
    ledgers.execute(path, """UPDATE events SET meta = '{"a":[1.5,null],"n":3}' WHERE id = 3""")
    assert verify(path).ok  # The hash covers the parsed object.
    ledgers.execute(path, "DELETE FROM events WHERE id = 3")
    assert verify(path).first_bad_id == 4


def test_hostile_rows(tmp_path: Path) -> None:
    count = len(ledgers.HOSTILE)
    assert verify(ledgers.build_hostile(tmp_path / "a.db", hashed=False)) == ChainReport(0, count, None, None)
    assert verify(ledgers.build_hostile(tmp_path / "b.db", hashed=True)) == ChainReport(1, 0, None, 1)


def test_more_rows_than_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with EventLog(path) as log:
        log.append_many([("k", "", {"n": n}) for n in range(2 * limits.TAIL_ROWS_MAX)])
        assert log.verify_chain() == ChainReport(2 * limits.TAIL_ROWS_MAX, 0, "full", None)
        victim = limits.TAIL_ROWS_MAX + 1
        ledgers.execute(path, "UPDATE events SET content = 'x' WHERE id = ?", victim)
        assert log.verify_chain().first_bad_id == victim


@pytest.mark.parametrize("formula", FORMULAS)
def test_appends_go_on_with_the_ledgers_formula(tmp_path: Path, formula: str) -> None:
    path = ledgers.build(tmp_path / "l.db", 3, formula=formula, unhashed=(1,))
    with EventLog(path) as log:
        log.append("k", "é", {"b": 1, "a": {"z": 1, "y": float("nan")}})
        log.append_many([("k", "", {1: (1, 2)}), ("k", "x", None)])
        ledgers.execute(path, "INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'k', '', '{}')")
        log.append("k")
    assert verify(path) == ChainReport(6, 2, formula, None)


def test_rows_without_any_hash_begin_a_full_chain(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 3, formula=None)
    with EventLog(path) as log:
        log.append("k")
    assert verify(path) == ChainReport(1, 3, "full", None)


def test_no_hash_columns(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 3, hash_columns=False)
    with EventLog(path) as log:
        assert log.append_many([("k", "", {}), ("k", "", {})]) == [4, 5]
        assert [event["id"] for event in log.read_all()] == [1, 2, 3, 4, 5]
    assert verify(path) == ChainReport(0, 5, None, None)


@pytest.mark.parametrize("value", ["0" * 64, b"\xff", ""])
def test_nothing_is_appended_to_a_row_that_fits_no_formula(tmp_path: Path, value: Any) -> None:
    path = ledgers.build(tmp_path / "l.db", 3)
    ledgers.execute(path, "UPDATE events SET hash = ? WHERE id = 3", value)
    before = ledgers.raw_rows(path)
    with EventLog(path) as log, pytest.raises(ChainError, match="event 3"):
        log.append("k")
    assert ledgers.raw_rows(path) == before


def test_a_tampered_own_row_is_noticed_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with EventLog(path) as log:
        log.append("k")
        ledgers.execute(path, "UPDATE events SET hash = 'x' WHERE id = 1")
        with pytest.raises(ChainError):
            log.append("k")


def test_the_first_event_decides_and_the_newest_where_it_fits_neither(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 3, formula="content")
    ledgers.execute(path, "UPDATE events SET content = 'else' WHERE id = 1")
    with EventLog(path) as log:
        log.append("k")
        row = dict(
            zip(("id", "ts", "kind", "content"), ledgers.execute(path, "SELECT * FROM events")[-1], strict=False)
        )
        prev, digest = ledgers.execute(path, "SELECT prev_hash, hash FROM events ORDER BY id DESC LIMIT 1")[0]
        assert digest == ledgers.reference_hash("content", {**row, "meta": {}, "prev_hash": prev})
