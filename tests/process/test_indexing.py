"""The daemon's tables of event vectors: those of the oracle, whatever happens to ledger, embedder and daemon."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm import limits
from pmm_shm.errors import CommandError, LedgerError, SnapshotUnavailableError, StoreError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.store.environment import close, open_reader
from pmm_shm.store.layout import HEADER_KEY, Header
from pmm_shm.vectors.event_table import table_records
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.daemons import with_path
from tests.support.fork_daemon import ForkedDaemon
from tests.support.polling import until
from tests.support.profiles import examples
from tests.support.search_oracle import KINDS, Steered, blob, check_hits, digest, expected, index, stored, tables
from tests.support.searching import EMBEDDINGS, NEVER, check, events, fill, head, put_embedding, text
from tests.support.waiting import at_most

COUNTING: dict[str, Any] = {"model": "counting", "takes_empty": False}


def serve(ledger: str, *options: str) -> ForkedDaemon:
    return ForkedDaemon(Path(ledger), *NEVER, *options)


def indexed(ledger: str, model: str = "local-bow", **options: Any) -> None:
    """Index, and find in a model's table what the oracle says."""
    index(ledger)
    assert stored(ledger)[model] == expected(ledger, model, **options)


def with_embeddings(ledger: str, sql: str = EMBEDDINGS) -> None:
    ledgers.execute(ledger, sql)


def vector(seed: int, dimension: int = 32) -> bytes:
    return blob(*np.random.default_rng(seed).normal(size=dimension).tolist())


# Sources.


def append_indexed(ledger: str, *metas: Any) -> None:
    with EventLog(ledger) as log:
        log.append_many([{"kind": "embedding_indexed", "content": "", "meta": meta} for meta in metas])


def test_events_that_name_a_digest(ledger: str, daemon: ForkedDaemon) -> None:
    with EventLog(ledger) as log:
        log.append_many([{"kind": "note", "content": f"note {number}", "meta": {}} for number in range(1, 13)])
    good = [digest(f"note {number}") for number in range(13)]
    append_indexed(
        ledger,
        {"eid": 1, "digest": good[1]},
        {"eid": 2, "digest": good[3]},
        {"eid": 3, "digest": good[3].upper()},
        {"eid": 4, "digest": good[4][:7]},
        {"eid": True, "digest": good[1]},
        {"eid": "5", "digest": good[5]},
        {"eid": 6.0, "digest": good[6]},
        {"eid": 2**70, "digest": good[7]},
        {"eid": -(2**70), "digest": good[7]},
        {"eid": 0, "digest": good[7]},
        {"eid": None, "digest": good[7]},
        {"eid": [7], "digest": good[7]},
        {"eid": 8},
        {"digest": good[9]},
        {"eid": 9, "digest": 12345678},
        {"eid": 10, "digest": good[1]},
        {"eid": 10, "digest": good[10]},
        {"eid": 10, "digest": good[10]},
        {"eid": 900, "digest": digest("later")},
        {"eid": 32, "digest": digest("")},
        {"eid": 33, "digest": digest("")},
        {"eid": 32, "digest": digest("")},
    )
    indexed(ledger)
    assert sorted(expected(ledger)) == [1, 10, 32]
    with EventLog(ledger) as log:
        assert log.append("note", "later") == 35
    append_indexed(ledger, {"eid": 35, "digest": digest("later")}, {"eid": 11, "digest": good[11]})
    indexed(ledger)
    with connect(ledger) as cache:
        check(cache, ledger, "note 11", 3)
        daemon.kill()
        append_indexed(ledger, {"eid": 12, "digest": good[12]}, {"eid": 1, "digest": good[1]})
        assert check(cache, ledger, "note 12", 3).embedded_here == 1


def test_sources_have_their_order(ledger: str, daemon: ForkedDaemon) -> None:
    with_embeddings(ledger)
    fill(ledger, 21)
    append_indexed(ledger, {"eid": 6, "digest": digest(text(2))}, {"eid": 1, "digest": digest(text(0))})
    put_embedding(ledger, 6, vector(6))
    put_embedding(ledger, 1, vector(1))
    put_embedding(ledger, 7, vector(7))
    put_embedding(ledger, 2, vector(2, 5))
    indexed(ledger)
    indexed(ledger, "imported-5")
    assert list(stored(ledger)["imported-5"]) == [2]
    with connect(ledger) as cache:
        check(cache, ledger)
        found = cache.search([1.0] * 5, model="imported-5")
        check_hits(found, expected(ledger, "imported-5"), [1.0] * 5, 5)
        assert (found.as_of, found.is_complete) == (head(ledger), True)
        cache.append("user", "later")
        assert cache.search([1.0] * 5, model="imported-5").as_of == head(ledger)


