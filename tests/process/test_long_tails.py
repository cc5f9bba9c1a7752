"""Long tails: rows decoded in bulk, and read ahead in a thread, give what one row after another gives."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pmm_shm import limits
from pmm_shm.errors import LedgerError
from pmm_shm.folds.contract import BatchFold
from pmm_shm.folds.engine import DecodeFold, Engine
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.registry import built_in_folds
from pmm_shm.folds.state import State
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.rows import InvalidText, RawRow
from pmm_shm.ledger.text_rows import TextRows
from pmm_shm.projection.cursor import Cursor, LogChanged
from pmm_shm_client import EventLog
from tests.support import ledgers
from tests.support.profiles import examples

TEXTS = st.sampled_from(["", "write", " Write ", "read", "my name", "name changed to: Vale", "é\x1f\n"])
VALUES = st.sampled_from([0, 1, -1, 0.5, 1e300, True, None, "", "a", "done", [], {}, 1 << 70, {"IAS": 0.9, "GAS": 0.8}])
KEYS = st.sampled_from(["cid", "text", "name", "code", "delta", "trait", "telemetry", "stage", "confidence", "source"])
METAS = st.one_of(
    st.dictionaries(KEYS, VALUES, max_size=4).map(json.dumps),
    st.dictionaries(KEYS, VALUES, max_size=4).map(lambda meta: json.dumps(meta, indent=1)),
    st.dictionaries(KEYS, VALUES, max_size=4).map(lambda meta: json.dumps({**meta, "long": "x" * 700})),
    st.sampled_from(
        ["", "{}", "[]", "7", "{", "{}{}", '{"a":NaN}', '{"a":1,"a":2}', '{"a":1e400}', "\ufeff{}", " {} "]
    ),
    st.sampled_from([None, 7, b"{}", InvalidText(b"{\xff}"), '{"a":' * 120 + "1" + "}" * 120]),
)
CONTENTS = TEXTS | st.sampled_from([None, 7, 0.5, b"write", InvalidText(b"\xff")])
USUAL = st.dictionaries(KEYS, VALUES, max_size=4).map(json.dumps)
KINDS = sorted(str(kind) for fold in built_in_folds() for kind in fold.kinds or ())
USUAL_ROWS = st.tuples(st.just("2026-11-30T10:00:00Z"), st.sampled_from(KINDS), TEXTS, USUAL)
STRANGE_ROWS = st.tuples(
    st.sampled_from(["", "2026", None, 7, b"2026"]),
    st.sampled_from([*KINDS, "unknown", None, 7, b"user", InvalidText(b"\xff")]),
    CONTENTS,
    METAS,
)
ROWS = st.lists(st.one_of(*[USUAL_ROWS] * 7, STRANGE_ROWS), max_size=60)
PARTS = st.lists(st.integers(1, 25), min_size=1, max_size=9)


def state_of(rows: Sequence[RawRow], parts: Sequence[int], events_min: int) -> dict[str, dict[bytes, Any]]:
    """The states after these rows, in batches of these sizes, with the short cuts after `events_min` events."""
    folds = built_in_folds()
    folds.append(DecodeFold(folds))
    engine, states, first, number = Engine(folds), {fold.name: State() for fold in folds}, 0, 0
    with mock.patch.multiple(limits, FAST_JSON_EVENTS_MIN=events_min, ROWS_PER_PROGRESS=0):
        while first < len(rows):
            size = parts[number % len(parts)]
            engine.apply(list(rows[first : first + size]), states)
            first, number = first + size, number + 1
    return {name: {key: value for key, value in state.changes() if value is not None} for name, state in states.items()}


@settings(max_examples=examples(200))
@given(rows=ROWS, parts=PARTS)
def test_rows_decoded_in_bulk_fold_as_one_by_one(rows: list[tuple[Any, ...]], parts: list[int]) -> None:
    numbered = [(number * 3, *row) for number, row in enumerate(rows)]
    assert state_of(numbered, parts, 1) == state_of(numbered, parts, 1 << 40)


class Order(BatchFold):
    """Depends on the order of messages among others."""

    name = "order"
    version = 1
    shares_events = True
    kinds: Mapping[str, Any] = {"user": ("content",), "autonomy_tick": ()}
    newest_max: Mapping[str, int] = {"user": 1_000}

    def apply_batch(self, events: Any, state: State) -> None:
        state["ids"] = [*state.get("ids", []), *(event.id for event in events)]

    def view(self, state: State) -> None: ...


def test_messages_that_are_no_text_stay_in_their_places() -> None:
    rows = [(number, "", "autonomy_tick" if number % 3 else "user", None, "{}") for number in range(90)]
    rows = [row if row[2] == "user" else (*row[:3], "", "{}") for row in rows]
    engine, states = Engine([Order()]), {"order": State()}
    with mock.patch.multiple(limits, FAST_JSON_EVENTS_MIN=1, ROWS_PER_PROGRESS=0):
        for first in range(0, 90, 30):
            engine.apply(rows[first : first + 30], states)
    assert states["order"]["ids"] == list(range(90))


OPENS = st.lists(st.sampled_from(["write", "read", " READ ", "", 1, 1, 4, 7, 21]), max_size=80)


@settings(max_examples=examples(200))
@example(steps=["write", 10, "write", 12, "read", "write"], parts=[30], flushes=[False])
@example(steps=["write", 21, "read"], parts=[30], flushes=[False])
@given(steps=OPENS, parts=PARTS, flushes=st.lists(st.booleans(), min_size=1, max_size=5))
def test_opens_of_a_batch_count_as_single_ones(steps: list[str | int], parts: list[int], flushes: list[bool]) -> None:
    """Steps are the texts of commitments, and numbers of ticks."""
    rows: list[RawRow] = []
    last: dict[str, int] = {}
    gas, tick = 0.0, 0
    for step in steps:
        if isinstance(step, str):
            rows.append((len(rows), "", "commitment_open", step, "{}"))
            text = step.strip().lower()
            if text and tick - last.get(text, -1_000) > 20:
                gas += 0.07
            last[text] = tick
        else:
            rows += [(len(rows) + number, "", "autonomy_tick", "", "{}") for number in range(step)]
            tick += step
            for _ in range(step):
                gas *= 0.9995
    stored = stored_scores(rows, parts, flushes)
    assert stored == stored_scores(rows, [1], [False])
    state = State(stored)
    assert state.get("scores", [0.0, 0.0, 0])[1:3] == [gas, tick]


def test_rows_in_columns_are_a_sequence_of_rows() -> None:
    rows = TextRows([[1, 3, 9], ["a", "b", "c"], ["k", "k", "l"], ["", "x", ""], ["{}", "", "{}"]])
    assert list(rows) == [(1, "a", "k", "", "{}"), (3, "b", "k", "x", ""), (9, "c", "l", "", "{}")]
    assert (len(rows), rows[1], list(rows[1:])) == (3, (3, "b", "k", "x", ""), list(rows)[1:])
    rows.merge(TextRows([[8, 2, 10], *[["m", "n", "o"]] * 4]))
    assert [row[:2] for row in rows] == [(1, "a"), (2, "n"), (3, "b"), (8, "m"), (9, "c"), (10, "o")]


class Stored:
    """A base out of the changes of an overlay."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stored) and self.data == other.data

    def take(self, state: State) -> None:
        for key, value in state.changes():
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value
        state.drop_overlay()

    def get(self, key: bytes, /) -> bytes | None:
        return self.data.get(key)

    def scan(self, prefix: bytes, /) -> Any:
        return iter([(key, value) for key, value in self.data.items() if key.startswith(prefix)])


