"""The short cuts of long replays change no answer: `meta` parsed by msgspec, and messages that are only looked at."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmm_cached.follower import all_folds
from pmm_cached.rebuild import Rebuild
from pmm_shm import limits
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import DecodeFold, Engine
from pmm_shm.folds.history import HistoryFold
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.recent import RecentFold
from pmm_shm.folds.registry import built_in_folds
from pmm_shm.folds.state import QUARANTINE, State, cell_key
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fast_json import fast_meta_parser
from pmm_shm.ledger.rows import MalformedMeta, parse_meta
from pmm_shm.ledger.tail import START, Tail, TailReader
from pmm_shm.projection.cursor import LogChanged
from pmm_shm_cli.synthetic import synthetic_rows
from pmm_shm_client import EventLog
from tests.support import ledgers
from tests.support.publishing import Publisher

# JSON.

TOKENS = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"',
        '"a"',
        '"b"',
        '"a":1',
        '{"a":1}',
        "\\",
        "\\u",
        "\\ud800",
        "\\ud83d\\ude00",
        "\\n",
        "\\/",
        "\\x",
        "0",
        "-0",
        "-0.0",
        "01",
        "1.",
        ".5",
        "1e5",
        "1E+5",
        "1e400",
        "-1e400",
        "5e-324",
        "9007199254740993.0",
        "18446744073709551616",
        "-9223372036854775809",
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "true",
        "false",
        "null",
        "tru",
        "\x00",
        "\x01",
        "\t",
        "\n",
        "\r",
        "\x0b",
        "\x7f",
        "\ufeff",
        "\u2028",
        "é",
        "😀",
        "�",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**700), 10**700)
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.builds(
    json.dumps,
    st.dictionaries(st.text(max_size=3), VALUES, max_size=4),
    ensure_ascii=st.booleans(),
    indent=st.none() | st.just(1),
)
BROKEN = st.lists(TOKENS, max_size=8).map("".join)
REPEATED = st.lists(st.tuples(st.sampled_from("ab"), VALUES), max_size=4).map(
    lambda pairs: "{" + ",".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
)
NESTED = st.builds(
    lambda depth, end: '{"a":' + "[" * depth + "]" * (depth + end) + "}", st.integers(90, 110), st.sampled_from([0, 1])
)
LONG = st.builds(
    lambda digits, sign: f'{{"a":{sign}{"7" * digits}}}', st.integers(600, 4_400), st.sampled_from(["", "-"])
)
OTHERS = st.sampled_from(
    [None, "", 7, 0.5, b'{"a":1}', bytearray(b"{}"), "[1]", "7", " {} ", '{"a":1}{"b":2}', "\ufeff{}"]
)


def outcome(parse: Any, value: object) -> tuple[str, str]:
    """The result with its types, order of keys and signs of zero; or the reason why there is none."""
    try:
        return "meta", repr(parse(value))
    except MalformedMeta as error:
        return "malformed", str(error)


@given(value=DOCUMENTS | BROKEN | REPEATED | NESTED | LONG | OTHERS)
def test_msgspec_gives_what_pythons_json_gives(value: object) -> None:
    pytest.importorskip("msgspec")
    assert fast_meta_parser() is not parse_meta
    assert outcome(fast_meta_parser(), value) == outcome(parse_meta, value)


@given(number=st.floats(allow_nan=False, allow_infinity=False) | st.decimals(allow_nan=False, allow_infinity=False))
def test_each_bit_of_a_float_is_that_of_pythons_json(number: object) -> None:
    pytest.importorskip("msgspec")
    text = f'{{"a":{number!s}}}'.replace("E", "e")
    assert outcome(fast_meta_parser(), text) == outcome(parse_meta, text)


def test_only_a_long_replay_imports_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("pmm_shm.ledger.fast_json.fast_meta_parser", lambda: asked.append(1) or parse_meta)
    folds = built_in_folds()
    engine, states = Engine(folds), {fold.name: State() for fold in folds}
    row = (1, "", "autonomy_tick", "", "{}")
    for _ in range(2):
        engine.apply([row] * (limits.FAST_JSON_EVENTS_MIN - 1), states)
        # A short batch: the log is followed, not replayed.
        engine.apply([row], states)
    assert not asked
    engine.apply([row] * limits.FAST_JSON_EVENTS_MIN, states)
    assert asked


# Messages.

EVENTS = 1_500
FIRST_LONG = 200


class AllMessages(RecentFold):
    """Wants more of the newest than one statement fetches, and of another kind."""

    name = "all_messages"
    newest_max: Mapping[str, int] = {"user": 100, "note": 3}
    kinds: Mapping[str, Any] = {"user": ("content",), "note": ("content",)}

    def apply_batch(self, events: Any, state: State) -> None:
        for event in events:
            state.table(event.kind)[event.id] = [event.ts, event.content]
            kept = sorted(key for key, _ in state.table(event.kind).items())
            for old in kept[: -self.newest_max[event.kind]]:
                del state.table(event.kind)[old]


def tails(reader: TailReader) -> list[Tail]:
    found, position = [], START
    while not found or not found[-1].is_complete:
        found.append(reader.read(position))
        position = found[-1].position
    return found


def state_of(folds: list[Fold], found: list[Tail]) -> dict[str, dict[bytes, Any]]:
    engine, states = Engine(folds), {fold.name: State() for fold in folds}
    for tail in found:
        engine.apply(tail.rows, states)
    return {name: {key: value for key, value in state.changes() if value is not None} for name, state in states.items()}


CAPITALS = "kinds in capitals, in a column for which they are the same"
HOSTILE = {
    "nothing": "SELECT 1",
    "a message that is not UTF-8": "UPDATE events SET content = CAST(x'41ff' AS TEXT) WHERE id = {user}",
    "halves of one character in two messages": (
        "UPDATE events SET content = CAST(iif(id % 2, x'c3', x'a9') AS TEXT) WHERE kind IN ('user', 'response')"
    ),
    "a surrogate": "UPDATE events SET content = CAST(x'eda080' AS TEXT) WHERE id = {user}",
    "a blob": "UPDATE events SET content = x'414243' WHERE id = {user}",
    "a number": "UPDATE events SET content = 7 WHERE id = {user}",
    "zeros": "UPDATE events SET content = 'a' || char(0) || 'b' WHERE id >= {user}",
    "a long message": "UPDATE events SET content = hex(zeroblob(40000)) WHERE id = {user}",
    "long meta": "UPDATE events SET meta = hex(zeroblob(4000)) WHERE kind = 'user'",
    "gaps": "UPDATE events SET id = id + 9000000000000000000 WHERE id > 700",
    "separators": "UPDATE events SET content = content || char(31) WHERE id % 90 = 0",
    "a separator less and one more": (
        "UPDATE events SET content = iif(kind = 'reflection', char(31) || content, content) WHERE id % 40 < 2"
    ),
    "separators in meta": "UPDATE events SET meta = '{\"a\":\"' || char(31) || '\"}' WHERE id % 90 = 0",
    "no meta": "UPDATE events SET meta = NULL WHERE kind = 'autonomy_tick' AND id % 50 = 0",
    "empty meta": "UPDATE events SET meta = '' WHERE id % 50 = 0",
    "broken meta": "UPDATE events SET meta = '{\"a\":1}{}' WHERE id % 50 = 0",
    "meta that only Python reads": "UPDATE events SET meta = '{\"a\":NaN}' WHERE id % 50 = 0",
    "lists for meta": "UPDATE events SET meta = '[{}]' WHERE id % 50 = 0",
    "meta that is not UTF-8": "UPDATE events SET meta = CAST(x'7bff7d' AS TEXT) WHERE id % 50 = 0",
    "blobs for meta": "UPDATE events SET meta = CAST(meta AS BLOB) WHERE id % 50 = 0",
    "no time": "UPDATE events SET ts = NULL WHERE kind = 'autonomy_directive'",
    "blobs for time": "UPDATE events SET ts = CAST(ts AS BLOB) WHERE id % 50 = 0",
    "long times": "UPDATE events SET ts = hex(zeroblob(100)) WHERE kind = 'autonomy_directive' AND id % 3 = 0",
    "blobs for content": "UPDATE events SET content = CAST(content AS BLOB) WHERE id % 50 = 0",
    "numbers for content": "UPDATE events SET content = id WHERE id % 50 = 0",
    "no content": "UPDATE events SET content = NULL WHERE id % 50 = 0",
    "long rows": "UPDATE events SET content = hex(zeroblob(40000)) WHERE kind = 'reflection' AND id % 4 = 0",
    "blobs for kinds": "UPDATE events SET kind = CAST(kind AS BLOB) WHERE id % 50 = 0",
    "negative ids": "UPDATE events SET id = id - 5000",
    "the lowest id": "UPDATE events SET id = -9223372036854775807 - 1 WHERE id = 1",
    CAPITALS: "UPDATE events SET kind = upper(kind) WHERE id % 7 < 5",
    "kinds that come late": "UPDATE events SET kind = 'assistant_message' WHERE kind = 'response' AND id > 1200",
}

RARE = (
    "nothing",
    "a message that is not UTF-8",
    "a surrogate",
    "a blob",
    "a number",
    "zeros",
    "a long message",
    "gaps",
)
"""Damage for which most rows are joined nevertheless."""


@pytest.mark.parametrize(
    ("damage", "encoding"),
    [*((damage, "UTF-8") for damage in HOSTILE), *((damage, "UTF-16le") for damage in RARE[:4])],
)
def test_messages_that_are_not_fetched_change_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, encoding: str
) -> None:
    path = str(tmp_path / "ledger.db")
    monkeypatch.setattr(limits, "TAIL_ROWS_MAX", FIRST_LONG)
    monkeypatch.setattr(limits, "JOINED_IDS_MIN", 32)
    monkeypatch.setattr(limits, "JOINED_BYTES_MAX", 1 << 19)
    make(path, encoding, "NOCASE" if damage == CAPITALS else "BINARY")
    users = [row[0] for row in ledgers.execute(path, "SELECT id FROM events WHERE kind = 'user' ORDER BY id")]
    ledgers.execute(path, HOSTILE[damage].replace("{user}", str(users[len(users) // 2])))
    built_in = [*built_in_folds(), AllMessages()]
    folds = [*built_in, DecodeFold(built_in)]
    engine, connection = Engine(folds), Connection(path, "ro")
    with connection.lock:
        whole = tails(TailReader(connection, None, whole_rows=True))
        joined = tails(TailReader(connection, engine.kinds))
        sparse = tails(TailReader(connection, engine.kinds, newest=engine.newest))
    connection.close()
    rows = [row[:5] for tail in whole for row in tail.rows if row[2] in (engine.kinds or ())]
    assert joined[-1].position == sparse[-1].position == whole[-1].position
    assert [row[:5] for tail in joined for row in tail.rows if row[2] in (engine.kinds or ())] == rows
    if damage != CAPITALS:
        # A short tail holds rows of other kinds, too.
        wanted = sum(row[2] in (engine.kinds or ()) for tail in sparse for row in tail.rows)
        assert wanted + sum(tail.left_out for tail in sparse) == len(rows)
    fetched = {row[0]: row for row in rows}
    few = [row[:5] for tail in sparse for row in tail.rows if row[0] in fetched]
    assert few == [(*fetched[row[0]][:4], row[4]) for row in few]
    assert all(row[4] == fetched[row[0]][4] for row in few if row[2] not in engine.newest())
    assert state_of(folds, sparse) == state_of(folds, whole)
    # All of these folds share their events, so that they are decoded column by column.
    folds = [*built_in_folds(), DecodeFold(built_in_folds())]
    one_by_one = state_of(folds, whole)
    monkeypatch.setattr(limits, "FAST_JSON_EVENTS_MIN", 1)
    assert state_of(folds, sparse) == one_by_one
    assert state_of(folds, whole) == one_by_one
    if encoding == "UTF-8":
        left_out = sum(tail.left_out for tail in sparse)
        assert left_out > 0 or damage not in RARE


def make(path: str, encoding: str, collation: str) -> None:
    """A ledger of a talkative agent."""
    rows = [row[:5] for row in islice(synthetic_rows(4), EVENTS)]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute(
            f"CREATE TABLE events (id INTEGER PRIMARY KEY, ts TEXT, kind TEXT COLLATE {collation}, content, meta TEXT, "
            "prev_hash, hash)"
        )
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, NULL, NULL)", rows)


# Folds that are parts of the history.


def published(publisher: Publisher) -> dict[str, dict[bytes, bytes]]:
    with publisher.writer.snapshot() as snapshot:
        return {fold.name: dict(snapshot.base(fold).scan(b"")) for fold in publisher.follower.live}


def replayed(path: str) -> dict[str, dict[bytes, Any]]:
    rows = ledgers.execute(path, "SELECT id, ts, kind, content, meta FROM events ORDER BY id")
    return state_of(all_folds(), [Tail(rows, START, True, True)])


@pytest.fixture
def long_path(tmp_path: Path) -> str:
    path = str(tmp_path / "ledger.db")
    with EventLog(path) as log:
        rows = islice(synthetic_rows(4), EVENTS)
        log.append_many([(row[2], row[3], json.loads(row[4])) for row in rows])
    return path


@pytest.mark.parametrize("keys_per_flush", [limits.REBUILD_KEYS_PER_FLUSH, 50])
def test_folds_copied_out_of_the_history_equal_a_replay(
    long_path: str, monkeypatch: pytest.MonkeyPatch, publish: Callable[[str], Publisher], keys_per_flush: int
) -> None:
    monkeypatch.setattr(limits, "REBUILD_KEYS_PER_FLUSH", keys_per_flush)
    monkeypatch.setattr(limits, "TAIL_ROWS_MAX", FIRST_LONG)
    folded = []
    apply_batch = MetricsFold.apply_batch
    monkeypatch.setattr(MetricsFold, "apply_batch", lambda *arguments: folded.append(1) or apply_batch(*arguments))
    publisher = publish(long_path)
    assert not folded
    assert published(publisher) == replayed(long_path)


def test_only_the_history_fails_at_an_event(
    long_path: str, monkeypatch: pytest.MonkeyPatch, publish: Callable[[str], Publisher]
) -> None:
    apply_batch = HistoryFold.apply_batch

    def failing(fold: HistoryFold, events: Any, state: State) -> None:
        if any(event.content == "fail" for event in events):
            raise ValueError("fails here")
        apply_batch(fold, events, state)

    monkeypatch.setattr(HistoryFold, "apply_batch", failing)
    publisher = publish(long_path)
    with EventLog(long_path) as log:
        # The rebuild has read everything, and finds this at its end: it has to begin again.
        rebuild = Rebuild(long_path, publisher.writer, publisher.follower.live, lambda: None)
        rebuild.run()
        log.append("commitment_open", "fail", {"cid": "c", "text": "fail"})
        with pytest.raises(LogChanged):
            rebuild.finish(publisher.follower)
    publisher.rebuild()
    found = published(publisher)
    assert found == replayed(long_path)
    assert cell_key(QUARANTINE) in found["history"]
    assert cell_key(QUARANTINE) not in found["metrics"]