def test_kinds_and_embedders_change_between_daemons(ledger: str, steered: Steered) -> None:
    fill(ledger, 400)
    append_indexed(ledger, {"eid": 1, "digest": digest(text(0))}, {"eid": 6, "digest": digest(text(2))})
    with_embeddings(ledger)
    put_embedding(ledger, 8, vector(8))
    for kinds in (KINDS, ("user", "note"), ("note",), (), ("embedding_indexed", "user"), KINDS):
        for steps in (ForkedDaemon.stop, ForkedDaemon.kill):
            with serve(ledger, "--embed-kinds", ",".join(kinds)) as daemon, connect(ledger) as cache:
                indexed(ledger, kinds=kinds)
                # Without kinds, most events have no row.
                is_complete = bool(kinds)
                check(cache, ledger, kinds=kinds, is_complete=is_complete)
                steps(daemon)
                cache.append("user", "red apple pear")
                check(cache, ledger, kinds=kinds, is_complete=is_complete)
    assert {1, 6, 8} <= stored(ledger)["local-bow"].keys()
    options = {**COUNTING, "embed": steered.vector}
    with serve(ledger, "--embedder", steered.option, "--embed-kinds", "user"):
        indexed(ledger, **options, kinds=("user",))
        indexed(ledger, kinds=("user",))
    with serve(ledger, "--embedder", "none"):
        index(ledger)
        assert stored(ledger)["local-bow"] == expected(ledger, kinds=("user",))
        assert stored(ledger)["counting"] == expected(ledger, **options, kinds=("user",))
    with serve(ledger), connect(ledger, embedder=steered.embedder) as cache:
        indexed(ledger)
        cache.append("user", "for a table that nobody fills now")
        check(cache, ledger, "apple", model="local-bow")
        found = cache.search(steered.vector("apple"), 4)
        check_hits(found, expected(ledger, **options, kinds=("user",)), steered.vector("apple"), 4)
        assert (found.as_of, found.is_complete, found.embedded_here) == (head(ledger), True, 1)


@pytest.mark.parametrize("hashed", [False, True])
def test_hostile_rows(tmp_path: Path, hashed: bool) -> None:
    path = ledgers.build_hostile(tmp_path / "ledger.db", hashed=hashed)
    ledgers.execute(
        path, "UPDATE events SET kind = 'embedding_indexed' WHERE id IN (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13)"
    )
    for kind, content in (("k", ""), ("k", "x" * (1 << 20)), ("k", "x" * ((1 << 20) + 1)), ("k", "é\u0130 \x00 z")):
        sql = "INSERT INTO events (ts, kind, content, meta) VALUES ('', ?, ?, '{}')"
        ledgers.execute(path, sql, kind, content)
    for eid in range(1, 23):
        meta = json.dumps({"eid": eid, "digest": digest("" if eid in (14, 16, 19) else "no kind")})
        ledgers.execute(
            path, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'embedding_indexed', '', ?)", meta
        )
    with serve(path, "--embed-kinds", "k,note") as daemon, connect(path) as cache:
        indexed(path, kinds=("k", "note"))
        assert 18 not in stored(path)["local-bow"]
        assert {14, 16, 17, 19, 20} <= stored(path)["local-bow"].keys()
        check(cache, path, "blob", kinds=("k", "note"))
        daemon.kill()
        ledgers.execute(path, "INSERT INTO events (ts, kind, content, meta) SELECT ts, kind, content, meta FROM events")
        check(cache, path, "blob", 50, kinds=("k", "note"))


# The ledger's own table.


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_rows_of_event_embeddings_change(tmp_path: Path, journal: str) -> None:
    path = ledgers.build(tmp_path / "ledger.db", 0, journal=journal)
    fill(path, 60)
    with serve(path), connect(path) as cache:
        indexed(path)
        assert index(path) == {"as_of": 60, "put": 0, "removed": 0, "malformed": 0}
        with_embeddings(path)
        for event_id in range(1, 21):
            put_embedding(path, event_id, vector(event_id))
        assert index(path)["malformed"] == 0
        indexed(path)
        put_embedding(path, 3, vector(103), 2)
        put_embedding(path, 4, vector(104, 7), 2)
        put_embedding(path, 5, vector(105, 7), 2)
        put_embedding(path, 6, b"odd", 2)
        assert index(path)["malformed"] == 1
        indexed(path)
        indexed(path, "imported-7")
        put_embedding(path, 5, vector(105, 8), 3)
        ledgers.execute(path, "DELETE FROM event_embeddings WHERE eid IN (7, 8, 6)")
        assert index(path)["malformed"] == 0
        for model in ("local-bow", "imported-7", "imported-8"):
            indexed(path, model)
        check(cache, path)
        ledgers.execute(path, "DELETE FROM event_embeddings")
        index(path)
        for model in ("local-bow", "imported-7", "imported-8"):
            indexed(path, model)
        put_embedding(path, 9, vector(9))
        index(path)
        ledgers.execute(path, "DROP TABLE event_embeddings")
        indexed(path)
        check(cache, path)