def stored_scores(rows: list[RawRow], parts: Sequence[int], flushes: Sequence[bool]) -> Stored:
    """The state of the metrics, if the overlay is flushed after some of the batches."""
    engine, stored, first, number = Engine([MetricsFold()]), Stored(), 0, 0
    states = {"metrics": State(stored)}
    while first < len(rows):
        size = parts[number % len(parts)]
        engine.apply(rows[first : first + size], states)
        if flushes[number % len(flushes)]:
            stored.take(states["metrics"])
        first, number = first + size, number + 1
    stored.take(states["metrics"])
    return stored


# Read ahead.


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ledger that is read in many batches."""
    monkeypatch.setattr(limits, "TAIL_ROWS_MAX", 40)
    monkeypatch.setattr(limits, "JOINED_IDS_MIN", 16)
    monkeypatch.setattr(limits, "JOINED_IDS_MAX", 32)
    with EventLog(tmp_path / "ledger.db") as log:
        for number in range(300):
            log.append("autonomy_tick" if number % 2 else "commitment_open", f"text {number}", {"cid": f"c{number}"})
    return str(tmp_path / "ledger.db")


def states_of(cursor: Cursor) -> dict[str, dict[bytes, Any]]:
    return {name: dict(state.changes()) for name, state in cursor.states.items()}


def test_reading_ahead_folds_the_same(path: str) -> None:
    connection = Connection(path, "ro")
    plain, ahead = Cursor(built_in_folds(), connection), Cursor(built_in_folds(), connection)
    for _ in plain.advance_to_head():
        pass
    positions = [ahead.position for tail in ahead.advance_reading_ahead() if tail.position == ahead.position]
    assert len(positions) > 5
    assert (ahead.position, ahead.events_folded) == (plain.position, 300)
    assert states_of(ahead) == states_of(plain)
    connection.close()


def test_without_a_thread_the_rows_are_read_in_turn(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    connection = Connection(path, "ro")
    cursor = Cursor(built_in_folds(), connection)
    monkeypatch.setattr(threading.Thread, "start", refused)
    assert len(list(cursor.advance_reading_ahead())) > 5
    assert cursor.events_folded == 300
    connection.close()


def test_nothing_is_read_behind_an_iterator_that_is_closed(path: str) -> None:
    connection, threads = Connection(path, "ro"), threading.active_count()
    cursor = Cursor(built_in_folds(), connection)
    tails = cursor.advance_reading_ahead()
    first = next(tails)
    tails.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    connection.close()
    assert not connection.is_open
    assert cursor.position == first.position


def test_a_log_that_changes_while_it_is_read_ahead(path: str) -> None:
    connection = Connection(path, "ro")
    tails = Cursor(built_in_folds(), connection).advance_reading_ahead()
    next(tails)
    # The next rows are read already, those behind them are not.
    next(tails)
    ledgers.execute(path, "UPDATE events SET ts = ts || '!'")
    with pytest.raises(LogChanged):
        for _ in tails:
            pass
    connection.close()


def test_a_ledger_that_cannot_be_read_ahead(path: str) -> None:
    connection = Connection(path, "ro")
    tails = Cursor(built_in_folds(), connection).advance_reading_ahead()
    next(tails)
    next(tails)
    ledgers.execute(path, "ALTER TABLE events RENAME TO others")
    with pytest.raises(LedgerError):
        for _ in tails:
            pass
    connection.close()
