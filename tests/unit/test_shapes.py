"""Log shapes: which are refused and why, what an event of a foreign table is, and reads without a daemon."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import ConfigError, LedgerNotFoundError, LedgerUnwritableError, NotALedgerError, UnknownFoldError
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.backup import backup
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from pmm_shm.ledger.shape import Shape, load_shape
from pmm_shm.ledger.shape_record import read_shape, record_shape
from pmm_shm.ledger.shape_sql import source_of
from pmm_shm.ledger.tail import START, TailReader
from pmm_shm_client import connect
from tests.support import foreign_logs
from tests.support.foreign_logs import ALL, BLOB, COLUMNS, ForeignLog, Sums, sums_of, toml_of

TABLE = "CREATE TABLE log (at INTEGER PRIMARY KEY, what TEXT, body TEXT, n INTEGER, key TEXT UNIQUE, loose INTEGER)"


def shape(**changes: Any) -> Shape:
    return Shape(**{"name": "s", "version": 1, "from_": "log", "position": "at", "kind": "what", **changes})


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as handle:
        handle.execute(TABLE)
        handle.execute("CREATE TABLE more (id INTEGER PRIMARY KEY, log_at INTEGER, word TEXT UNIQUE, text TEXT)")
        handle.execute("CREATE INDEX by_log ON more (log_at)")
        handle.execute("CREATE VIEW seen AS SELECT * FROM log")
        handle.execute("CREATE TABLE plain (key TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID")
        handle.execute("CREATE TABLE halves (id BIGINT PRIMARY KEY)")
        handle.execute("CREATE TABLE pairs (one INTEGER, two INTEGER, PRIMARY KEY (one, two)) WITHOUT ROWID")
        handle.execute("INSERT INTO halves VALUES (1), ('two')")
    handle.close()
    return path


def event(path: Path, one: Shape) -> Any:
    """The newest event, as folds see it."""
    with EventLog(path, create=False, shape=one) as log:
        return log.events(limit=1, newest_first=True)[0]


def raw(path: Path, one: Shape) -> dict[str, Any]:
    """The newest row of the view."""
    connection = Connection(path, "ro", shape=one)
    with connection.lock:
        row = TailReader(connection, None, whole_rows=True).read(START).rows[-1]
        names = connection.columns
    connection.close()
    return dict(zip(names, row, strict=True))


# The definition.


@pytest.mark.parametrize("log", ALL.values(), ids=ALL)
def test_a_toml_file_is_the_same_shape_as_the_value(log: ForeignLog, tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text(toml_of(log.shape), encoding="utf-8")
    assert load_shape(file) == load_shape(str(file)) == load_shape(log.shape) == log.shape
    assert load_shape(file).identity == log.shape.identity


def test_the_identity_covers_all_but_the_folds() -> None:
    one = shape()
    assert one.identity == shape(folds=("a:B",)).identity
    others = {
        "name": "t",
        "version": 2,
        "from_": "more",
        "position": "rowid",
        "kind": "n",
        "ts": "n",
        "content": "n",
        "meta": {"json": "body"},
        "kinds": {"a": "b"},
        "columns": {"n": "n"},
    }
    assert {field.name for field in dataclasses.fields(Shape)} - {"folds"} == others.keys()
    assert len({shape(**{key: value}).identity for key, value in others.items()} | {one.identity}) == len(others) + 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "a b"}, "`name` must be"),
        ({"version": 0}, "`version` must be"),
        ({"version": True}, "`version` must be"),
        ({"from_": " "}, "`from` must be text"),
        ({"position": 5}, "`position` must be text"),
        ({"kind": None}, "`kind` must be"),
        ({"kind": {"json": "body"}}, "`kind` must be"),
        ({"kind": {"json": "body", "path": "type"}}, "`kind` must be"),
        ({"ts": {"epoch_ns": "n"}}, "`ts` must be"),
        ({"content": ["body"]}, "`content` must be"),
        ({"meta": {"text": "body"}}, "`meta` must be"),
        ({"meta": {"columns": {}}}, "1 to 60 keys"),
        ({"meta": {"columns": {"a": 1}}}, "`meta.columns.a` must be"),
        ({"kinds": {"a": 1}}, "`kinds` must map"),
        ({"columns": {f"c{number}": "n" for number in range(1_001)}}, "at most 1000 names"),
        ({"columns": {"hash": "n"}}, "none of"),
        ({"columns": {"two words": "n"}}, "identifier"),
        ({"columns": {"a": "n", "A": "n"}}, "differ in case"),
        ({"folds": "a:B"}, "`folds` must be"),
        ({"kind": {"json": "body", "path": "$.a["}}, "`kind` must be"),
        ({"kind": {"json": "body", "path": "$a"}}, "`kind` must be"),
        ({"kinds": {"a\0b": "a"}}, "valid Unicode without NUL"),
        ({"content": "'\ud800'"}, "valid Unicode without NUL"),
    ],
)
def test_a_definition_without_meaning_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        shape(**changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = 'a'\nversion = 1\nfrom = 'log'", "`kind` is missing"),
        ("name = 'a'\nversion = 1\nfrom = 'log'\nkind = 'k'\nkinf = 'k'", "unknown key 'kinf'"),
        ("name = ", "not TOML"),
    ],
)
def test_a_file_without_meaning_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        load_shape(tmp_path / "bad.toml")


def test_an_unknown_name_says_how_a_path_looks() -> None:
    with pytest.raises(ConfigError, match=r"no such shape comes with pmm-shm .* a path ends in \.toml"):
        load_shape("nothing-like-it")
    with pytest.raises(ConfigError, match="No such file"):
        load_shape("nowhere/it.toml")
    with pytest.raises(ConfigError, match="expected a path"):
        load_shape(5)  # type: ignore[arg-type]


# What the tables do not bear.


@pytest.mark.parametrize(
    "expression",
    [
        "(SELECT max(text) FROM more)",
        "what; DROP TABLE log",
        "what) AS kind, (body",
        "what, body",
        "what -- ",
        "what /* */",
        "?1",
        ":name",
        "'open",
        "random()",
        "datetime('now')",
        "datetime( )",
        "datetime(n, 'unixepoch', 'LocalTime')",
        "CURRENT_TIMESTAMP",
        "json_extract(body, '$.a')",
        "body ->> '$.a'",
        '"typo"',
        "row_number() OVER ()",
        "load_extension('x')",
        "[random]()",
        "`load_extension` ('x')",
        "strftime('%s')",
        "sqlite_version()",
    ],
)
def test_more_than_an_expression_over_the_row_is_refused(expression: str, database: Path) -> None:
    for changes in ({"kind": expression}, {"columns": {"a": expression}}, {"meta": {"columns": {"a": expression}}}):
        with pytest.raises(ConfigError, match="shape 's'"):
            EventLog(database, create=False, shape=shape(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"from_": "nothing"}, "no table 'nothing'"),
        ({"from_": "seen"}, "'seen' is a view"),
        ({"kind": "what_not"}, "`kind`: no such column: what_not; a constant text"),
        ({"ts": {"epoch": "nope"}}, "`ts`: no such column: nope"),
        ({"meta": {"json": "nope"}}, "`meta`: no such column: nope"),
        ({"columns": {"a": "nosuch(what)"}}, "`columns.a`: no such function"),
        ({"columns": {"a": "what what"}}, "`columns.a`: near"),
        ({"position": "nope"}, "`position`: no such column: .*; 'log' has at, what, "),
        ({"position": "loose"}, "no look-up by a key .*SCAN"),
        (
            {"position": "key"},
            r"`position = 'key'`: no integer column; a position must be `rowid` or a unique integer key",
        ),
        ({"kind": "max(what)"}, "no look-up by a key"),
        ({"from_": "plain", "position": "rowid", "kind": "key"}, "`position`: no such column: plain.rowid"),
        ({"from_": "plain", "position": "key", "kind": "key"}, "no integer column"),
        ({"from_": "halves", "position": "id", "kind": "'a'"}, "a value of type text; a position must be"),
        ({"from_": "log AS l LEFT JOIN more AS m ON m.log_at = l.at", "position": "l.at"}, "one row by a unique key"),
        ({"from_": "log AS l LEFT JOIN more AS m ON m.text = l.what", "position": "l.at"}, "no look-up by a key"),
        ({"from_": "log AS l JOIN more AS m", "position": "l.at"}, "each JOIN needs ON"),
        ({"from_": "log, more", "position": "at"}, "expected a table"),
        ({"from_": "(SELECT * FROM log)", "position": "at"}, "more than an expression"),
        ({"from_": "log NATURAL JOIN more", "position": "at"}, "expected a table"),
        ({"from_": "log AS l JOIN log AS L ON l.at = l.n", "position": "l.at"}, "two tables are called"),
        ({"from_": "log AS l LEFT JOIN more AS m ON m.id = l.n", "position": "at"}, "must be alias.column"),
        ({"position": "at + 1"}, "`position` must be `rowid` or a column"),
        ({"from_": "pairs", "position": "one", "kind": "'a'"}, "'one' is not unique"),
        ({"from_": "log AS l LEFT JOIN pairs AS p ON p.one = l.n", "position": "l.at"}, "one row by a unique key"),
        ({"columns": {"a": "(" * 1_000 + "what" + ")" * 1_000}}, "`columns.a`: parser stack overflow"),
        ({"columns": {"a": "+".join(["n"] * 2_000)}}, "`columns.a`: Expression tree is too large"),
        ({"columns": {"a": "n IN pragma_table_info"}}, "`columns.a`: sub-select"),
    ],
)
def test_a_shape_that_would_be_slow_or_wrong_is_refused(changes: dict[str, Any], reason: str, database: Path) -> None:
    with pytest.raises((NotALedgerError, ConfigError), match=reason) as caught:
        EventLog(database, create=False, shape=shape(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "from_",
    [
        "log AS l LEFT JOIN more AS m ON m.id = l.n",
        "log l JOIN more m ON m.word = l.what",
        "log AS l LEFT JOIN more AS m ON (m.id = l.n) LEFT JOIN plain p ON p.key = l.what",
        '"log" AS [l] LEFT JOIN `more` AS m ON m.id = l.n',
    ],
)
def test_joins_by_unique_keys_are_taken(from_: str, database: Path) -> None:
    with EventLog(database, create=False, shape=shape(from_=from_, position="l.at", kind="l.what")) as log:
        assert log.read_all() == []


@pytest.mark.parametrize("expression", ["'say \"it\"'", "what = 'a' AND what <> '('", "[what]", 'log."what"'])
def test_what_is_quoted_is_not_looked_into(expression: str, database: Path) -> None:
    with EventLog(database, create=False, shape=shape(columns={"a": expression})) as log:
        assert log.read_all() == []


def test_a_table_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as handle:
        handle.execute('CREATE TABLE "GRÖSSE ""x""" (id BIGINT NOT NULL PRIMARY KEY, "Ärger" TEXT)')
        handle.execute('INSERT INTO "GRÖSSE ""x""" VALUES (9007199254740993, \'a\')')
    handle.close()
    given = shape(from_='"GRÖSSE ""x""" AS g', position="g.id", kind="[Ärger]", meta={})
    with EventLog(path, create=False, shape=given) as log:
        assert [(one["id"], one["kind"]) for one in log.read_all()] == [(9007199254740993, "a")]


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("log", ALL.values(), ids=ALL)
def test_statistics_of_a_small_table_change_nothing(log: ForeignLog, rows: int, tmp_path: Path) -> None:
    # With them SQLite scans: a row or two are read faster than looked up.
    path = tmp_path / "app.db"
    writer = log.make(path, rows)
    with connect(path, shape=log.shape) as cache:
        assert cache.fold("sums") == sums_of(rows)
        writer.execute("CREATE TABLE other (a)")
        writer.execute("CREATE INDEX other_a ON other (a)")
        writer.execute("ANALYZE")
        log.pay(writer, rows + 1, "abc"[(rows + 1) % 3], rows + 1)
        assert cache.fold("sums") == sums_of(rows + 1)
    with connect(path, shape=log.shape) as cache:
        assert cache.fold("sums") == sums_of(rows + 1)