def test_changes_are_noticed_without_an_event(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 30)
    indexed(ledger)
    with_embeddings(ledger)

    def noticed() -> None:
        until(lambda: stored(ledger)["local-bow"] == expected(ledger), "the change to be noticed")

    put_embedding(ledger, 5, vector(5))
    noticed()
    put_embedding(ledger, 5, vector(50), 2)
    noticed()
    ledgers.execute(ledger, "DELETE FROM event_embeddings")
    noticed()
    assert 5 in expected(ledger)


def test_rows_that_await_their_event(ledger: str, daemon: ForkedDaemon) -> None:
    with_embeddings(ledger)
    fill(ledger, 10)
    for event_id in (-7, 0, 12, 15, 4_000):
        put_embedding(ledger, event_id, vector(abs(event_id)))
    index(ledger)
    indexed(ledger)
    with EventLog(ledger) as log, connect(ledger) as cache:
        log.append("user", "eleven")
        log.append("user", "twelve")
        until(lambda: stored(ledger)["local-bow"] == expected(ledger), "the vector to be imported")
        log.append_many(events(3, 500))
        index(ledger)
        check(cache, ledger)
        # Many at once: published in several steps, of which the last one counts.
        fill(ledger, 4_100, 600)
        until(lambda: stored(ledger)["local-bow"] == expected(ledger), "the vector to be imported")
        # What waits for no event is not compared again and again.
        before = stored_version(ledger)
        time.sleep(0.3)
        assert stored_version(ledger) == before


def stored_version(ledger: str) -> int:
    environment = open_reader(Instance.of(ledger).directory)
    assert environment is not None
    try:
        with environment.read() as records:
            return table_records(records)[0].version
    finally:
        close(environment)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        b"",
        b"123",
        b"12345",
        7,
        1.5,
        blob(*[math.nan] * 32),
        blob(*[0.0] * 31, math.inf),
        b"\0" * (4 * (limits.DIMENSION_MAX + 1)),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_values_that_are_no_vectors(ledger: str, daemon: ForkedDaemon, value: Any) -> None:
    fill(ledger, 9)
    with_embeddings(ledger)
    put_embedding(ledger, 1, vector(1))
    put_embedding(ledger, 2, value)
    put_embedding(ledger, 3, vector(3, limits.DIMENSION_MAX))
    assert index(ledger)["malformed"] == 1
    indexed(ledger)
    indexed(ledger, f"imported-{limits.DIMENSION_MAX}")


@pytest.mark.parametrize(
    ("sql", "imports"),
    [
        ("CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, embedding BLOB)", True),
        ("CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, embedding BLOB, created_at TEXT)", True),
        ("CREATE TABLE event_embeddings (eid INTEGER, embedding BLOB, created_at)", True),
        ("CREATE TABLE event_embeddings (eid, embedding BLOB)", True),
        ("CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, vector BLOB)", False),
        ("CREATE TABLE event_embeddings (id INTEGER PRIMARY KEY, embedding BLOB)", False),
        (
            "CREATE VIEW event_embeddings AS SELECT id AS eid, zeroblob(128) AS embedding FROM events WHERE id < 4",
            False,
        ),
    ],
)
def test_other_tables_of_this_name(ledger: str, daemon: ForkedDaemon, sql: str, imports: bool) -> None:
    fill(ledger, 9)
    ledgers.execute(ledger, sql)
    if imports:
        for event_id in (1, 2):
            ledgers.execute(
                ledger, "INSERT INTO event_embeddings (eid, embedding) VALUES (?, ?)", event_id, vector(event_id)
            )
    if imports and "PRIMARY" not in sql:
        for other in (2, "x", b"\xff", None, 2.5):
            ledgers.execute(ledger, "INSERT INTO event_embeddings (eid, embedding) VALUES (?, ?)", other, vector(2))
        ledgers.execute(ledger, "INSERT INTO event_embeddings (eid, embedding) VALUES (CAST(x'ff' AS TEXT), x'00')")
    indexed(ledger)


