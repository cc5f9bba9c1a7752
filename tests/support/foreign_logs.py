"""Small logs of other programs: four tables, their shapes, and a fold that reads all of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State
from pmm_shm.frozen import frozen
from pmm_shm.ledger.rows import Event
from pmm_shm.ledger.shape import Shape

FOLDS = ("tests.support.foreign_logs:Sums",)


class Sums(Fold):
    """The sum of `meta.cents` by `meta.account` of the events of the kind `paid`."""

    name = "sums"
    version = 1
    kinds: ClassVar = {"paid": ("meta",)}

    def apply(self, event: Event, state: State) -> None:
        sums = state.table("sums")
        account = str(event.meta["account"])
        sums[account] = sums.get(account, 0) + event.meta["cents"]

    def view(self, state: State) -> Any:
        return frozen(dict(state.table("sums").items()))


class Sorted(Sums):
    """Accounts are kept as they are; the view fails where a number is among them."""

    name = "sorted"

    def apply(self, event: Event, state: State) -> None:
        state.table("sums")[event.meta["account"]] = event.meta["cents"]

    def view(self, state: State) -> Any:
        return frozen(dict(sorted(state.table("sums").items())))


class ForeignLog(NamedTuple):
    """A kind of foreign log.

    Attributes:
        tables: the statements that make its tables.
        pay: writes one event: handle, number from 1 on, account, cents.
        shape: reads it.
    """

    tables: tuple[str, ...]
    pay: Callable[[sqlite3.Connection, int, str, int], object]
    shape: Shape

    def make(self, path: Path, count: int = 0) -> sqlite3.Connection:
        """A new database with `count` events, of the accounts a, b and c in turn; the writer's connection."""
        handle = sqlite3.connect(path, isolation_level=None)
        handle.execute("PRAGMA journal_mode = WAL").fetchall()
        for statement in self.tables:
            handle.execute(statement)
        handle.execute("BEGIN")
        for number in range(1, count + 1):
            self.pay(handle, number, "abc"[number % 3], number)
        handle.execute("COMMIT")
        return handle


def sums_of(count: int) -> dict[str, int]:
    """The sums of a log that `make` has made."""
    found: dict[str, int] = {}
    for number in range(1, count + 1):
        found["abc"[number % 3]] = found.get("abc"[number % 3], 0) + number
    return dict(sorted(found.items()))


COLUMNS = ForeignLog(
    ("CREATE TABLE payments (number INTEGER PRIMARY KEY, made TEXT, what TEXT, account TEXT, cents INTEGER)",),
    lambda handle, number, account, cents: handle.execute(
        "INSERT INTO payments VALUES (?, ?, 'paid', ?, ?)", (number, "2026-01-31 09:00:00", account, cents)
    ),
    Shape(
        name="columns",
        version=1,
        from_="payments",
        position="number",
        kind="what",
        ts="made",
        meta={"columns": {"account": "account", "cents": "cents"}},
        folds=FOLDS,
    ),
)
"""One table with an integer key; meta is built from columns."""

BLOB = ForeignLog(
    (
        "CREATE TABLE stored_events (originator TEXT, version INTEGER, topic TEXT, state BLOB, "
        "PRIMARY KEY (originator, version)) ",
    ),
    lambda handle, number, account, cents: handle.execute(
        "INSERT INTO stored_events VALUES (?, ?, 'bank:Paid', ?)",
        (account, number, json.dumps({"account": account, "cents": cents}).encode()),
    ),
    Shape(
        name="blob",
        version=1,
        from_="stored_events",
        kind="topic",
        meta={"json": "state"},
        kinds={"bank:Paid": "paid"},
        columns={"originator": "originator"},
        folds=FOLDS,
    ),
)
"""A rowid without a name; JSON in a BLOB; kinds by another name; a further column."""

JOIN = ForeignLog(
    (
        "CREATE TABLE data (data_id INTEGER PRIMARY KEY, shared TEXT)",
        # The view must not hide it from itself.
        "CREATE TABLE events (event_id INTEGER PRIMARY KEY AUTOINCREMENT, data_id INTEGER, fired REAL)",
    ),
    lambda handle, number, account, cents: (
        handle.execute(
            "INSERT INTO data VALUES (?, ?)",
            (number, json.dumps({"type": "paid", "account": account, "cents": cents})),
        ),
        handle.execute("INSERT INTO events (data_id, fired) VALUES (?, ?)", (number, 1_700_000_000.25 + number)),
    ),
    Shape(
        name="join",
        version=1,
        from_="events AS e LEFT JOIN data AS d ON d.data_id = e.data_id",
        position="e.event_id",
        kind={"json": "d.shared", "path": "$.type"},
        ts={"epoch": "e.fired"},
        content={"json": "d.shared", "path": "$.account"},
        meta={"json": "d.shared"},
        folds=FOLDS,
    ),
)
"""Two tables, one of them called `events`; epoch time; the kind is within the JSON."""

BIGINT = ForeignLog(
    ("CREATE TABLE log (id BIGINT NOT NULL PRIMARY KEY, body TEXT, at_ms INTEGER)",),
    lambda handle, number, account, cents: handle.execute(
        "INSERT INTO log VALUES (?, ?, ?)",
        (number * 10, json.dumps({"account": account, "cents": cents}), 1_700_000_000_000 + number),
    ),
    Shape(
        name="bigint",
        version=1,
        from_="log",
        position="id",
        kind="'paid'",
        ts={"epoch_ms": "at_ms"},
        meta={"json": "body"},
        folds=FOLDS,
    ),
)
"""A unique integer key that is no rowid, with gaps; all events of one kind."""

ALL = {log.shape.name: log for log in (COLUMNS, BLOB, JOIN, BIGINT)}


def toml_of(shape: Shape) -> str:
    """The TOML file of a shape."""
    # JSON is TOML but for the separator.
    definition = {key: value for key, value in shape.definition().items() if value not in ({}, [])}
    return "".join(f"{key} = {_toml(value)}\n" for key, value in definition.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)