def test_a_function_that_only_the_program_has(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as handle:
        handle.create_function("theirs", 1, lambda value: 1)
        handle.execute("CREATE TABLE log (at INTEGER PRIMARY KEY, what TEXT CHECK (theirs(what)), body, n)")
        handle.execute("INSERT INTO log (what) VALUES ('a')")
    handle.close()
    with EventLog(path, create=False, shape=shape(position="at")) as log:
        assert [one["kind"] for one in log.read_all()] == ["a"]


def test_a_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LedgerNotFoundError):
        EventLog(tmp_path / "no.db", shape=shape())
    assert list(tmp_path.iterdir()) == []


# What an event is.


def insert(path: Path, *values: Any) -> None:
    handle = sqlite3.connect(path)
    with handle:
        handle.execute("INSERT INTO log (what, body, n) VALUES (?, ?, ?)", values)
    handle.close()


@pytest.mark.parametrize(
    ("unit", "stored", "ts"),
    [
        ("epoch", 1_700_000_000, "2023-11-14T22:13:20.000000Z"),
        ("epoch", 1_700_000_000.123456, "2023-11-14T22:13:20.123456Z"),
        ("epoch", -0.25, "1969-12-31T23:59:59.750000Z"),
        ("epoch_ms", 1_700_000_000_123, "2023-11-14T22:13:20.123000Z"),
        ("epoch_us", 1_700_000_000_123_456, "2023-11-14T22:13:20.123456Z"),
        ("epoch", None, ""),
        ("epoch", "soon", ""),
        ("epoch", 1e300, ""),
    ],
)
def test_epoch_times(unit: str, stored: object, ts: str, database: Path) -> None:
    handle = sqlite3.connect(database)
    with handle:
        handle.execute("CREATE TABLE times (id INTEGER PRIMARY KEY, at)")
        handle.execute("INSERT INTO times (at) VALUES (?)", (stored,))
    handle.close()
    assert event(database, shape(from_="times", position="id", kind="'a'", ts={unit: "at"})).ts == ts