def test_many_rows(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 5_000)
    with_embeddings(ledger)
    rows = np.random.default_rng(1).normal(size=(5_000, 32)).astype("<f4")

    def put(first: int, created_at: int) -> None:
        with contextlib.closing(sqlite3.connect(ledger)) as connection, connection:
            connection.executemany(
                "INSERT OR REPLACE INTO event_embeddings (eid, embedding, created_at) VALUES (?, ?, ?)",
                [(number + 1, rows[number].tobytes(), created_at) for number in range(first, 5_000)],
            )

    put(0, 1)
    # It may have been noticed before it was asked for.
    index(ledger)
    indexed(ledger)
    rows[4_900:] *= -2
    put(4_900, 2)
    index(ledger)
    indexed(ledger)
    with connect(ledger) as cache:
        check(cache, ledger, rows[77].tolist(), 40)
        ledgers.execute(ledger, "DELETE FROM event_embeddings WHERE eid % 3 = 0")
        index(ledger)
        indexed(ledger)
        check(cache, ledger)


@settings(max_examples=examples(24))
@given(data=st.data())
def test_any_history_gives_the_tables_of_the_oracle(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = str(tmp_path_factory.mktemp("history") / "ledger.db")
    EventLog(path).close()
    with_embeddings(path)
    some_id = st.integers(1, 30)
    with contextlib.ExitStack() as stack:
        stack.enter_context(serve(path))
        cache = stack.enter_context(connect(path))
        for created, step in enumerate(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=10))):
            if step <= 1:
                fill(path, data.draw(st.integers(1, 8)), data.draw(st.integers(0, 99)))
            elif step == 2:
                named = data.draw(some_id)
                found = ledgers.execute(path, "SELECT content FROM events WHERE id = ?", named)
                append_indexed(path, {"eid": named, "digest": digest(found[0][0] if found else "")})
            elif step == 3:
                dimension = data.draw(st.sampled_from([32, 32, 3]))
                put_embedding(path, data.draw(some_id), vector(created, dimension), created)
            elif step == 4:
                ledgers.execute(path, "DELETE FROM event_embeddings WHERE eid = ?", data.draw(some_id))
            else:
                index(path)
        index(path)
        vectors = expected(path)
        assert stored(path)["local-bow"] == vectors
        assert stored(path).get("imported-3", {}) == expected(path, "imported-3")
        check_hits(cache.search("red apple", 9), vectors, "red apple", 9)


# What the daemon may do to the ledger: nothing.


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_ledger_is_only_read(tmp_path: Path, journal: str) -> None:
    path = ledgers.build(tmp_path / "ledger.db", 0, journal=journal)
    fill(path, 500)
    with_embeddings(path)
    for event_id in range(1, 50):
        put_embedding(path, event_id, vector(event_id))
    watching = ledgers.connect(path)
    try:
        version = watching.execute("PRAGMA data_version").fetchall()
        before = ledgers.read_bytes(path)
        with serve(path):
            indexed(path)
            index(path)
        assert watching.execute("PRAGMA data_version").fetchall() == version
        assert ledgers.read_bytes(path) == before
    finally:
        watching.close()


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_no_writer_waits(tmp_path: Path, journal: str) -> None:
    path = ledgers.build(tmp_path / "ledger.db", 0, journal=journal)
    fill(path, 3_000)
    with_embeddings(path)
    waits = []
    with serve(path):
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        for number in range(150):
            began = time.monotonic()
            connection.execute(
                "INSERT INTO event_embeddings (eid, embedding, created_at) VALUES (?, ?, ?)",
                (number + 1, vector(number), number),
            )
            waits.append(time.monotonic() - began)
        connection.close()
        indexed(path)
    assert max(waits) < 1.0
    assert sorted(waits)[75] < 0.05


# Another log.


def replace(ledger: str, count: int, start: int) -> None:
    """Another ledger at the same path, by rename, as a restore does it."""
    other = f"{ledger}.new"
    EventLog(other).close()
    fill(other, count, start)
    ledgers.execute(other, EMBEDDINGS)
    put_embedding(other, 3, vector(33))
    put_embedding(other, 4, vector(34, 3))
    ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)")
    os.replace(other, ledger)


def searched_until_complete(cache: Any, ledger: str, query: str = "red apple") -> None:
    """Searches beside a log that has just changed: none, or those of the log as it is; in the end complete."""

    def is_complete() -> bool:
        try:
            hits = cache.search(query, 9)
        except (SnapshotUnavailableError, LedgerError):
            return False
        if hits.as_of or hits.is_complete:
            # Without a table of this log, some of its newest events are embedded here.
            check_hits(hits, expected(ledger, until=hits.as_of), query, 9)
        return bool(hits.is_complete) and hits.embedded_here == 0

    until(is_complete, "the tables of the other log")


