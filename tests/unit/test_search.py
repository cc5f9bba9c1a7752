"""`search` where no daemon has ever made a table: this process embeds the newest events, and says how many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_shm import limits
from pmm_shm.errors import SnapshotUnavailableError
from pmm_shm.ledger.restore import restore
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm_client import Cache, EventLog, connect
from tests.support import ledgers
from tests.support.search_oracle import bow, check_hits, expected
from tests.support.searching import check, fill


def test_a_short_log_is_searched_completely(ledger: str) -> None:
    with connect(ledger) as cache:
        assert (*cache.search("red"), cache.search("red").is_complete, cache.search("red").as_of) == (True, 0)
        fill(ledger, 300)
        hits = check(cache, ledger)
        assert hits.is_complete
        assert hits.embedded_here == len(expected(ledger))
        last = cache.append("user", "something never said")
        found = cache.recall("something never said", k=1)
        assert (found[0].event_id, found[0].event["content"]) == (last, "something never said")
        assert check(cache, ledger, bow("something never said")).as_of == last  # type: ignore[arg-type]
        assert cache.context("something else never said", recall=2).recall_problem is None


def test_of_a_long_log_the_newest_events_are_searched(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEARCH_EVENTS_MAX", 10)
    monkeypatch.setattr(limits, "TAIL_SPAN_IDS", 7)
    with connect(ledger) as cache:
        for number in range(45):
            # Other kinds between them, and a gap.
            cache.append_many([("note", "", {})] * (number % 5))
            cache.append("user" if number % 2 else "reflection", f"word{number} apple")
            if number == 20:
                ledgers.execute(ledger, "UPDATE sqlite_sequence SET seq = seq + 1000")
            hits = cache.search("apple", 50)
            vectors = expected(ledger)
            newest = dict(sorted(vectors.items())[-len(hits) :])
            check_hits(hits, newest, "apple", 50)
            assert min(vectors) in newest or len(hits) == 10
            assert hits.is_complete == (number < 10) == (hits.as_of != 0)
            assert hits.embedded_here == len(hits) == min(10, number + 1)
        problem = cache.context("apple", recall=3).recall_problem
        assert problem is not None
        assert "were not searched" in problem
    # Another process begins with the newest ones at once.
    with connect(ledger) as other:
        check_hits(other.search("apple", 50), newest, "apple", 50)


@pytest.mark.parametrize("mode", ["meaning", "words", "hybrid", "auto"])
@pytest.mark.parametrize("call", ["recall", "context"])
def test_recalled_events_are_of_the_file_that_was_searched(ledger: str, tmp_path: Path, call: str, mode: Any) -> None:
    other = str(tmp_path / "other.db")
    for path, fruits in ((ledger, "apple pear plum"), (other, "plum pear apple")):
        with EventLog(path) as log:
            log.append_many([("user", f"a {fruit} tree", {}) for fruit in fruits.split() * 5])

    def recalled(cache: Cache) -> list[str]:
        if call == "context":
            return [one.content for one in cache.context("the apple", recall=1, recall_mode=mode).recalled]
        return [hit.event["content"] for hit in cache.recall("apple", k=5, mode=mode)]

    with connect(ledger) as cache:
        assert set(recalled(cache)) == {"a apple tree"}
        # A search looks at the path at most every 200 ms, the log at each event.
        os.replace(other, ledger)
        assert set(recalled(cache)) == {"a apple tree"}


def test_a_restored_log_is_embedded_anew(ledger: str, tmp_path: object) -> None:
    backup = f"{tmp_path}/backup.db"
    with EventLog(backup) as log:
        log.append_many([("user", f"pear {number}", {}) for number in range(40)])
    fill(ledger, 40)
    with connect(ledger) as cache:
        check(cache, ledger)
        restore(backup, ledger)
        hits = check(cache, ledger, "pear 7")
        assert hits[0].event_id == 8
        ledgers.execute(ledger, "DELETE FROM events WHERE id > 20")
        check(cache, ledger, "pear 7")


def test_any_embedder_that_is_here_can_be_searched_with(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEARCH_TEXTS_MAX", 4)
    asked: list[str] = []

    def letters(texts: list[str]) -> list[list[float]]:
        asked.extend(texts)
        return [[float(text.count(letter)) for letter in "abc"] for text in texts]

    with connect(ledger, embedder=FunctionEmbedder("letters", 3, letters)) as cache:
        cache.append_many([("user", text, {}) for text in ("aaa", "bbb", "ccc", "ab", "bc", "ca")])
        hits = cache.search([0.0, 0.0, 1.0])
        assert [hit.event_id for hit in hits] == [3, 5, 6, 4]
        assert (hits.is_complete, hits.as_of, hits.embedded_here, hits.model) == (False, 0, 4, "letters")
        assert sorted(asked) == ["ab", "bc", "ca", "ccc"]


def test_vectors_that_only_a_daemon_takes_in_make_a_search_incomplete(ledger: str) -> None:
    fill(ledger, 20)
    ledgers.execute(ledger, "CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, embedding BLOB)")
    with connect(ledger) as cache:
        assert cache.search("red").is_complete
    ledgers.execute(ledger, "INSERT INTO event_embeddings VALUES (3, ?)", np.ones(32, np.float32).tobytes())
    with connect(ledger) as cache:
        hits = cache.search("red")
        assert len(hits) == 5
        assert (hits.is_complete, hits.as_of) == (False, 0)


def test_vectors_of_a_model_that_is_not_here(ledger: str) -> None:
    fill(ledger, 5)
    with (
        connect(ledger) as cache,
        pytest.raises(SnapshotUnavailableError, match=r"ledger\.db: no vectors of model 'imported-3'"),
    ):
        cache.search([1.0, 0.0, 0.0], model="imported-3")