@pytest.mark.parametrize(
    ("stored", "kind"), [("a", "alpha"), (b"a", "alpha"), ("b", "b"), (5, "5"), (None, ""), ("it's", "q'")]
)
def test_kinds_by_another_name(stored: object, kind: str, database: Path) -> None:
    insert(database, stored, "", 0)
    assert event(database, shape(kinds={"a": "alpha", "it's": "q'"})).kind == kind


def test_a_column_without_case_does_not_mix_kinds(tmp_path: Path) -> None:
    handle = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    handle.execute("CREATE TABLE log (at INTEGER PRIMARY KEY, what TEXT COLLATE NOCASE, account, cents)")
    handle.executemany("INSERT INTO log VALUES (?, ?, 'a', 1)", [(1, "paid"), (2, "PAID"), (3, "Done")])
    handle.close()
    one = shape(
        meta={"columns": {"account": "account", "cents": "cents"}}, kinds={"DONE": "paid"}, folds=COLUMNS.shape.folds
    )
    with connect(tmp_path / "app.db", shape=one) as cache:
        assert cache.fold("sums") == {"a": 1}
        assert [each.kind for each in cache.events()] == ["paid", "PAID", "Done"]
        assert [each.id for each in cache.events("paid")] == [1]


@pytest.mark.parametrize(
    ("stored", "meta"),
    [
        ('{"a": 1}', {"a": 1}),
        (b'{"a": 1}', {"a": 1}),
        (None, {}),
        ('{"a": ', {}),
        (b"\xff\xfe", {}),
        ("[1]", {}),
        (7, {}),
    ],
)
def test_json_of_any_type_and_quality(stored: object, meta: dict[str, Any], database: Path) -> None:
    insert(database, "a", '{"a": 0}', 0)
    insert(database, "a", stored, 0)
    one = shape(meta={"json": "body"}, columns={"part": {"json": "body", "path": "$.a"}})
    assert event(database, one).meta == meta
    assert raw(database, one)["part"] == meta.get("a")
    with EventLog(database, create=False, shape=one) as log:
        assert [each["meta"] for each in log.read_all()] == [{"a": 0}, meta]