@pytest.mark.parametrize("count", [150, 300, 450])
def test_a_ledger_replaced_by_rename(ledger: str, daemon: ForkedDaemon, count: int) -> None:
    fill(ledger, 300)
    with_embeddings(ledger)
    put_embedding(ledger, 4, vector(4, 3))
    put_embedding(ledger, 5, vector(5, 3))
    index(ledger)
    with connect(ledger) as cache:
        check(cache, ledger)
        cache.search([1.0] * 3, model="imported-3")
        replace(ledger, count, 7_000)
        time.sleep(limits.TRUST_PERIOD_S + 0.05)
        searched_until_complete(cache, ledger)
        indexed(ledger)
        indexed(ledger, "imported-3")
        check(cache, ledger)
        found = cache.search([1.0] * 3, model="imported-3")
        check_hits(found, expected(ledger, "imported-3"), [1.0] * 3, 5)
        assert found.as_of == head(ledger)


def test_a_ledger_replaced_while_no_daemon_runs(ledger: str) -> None:
    fill(ledger, 300)
    with serve(ledger):
        index(ledger)
    with connect(ledger) as cache:
        check(cache, ledger)
        replace(ledger, 300, 9_000)
        time.sleep(limits.TRUST_PERIOD_S + 0.05)
        # The published table is of another log: this process embeds the events of this one, without its imports.
        hits = cache.search("red", 9)
        assert hits.embedded_here > 0
        check_hits(hits, expected(ledger), "red", 9)
        with serve(ledger):
            searched_until_complete(cache, ledger)
            indexed(ledger)


def test_a_ledger_truncated(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 300)
    index(ledger)
    with connect(ledger) as cache:
        check(cache, ledger)
        for left in (200, 100, 0):
            ledgers.execute(ledger, "DELETE FROM events WHERE id > ?", left)
            searched_until_complete(cache, ledger)
            indexed(ledger)
            fill(ledger, 20, 3_000 + left)
            check(cache, ledger)
            index(ledger)


def test_a_past_row_edited(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 300)
    index(ledger)
    with connect(ledger) as cache:
        check(cache, ledger)
        ledgers.execute(ledger, "UPDATE events SET content = 'swim north swim' WHERE id BETWEEN 50 AND 60")
        ledgers.execute(ledger, "UPDATE events SET kind = 'user' WHERE id BETWEEN 70 AND 80")
        assert not cache.verify().ok
        indexed(ledger)
        check(cache, ledger, "swim north swim", 20)


def test_an_emptied_table_keeps_its_kinds(ledger: str, steered: Steered) -> None:
    """A table that is made anew must not look like one that has no events to embed."""
    fill(ledger, 50)
    options = {**COUNTING, "embed": steered.vector}
    # Without text vectors to take instead.
    with serve(ledger, "--embedder", steered.option, "--text-vectors-max", "1"), connect(ledger) as cache:
        index(ledger)
        steered.fail(True)
        query = steered.vector("red")
        ledgers.execute(ledger, "DELETE FROM events WHERE id > 40")
        until(lambda: tables(ledger)["problem"] is not None, "the embedder to fail")
        until(lambda: tables(ledger)["tables"]["counting"]["as_of"] == 0, "the table to be emptied")
        hits = cache.search(query, 5, model="counting")
        assert (hits.is_complete, hits.as_of, len(hits)) == (False, 0, 0)
        steered.fail(False)
        # One more try a second later; and no wait for vectors that were evicted before anybody saw them.
        until(lambda: stored(ledger)["counting"] == expected(ledger, **options), "the table")


# Embedders.


def test_nothing_is_embedded_again(ledger: str, steered: Steered) -> None:
    fill(ledger, 200)
    options = {**COUNTING, "embed": steered.vector}
    for end in (ForkedDaemon.kill, ForkedDaemon.stop, ForkedDaemon.kill):
        with serve(ledger, "--embedder", steered.option) as daemon:
            indexed(ledger, **options)
            end(daemon)
        first = len(steered.calls())
        with serve(ledger, "--embedder", steered.option):
            indexed(ledger, **options)
        assert len(steered.calls()) == first


def test_several_models_side_by_side(ledger: str, steered: Steered) -> None:
    other = Steered(steered.folder, "another", 5)
    fill(ledger, 50)
    for one in (steered, other, steered):
        with serve(ledger, "--embedder", one.option):
            indexed(ledger, model=one.name, embed=one.vector, takes_empty=False)
        fill(ledger, 1, 900)
    assert {"local-bow", "counting", "another"} <= stored(ledger).keys()


