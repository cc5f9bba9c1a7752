"""Random appends, edits, purges and changes of the file under logs of other programs, with a daemon that is killed and
two readers: every read is compared with a plain reading of the tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import sqlite3
from pathlib import Path

import pytest

from pmm_shm_client import connect
from tests.support.foreign_logs import ALL, ForeignLog, toml_of
from tests.support.fork_daemon import ForkedDaemon
from tests.support.polling import until

STEPS = 24
PAYMENTS = {
    "columns": "SELECT json_object('account', account, 'cents', cents) FROM payments",
    "blob": "SELECT state FROM stored_events",
    "join": "SELECT d.shared FROM main.events AS e LEFT JOIN data AS d ON d.data_id = e.data_id",
    "bigint": "SELECT body FROM log",
}
TABLES = {"columns": "payments", "blob": "stored_events", "join": "events", "bigint": "log"}
EDITS = {
    "columns": "UPDATE payments SET cents = 7 WHERE rowid = ?",
    "blob": "UPDATE stored_events SET state = json_set(CAST(state AS TEXT), '$.cents', 7) WHERE rowid = ?",
    "join": "UPDATE data SET shared = json_set(shared, '$.cents', 7) WHERE data_id = ?",
    "bigint": "UPDATE log SET body = json_set(body, '$.cents', 7) WHERE rowid = ?",
}
APPENDS = ("append", "append", "append", "many")
OTHERS = ("edit", "newest", "oldest", "middle", "vacuum", "column", "index", "analyze", "journal", "kill", "version")
PAST = frozenset(("edit", "oldest", "middle", "vacuum"))
"""After these, an answer is exact behind the next verification."""


def read(writer: sqlite3.Connection, name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for (text,) in writer.execute(PAYMENTS[name]):
        payment = json.loads(text)
        found[payment["account"]] = found.get(payment["account"], 0) + payment["cents"]
    return found


def change(writer: sqlite3.Connection, name: str, what: str, step: int, chance: random.Random) -> None:
    table = f"main.[{TABLES[name]}]"
    ids = [row[0] for row in writer.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
    if what == "edit":
        writer.execute(EDITS[name], (chance.choice(ids),))
    elif what == "newest":
        writer.execute(f"DELETE FROM {table} WHERE rowid = ?", (ids[-1],))
    elif what == "oldest":
        writer.execute(f"DELETE FROM {table} WHERE rowid <= ?", (ids[len(ids) // 3],))
    elif what == "middle":
        writer.execute(f"DELETE FROM {table} WHERE rowid = ?", (chance.choice(ids[:-1]),))
    elif what == "column":
        writer.execute(f"ALTER TABLE {table} ADD COLUMN further{step} INTEGER DEFAULT 5")
        writer.execute(f"ALTER TABLE {table} DROP COLUMN further{step}")
    elif what == "index":
        writer.execute(f"CREATE INDEX by{step} ON [{TABLES[name]}] (1 + 1)")
    elif what in ("vacuum", "analyze"):
        writer.execute(what)
    elif what == "journal":
        # Refused while others have it open.
        with contextlib.suppress(sqlite3.OperationalError):
            writer.execute(f"PRAGMA journal_mode = {chance.choice(('WAL', 'DELETE'))}").fetchall()


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("log", ALL.values(), ids=ALL)
def test_reads_equal_the_tables_whatever_is_done_to_them(log: ForeignLog, seed: int, tmp_path: Path) -> None:
    path, name, chance = tmp_path / "app.db", log.shape.name, random.Random(seed)
    shape, number, done = log.shape, 3, []
    writer = log.make(path, number)
    toml = tmp_path / "shape.toml"
    toml.write_text(toml_of(shape), encoding="utf-8")
    with contextlib.ExitStack() as daemons:
        daemon = daemons.enter_context(ForkedDaemon(path, "--shape", str(toml)))
        for step in range(STEPS):
            what = chance.choice(APPENDS if step % 2 else OTHERS)
            done.append(what)
            if what in APPENDS:
                for _ in range(1 if what == "append" else chance.choice((5, 60, 1_100))):
                    number += 1
                    log.pay(writer, number, chance.choice("abc"), number)
            elif what in ("kill", "version"):
                daemon.kill()
                if what == "version":
                    shape = dataclasses.replace(shape, version=shape.version + 1)
                    toml.write_text(toml_of(shape), encoding="utf-8")
                daemon = daemons.enter_context(ForkedDaemon(path, "--shape", str(toml)))
            elif len(read(writer, name)) > 1:
                change(writer, name, what, step, chance)
            with connect(path) as one, connect(path, shape=shape) as other:
                if what in PAST:
                    until(lambda: one.verify().ok and other.verify().ok, f"a verification behind {done}")
                for _ in range(2):
                    expected = read(writer, name)
                    assert dict(one.fold("sums")) == dict(other.fold("sums")) == expected, done