def test_meta_of_columns_nests_json_and_takes_any_value(database: Path) -> None:
    one = shape(
        meta={
            "columns": {
                "whole": {"json": "body"},
                "part": {"json": "body", "path": "$.b"},
                "n": "n",
                "it's": "upper(what)",
            }
        }
    )
    insert(database, b"raw", '{"b": [1, {"c": null}]}', 2.5)
    whole = {"b": [1, {"c": None}]}
    assert event(database, one).meta == {"whole": whole, "part": whole["b"], "n": 2.5, "it's": "RAW"}
    insert(database, "a", None, None)
    assert event(database, one).meta == {"whole": None, "part": None, "n": None, "it's": "A"}
    insert(database, "a", "no json", 1)
    # Quarantined, and not half an object.
    assert raw(database, one)["meta"] == "malformed"


@pytest.mark.parametrize(
    "number",
    [0.1 + 0.2, 1e300 * 3.3, -5e-324, 1.7976931348623157e308, 2.5, 1 / 3, float("inf"), float("-inf"), 7, -(2**63)],
)
def test_numbers_keep_their_last_bit(number: float, database: Path) -> None:
    insert(database, "a", json.dumps({"n": number}), number)
    one = shape(meta={"columns": {"n": "n", "whole": {"json": "body"}, "part": {"json": "body", "path": "$.n"}}})
    if number in (float("inf"), float("-inf")):
        # Not in JSON.
        one = shape(meta={"columns": {"n": "n"}})
    for value in event(database, one).meta.values():
        found = value["n"] if isinstance(value, dict) else value
        assert (type(found), found) == (type(number), number)