def test_an_embedder_that_fails_for_a_while(ledger: str, steered: Steered) -> None:
    fill(ledger, 6)
    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(40)])
    append_indexed(ledger, {"eid": 1, "digest": digest(text(0))})
    steered.fail(True)
    options = {**COUNTING, "embed": steered.vector}
    with serve(ledger, "--embedder", steered.option), connect(ledger) as cache:
        with pytest.raises(CommandError, match="the provider is down"):
            index(ledger)
        assert "the provider is down" in cache.stats()["daemon"]["embeddings"]["problem"]
        # The others go on, and so does the tail.
        append_indexed(ledger, {"eid": 6, "digest": digest(text(2))})
        cache.wait_for(head(ledger))
        until(lambda: stored(ledger)["local-bow"] == expected(ledger), "the default table")
        steered.fail(False)
        until(lambda: stored(ledger)["counting"] == expected(ledger, **options), "the backlog")
        until(lambda: tables(ledger)["problem"] is None, "the problem to be gone")
        assert max(map(steered.calls().count, steered.calls())) <= 2
        indexed(ledger, **options)


def test_what_was_embedded_before_a_failure_is_kept(ledger: str, steered: Steered) -> None:
    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(40)])
        log.append("user", "poison")
        log.append("user", "the last one")
    steered.refuse_poison(True)
    with serve(ledger, "--embedder", steered.option):
        for _ in range(2):
            with pytest.raises(CommandError, match="the provider is down"):
                index(ledger)
        assert set(range(1, 37)) <= stored(ledger)["counting"].keys()
        steered.refuse_poison(False)
        indexed(ledger, **COUNTING, embed=steered.vector)
    assert max(steered.calls().count(f"text {number}") for number in range(36)) == 1


def test_a_text_without_a_vector_keeps_nobody_waiting(ledger: str, steered: Steered) -> None:
    def embed(content: str) -> Any:
        return steered.vector(content)

    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(10)])
        log.append("user", "unspeakable")
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(10, 20)])
    with serve(ledger, "--embedder", steered.option) as daemon, connect(ledger, embedder=steered.embedder) as cache:
        index(ledger)
        speakable = {number: one for number, one in expected(ledger, **COUNTING, embed=embed).items() if number != 11}
        assert stored(ledger)["counting"] == speakable
        assert tables(ledger)["problem"] is None
        daemon.kill()
        for content in ("more", "unspeakable, too", "most"):
            cache.append("user", content)
        hits = cache.search("more", 3)
        assert (hits[0].event_id, hits.embedded_here, hits.is_complete, hits.as_of) == (22, 2, True, 24)


def test_what_a_worker_has_embedded_is_not_computed_again(ledger: str, steered: Steered) -> None:
    with serve(ledger, "--embedder", steered.option), connect(ledger, embedder=steered.embedder) as cache:
        cache.embed_many(["said before", "said, too"])
        assert sorted(steered.calls()) == ["said before", "said, too"]
        for content in ("said before", "said, too", "said before", "new"):
            cache.append("user", content)
        indexed(ledger, **COUNTING, embed=steered.vector)
        assert sorted(steered.calls()) == ["new", "said before", "said, too"]


def test_new_events_go_before_a_backlog(ledger: str, steered: Steered) -> None:
    fill(ledger, 2 * limits.INDEX_EVENTS_PER_COMMIT)
    steered.pause(0.02)
    query = steered.vector("zeppelin")
    with serve(ledger, "--embedder", steered.option), connect(ledger) as cache:
        until(lambda: steered.begun() > 0, "the backlog")
        event_id = cache.append("user", "zeppelin")
        until(lambda: event_id in stored(ledger)["counting"], "the new event")
        hits = cache.search(query, 1, model="counting")
        assert [hit.event_id for hit in hits] == [event_id]
        assert (hits.is_complete, hits.as_of < event_id) == (False, True)
        assert len(stored(ledger)["counting"]) < limits.INDEX_EVENTS_PER_COMMIT
        # The rest comes, whoever is killed in between.
        steered.pause(None)
    with serve(ledger, "--embedder", steered.option), connect(ledger) as cache:
        index(ledger)
        assert stored(ledger)["counting"] == expected(ledger, **COUNTING, embed=steered.vector)
        hits = cache.search(query, 1, model="counting")
        assert (hits.is_complete, hits.as_of) == (True, event_id)


def test_the_text_of_a_new_event_is_paid_for_once(ledger: str, steered: Steered) -> None:
    steered.pause(0.02)
    with serve(ledger, "--embedder", steered.option), connect(ledger, embedder=steered.embedder) as cache:
        index(ledger)
        for number in range(20):
            cache.append("user", f"text {number}")
            cache.embed(f"text {number}")
        index(ledger)
        assert sorted(steered.calls()) == sorted(f"text {number}" for number in range(20))