def test_content_is_empty_for_null_and_quarantined_for_numbers(database: Path) -> None:
    insert(database, "a", None, 1)
    assert raw(database, shape(content="body"))["content"] == ""
    assert raw(database, shape(content="n"))["content"] == 1
    assert event(database, shape(content="n")).content == ""


def test_further_columns_are_in_the_order_of_their_names(database: Path) -> None:
    insert(database, "a", "b", 1)
    one = shape(columns={"zeta": "n", "alpha": "body"})
    assert list(raw(database, one).items())[-2:] == [("alpha", "b"), ("zeta", 1)]
    assert one.identity == shape(columns={"alpha": "body", "zeta": "n"}).identity


# Reads, without a daemon.


@pytest.fixture(params=ALL.values(), ids=ALL)
def log(request: pytest.FixtureRequest) -> ForeignLog:
    found: ForeignLog = request.param
    return found


def test_reads_are_exact_after_each_append_and_write_nothing(log: ForeignLog, tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = log.make(path, 100)
    before = writer.execute("PRAGMA data_version").fetchall()
    with connect(path, shape=log.shape) as cache:
        for count in range(101, 111):
            log.pay(writer, count, "abc"[count % 3], count)
            assert dict(cache.fold("sums")) == sums_of(count)
        frame = cache.frame()
        assert frame.fold("sums") == cache.fold("sums")
        assert frame.to_dict() == {"as_of": frame.as_of, "sums": sums_of(110)}
        ids = [each.id for each in cache.events(limit=None)]
        assert (len(ids), ids[-1]) == (110, frame.as_of)
        past = cache.frame_at(ids[49])
        assert (past.as_of, dict(past.fold("sums"))) == (ids[49], sums_of(50))
        assert cache.verify().events == 110
        assert cache.newest("paid") == cache.events("paid", limit=1, newest_first=True)[0]
        assert cache.search("anything", mode="words").as_of == frame.as_of
    assert writer.execute("PRAGMA data_version").fetchall() == before
    assert not any("-cache" in one.name for one in tmp_path.iterdir())


def test_an_edit_of_an_old_row_is_in_the_answers_behind_a_verification(log: ForeignLog, tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = log.make(path, 10)
    with connect(path, shape=log.shape) as cache:
        assert cache.fold("sums") == sums_of(10)
        table = next(iter(source_of(log.shape).tables.values()))
        writer.execute(f"DELETE FROM main.[{table}] WHERE rowid IN (SELECT min(rowid) FROM main.[{table}])")
        cache.verify()
        assert cache.fold("sums") == {**sums_of(10), "b": sums_of(10)["b"] - 1}


def test_a_malformed_row_stops_nobody(tmp_path: Path) -> None:
    writer = BLOB.make(tmp_path / "app.db", 3)
    for state in (b"{", b"\xff", b'{"account": "a"}', b"[]", None):
        writer.execute("INSERT INTO stored_events VALUES ('x', ?, 'bank:Paid', ?)", (str(state), state))
    BLOB.pay(writer, 9, "a", 5)
    with connect(tmp_path / "app.db", shape=BLOB.shape) as cache:
        assert cache.fold("sums") == {**sums_of(3), "a": sums_of(3)["a"] + 5}


def test_what_such_a_log_does_not_have_says_so(tmp_path: Path) -> None:
    COLUMNS.make(tmp_path / "app.db", 3)
    with connect(tmp_path / "app.db", shape=COLUMNS.shape) as cache:
        asked: list[Callable[[], object]] = [
            *(getattr(cache, name) for name in ("metrics", "self_model", "stage", "directives", "recent", "context")),
            cache.frame().metrics,
            lambda: cache.fold("nothing"),
            lambda: cache.verify("metrics"),
        ]
        for ask in asked:
            with pytest.raises(UnknownFoldError, match="on a log of the shape 'columns'; it has: sums"):
                ask()


def test_folds_that_are_asked_for_are_there(tmp_path: Path) -> None:
    COLUMNS.make(tmp_path / "app.db", 3)
    bare = dataclasses.replace(COLUMNS.shape, folds=())
    with connect(tmp_path / "app.db", shape=bare) as cache:
        assert cache.frame().to_dict() == {"as_of": 3}
        cache.add_fold(Sums)
        assert cache.fold("sums") == sums_of(3)
    with connect(tmp_path / "app.db", shape=bare, folds=[Sums]) as cache:
        assert cache.frame().to_dict() == {"as_of": 3, "sums": sums_of(3)}
    # A shape may name PMM's own.
    with connect(tmp_path / "app.db", shape=dataclasses.replace(bare, folds=("metrics",))) as cache:
        assert cache.metrics().ias == 0.0
    missing = dataclasses.replace(bare, folds=("no_such_module_here:Fold", *COLUMNS.shape.folds))
    with connect(tmp_path / "app.db", shape=missing) as cache:
        assert cache.fold("sums") == sums_of(3)
        with pytest.raises(UnknownFoldError, match=r"it has: sums; .*no module"):
            cache.fold("other")


def test_nothing_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    COLUMNS.make(path, 3)
    EventLog(tmp_path / "pmm.db").close()
    record(path, COLUMNS.shape)
    with EventLog(path) as log, connect(path) as cache:
        writes: list[Callable[[], object]] = [
            lambda: log.append("user", "hello"),
            lambda: log.append_many([("user", "hello", {})]),
            lambda: cache.append("user", "hello"),
            lambda: cache.decide(lambda frame: [("user", "hello", {})]),
            lambda: restore(tmp_path / "pmm.db", path),
            lambda: backup(path, tmp_path / "copy.db"),
        ]
        for write in writes:
            with pytest.raises(LedgerUnwritableError, match=r"a log of another program, .*nothing was written"):
                write()
        assert log.read_tail(1)[0]["id"] == 3
        report = log.verify_chain()
        assert (report.rows_without_hash, report.first_bad_id) == (3, None)
    assert not (tmp_path / "copy.db").exists()


def test_the_state_of_a_fold_belongs_to_the_shape() -> None:
    fold = MetricsFold()
    one, other = fold.on_shape(shape().identity), fold.on_shape(shape(version=2).identity)
    assert len({fold.identity(), one.identity(), other.identity()}) == 3
    assert one.identity() == MetricsFold().on_shape(shape().identity).identity()


# The record.


def record(path: Path, one: Shape) -> None:
    instance = Instance.of(path)
    instance.directory.mkdir(mode=0o700, exist_ok=True)
    record_shape(instance, one)


def test_the_recorded_shape_is_used_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    COLUMNS.make(path, 3)
    record(path, COLUMNS.shape)
    with connect(path) as cache:
        assert cache.shape == COLUMNS.shape
        assert cache.fold("sums") == sums_of(3)
    connect(path, shape=dataclasses.replace(COLUMNS.shape, folds=())).close()
    for other in (dataclasses.replace(COLUMNS.shape, version=2), dataclasses.replace(COLUMNS.shape, kind="'paid'")):
        with pytest.raises(ConfigError, match="its daemon reads it by the shape columns 1"):
            connect(path, shape=other)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "no", '{"format": 2, "shape": {}}', '{"format": 1, "shape": 5}', '{"format": 1, "shape": {"folds": 5}}'],
)
def test_a_damaged_record_is_an_error_and_not_a_guess(text: str, tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    foreign_logs.JOIN.make(path, 3)
    record(path, foreign_logs.JOIN.shape)
    Instance.of(path).shape_file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="delete it, and start pmm-cached with --shape"):
        connect(path)