def test_the_default_table_is_complete_beside_another_embedder(ledger: str, steered: Steered) -> None:
    fill(ledger, 60)
    with serve(ledger):
        indexed(ledger)
    fill(ledger, 40, 60)
    with serve(ledger, "--embedder", steered.option) as daemon, connect(ledger, embedder="local-bow") as cache:
        indexed(ledger)
        indexed(ledger, **COUNTING, embed=steered.vector)
        assert check(cache, ledger).embedded_here == 0
        context = cache.context("red apple", recall=3)
        assert (len(context.recalled), context.recall_problem) == (3, None)
        daemon.kill()
        cache.append("user", "red apple pear")
        assert check(cache, ledger).embedded_here == 1


def test_a_daemon_without_an_embedder_keeps_the_rows_and_claims_nothing(ledger: str) -> None:
    fill(ledger, 60)
    with_embeddings(ledger)
    put_embedding(ledger, 7, vector(7))
    with serve(ledger):
        indexed(ledger)
    before = stored(ledger)["local-bow"]
    with serve(ledger, "--embedder", "none"), connect(ledger) as cache:
        index(ledger)
        assert stored(ledger)["local-bow"] == before
        cache.append("user", "red apple pear")
        assert check(cache, ledger).embedded_here == 1
        fill(ledger, 3 * limits.SEARCH_EVENTS_MAX, 61)
        index(ledger)
        hits = cache.search("red apple", 5)
        assert not hits.is_complete
        assert 61 <= hits.as_of < head(ledger)
        assert "were not searched" in str(cache.context("red apple", recall=3).recall_problem)
        # Of an import that is gone, nobody puts the event's own vector back.
        ledgers.execute(ledger, "DELETE FROM event_embeddings")
        index(ledger)
        assert 7 not in stored(ledger)["local-bow"]
        assert cache.search("red apple", 5).as_of < head(ledger)
    with serve(ledger), connect(ledger) as cache:
        indexed(ledger)
        check(cache, ledger)


def test_a_table_that_nobody_fills_is_not_complete(ledger: str) -> None:
    fill(ledger, 20)
    with serve(ledger, "--embedder", "none"), connect(ledger) as cache:
        index(ledger)
        # Nothing names a vector: there is no table, and a search embeds the events itself.
        hits = cache.search("red apple", 5)
        assert (len(hits), hits.is_complete, hits.as_of) == (5, True, 20)
        for _ in range(2):
            append_indexed(ledger, {"eid": 2, "digest": "another text's"})
            index(ledger)
            hits = cache.search("red apple", 5)
            assert (len(hits), hits.is_complete, hits.as_of) == (0, False, 0)
            assert "were not searched" in str(cache.context("red apple", recall=3).recall_problem)


def test_a_search_takes_the_embedder_of_the_daemon(ledger: str, steered: Steered) -> None:
    fill(ledger, 20)
    with serve(ledger, "--embedder", steered.option), connect(ledger) as cache:
        index(ledger)
        assert cache.search("red", 1).model == "counting"
    with serve(ledger, "--embedder", "none"), connect(ledger) as cache:
        index(ledger)
        assert cache.search("red", 1).model == "local-bow"


def test_too_many_dimensions_do_not_stop_the_tables(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 300)
    with_embeddings(ledger)
    for dimension in range(1, 301):
        ledgers.execute(
            ledger,
            "INSERT INTO event_embeddings (eid, embedding, created_at) VALUES (?, ?, 1)",
            dimension,
            vector(dimension, dimension),
        )
    assert index(ledger)["malformed"] > 0
    with connect(ledger) as cache:
        event_id = cache.append("user", "still here")
        index(ledger)
        assert cache.search("still here", 1)[0].event_id == event_id


def test_a_backlog_delays_nobody(ledger: str, steered: Steered) -> None:
    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(300)])
    steered.pause(0.05)
    with serve(ledger, "--embedder", steered.option) as daemon, connect(ledger) as cache:
        until(lambda: len(steered.calls()) > 4, "the backlog to begin")
        # From now on a call takes four seconds: no more than two end while nobody waits for any.
        steered.pause(1.0)
        before = len(steered.calls())
        for number in range(30):
            cache.wait_for(cache.append("user", f"while it works {number}"))
            assert len(steered.calls()) <= before + 8, number
        steered.pause(0.05)
        # The other table does not wait either, nor do imports.
        append_indexed(ledger, {"eid": 1, "digest": digest("text 0")})
        with_embeddings(ledger)
        put_embedding(ledger, 7, vector(7))
        until(lambda: stored(ledger)["local-bow"] == expected(ledger), "the default table")
        # And what is done is stored along the way.
        until(lambda: len(stored(ledger)["counting"]) > 8, "the first vectors")
        assert tables(ledger)["tables"]["counting"]["as_of"] < 300
        with at_most(2.0):
            daemon.stop()
    kept, calls = len(stored(ledger)["counting"]), len(steered.calls())
    assert calls - kept <= 8
    steered.pause(None)
    with serve(ledger, "--embedder", steered.option):
        indexed(ledger, **COUNTING, embed=steered.vector)
    assert len(steered.calls()) - len(expected(ledger, **COUNTING, embed=steered.vector)) <= 8