def test_a_record_that_others_may_write_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    COLUMNS.make(path, 3)
    record(path, COLUMNS.shape)
    Instance.of(path).directory.chmod(0o777)
    with pytest.raises(NotALedgerError):
        connect(path)
    with connect(path, shape=COLUMNS.shape) as cache:
        assert cache.fold("sums") == sums_of(3)


def test_the_modules_of_somebody_elses_record_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "app.db"
    COLUMNS.make(path, 3)
    record(path, dataclasses.replace(COLUMNS.shape, folds=("metrics", *COLUMNS.shape.folds)))
    # As if the directory belonged to another user who could change the log.
    owner = os.stat(path).st_uid
    monkeypatch.setattr("pmm_shm.ledger.shape_record.os.geteuid", lambda: owner + 1)
    monkeypatch.setattr("pmm_shm.ledger.shape_record._ROOT", owner + 1)
    found = read_shape(Instance.of(path))
    assert found is not None
    assert found.folds == ("metrics",)


def test_a_table_that_changes_under_a_connection(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = COLUMNS.make(path, 3)
    with connect(path, shape=COLUMNS.shape) as cache:
        assert cache.fold("sums") == sums_of(3)
        writer.execute("ALTER TABLE payments ADD COLUMN note TEXT")
        writer.execute("INSERT INTO payments VALUES (4, '', 'paid', 'b', 4, 'new')")
        assert cache.fold("sums") == sums_of(4)
        writer.execute("ALTER TABLE payments RENAME COLUMN cents TO pence")
        writer.execute("INSERT INTO payments VALUES (5, '', 'paid', 'c', 5, 'new')")
        with pytest.raises(NotALedgerError, match="no such column: cents"):
            cache.fold("sums")
        writer.execute("ALTER TABLE payments RENAME COLUMN pence TO cents")
        assert cache.fold("sums") == sums_of(5)