def commits(ledger: str) -> tuple[int, int]:
    """How many the store has had, and how many of these moved the folds."""
    environment = open_reader(Instance.of(ledger).directory)
    assert environment is not None
    try:
        with environment.read() as records:
            return environment.env.info()["last_txnid"], Header.unpack(records.get(HEADER_KEY) or b"").sequence
    finally:
        close(environment)


def test_commits_that_follow_closely_are_taken_in_together(ledger: str, daemon: ForkedDaemon) -> None:
    index(ledger)
    before, began = commits(ledger), time.monotonic()
    with EventLog(ledger) as log:
        for number in range(150):
            log.append("note", str(number))
            time.sleep(limits.INDEX_GATHER_S / 10)
    rounds_max = (time.monotonic() - began) / limits.INDEX_GATHER_S
    after = commits(ledger)
    of_the_tables = (after[0] - before[0]) - (after[1] - before[1])
    # A few for those that were under way, and between the two looks at the store.
    assert of_the_tables <= rounds_max + 5
    indexed(ledger)


def test_a_stop_within_a_slow_call(ledger: str, steered: Steered) -> None:
    fill(ledger, 200)
    steered.pause(0.12)
    with serve(ledger, "--embedder", steered.option) as daemon:
        until(lambda: steered.begun() > 0, "the embedder to be asked")
        with at_most(2.0):
            assert daemon.stop() == 0
    with pytest.raises(StoreError), connect(ledger) as cache:
        cache.search([1.0] * 3, model="imported-3")


def test_a_request_within_a_backlog_and_a_reset(ledger: str, steered: Steered) -> None:
    """A log that changes is noticed in the middle of a backlog; who waits for `index` gets the new log's answer."""
    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(300)])
    steered.pause(0.05)
    with serve(ledger, "--embedder", steered.option), connect(ledger) as cache:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(index(ledger)))
        asking.start()
        until(lambda: len(steered.calls()) > 4, "the backlog to begin")
        ledgers.execute(ledger, "UPDATE events SET content = 'edited' WHERE id < 4")
        ledgers.execute(ledger, "DELETE FROM events WHERE id BETWEEN 5 AND 280")
        assert not cache.verify().ok
        asking.join(20)
        assert [answer["as_of"] for answer in answers] == [300]
        assert stored(ledger)["counting"] == expected(ledger, **COUNTING, embed=steered.vector)


def test_a_model_with_vectors_of_another_dimension(ledger: str, steered: Steered) -> None:
    fill(ledger, 20)
    append_indexed(ledger, {"eid": 1, "digest": digest(text(0))})
    with serve(ledger, "--embedder", steered.option):
        index(ledger)
    other = Steered(steered.folder, dimension=9)
    with serve(ledger, "--embedder", other.option):
        with pytest.raises(CommandError, match="dimension 8 here, not 9"):
            index(ledger)
        assert "dimension" in tables(ledger)["problem"]
        append_indexed(ledger, {"eid": 6, "digest": digest(text(2))})
        until(lambda: stored(ledger)["local-bow"] == expected(ledger), "the default table")


def test_an_embedder_of_a_whole_program(ledger: str, start_daemon: StartDaemon, steered: Steered) -> None:
    fill(ledger, 30)
    daemon = start_daemon(ledger, "--embedder", steered.option, env=with_path(steered.folder))
    indexed(ledger, **COUNTING, embed=steered.vector)
    assert daemon.stop() == 0
    shutil.rmtree(Instance.of(ledger).directory)


def test_how_far_a_comparison_has_come_is_shown(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 4)
    index(ledger)
    with_embeddings(ledger)
    sql = (
        "WITH RECURSIVE n(x) AS (SELECT 100 UNION ALL SELECT x + 1 FROM n WHERE x < 60000) "
        "INSERT INTO event_embeddings (eid, embedding, created_at) SELECT x, zeroblob(128), 1 FROM n"
    )
    ledgers.execute(ledger, sql)
    seen = []
    asking = threading.Thread(target=index, args=(ledger,))
    asking.start()
    while asking.is_alive():
        seen.append(tables(ledger)["importing"])
    asking.join()
    shown = [one for one in seen if one is not None]
    assert shown == sorted(shown)
    assert all(done <= total == 59_901 for done, total in shown)
    assert shown
    assert tables(ledger)["importing"] is None
