"""Ledgers to search, and daemons that keep their vectors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from pmm_shm_client.cache import Cache
from tests.support import ledgers
from tests.support.fork_daemon import ForkedDaemon
from tests.support.search_oracle import KINDS, Steered, blob, check_hits, expected, index

NEVER = ("--verify-every", "0")
WORDS = ("red", "green", "blue", "apple", "pear", "plum", "walk", "run", "swim", "north", "south", "tea")
EMBEDDINGS = (
    "CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, digest TEXT, embedding BLOB, summary TEXT, "
    "keywords TEXT, created_at INTEGER)"
)


def text(seed: int) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choices(WORDS, k=chosen.randint(0, 5)))


def events(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Events of embedded and other kinds; some texts come more than once, some are empty."""
    kinds = [*KINDS, "note", "autonomy_tick"]
    return [
        {"kind": kinds[number % len(kinds)], "content": text(number // 2), "meta": {}}
        for number in range(start, start + count)
    ]


def fill(path: str, count: int, start: int = 0) -> int:
    with EventLog(path) as log:
        return list(log.append_many(events(count, start)))[-1]


def head(path: str) -> int:
    return int(ledgers.execute(path, "SELECT coalesce(max(id), 0) FROM events")[0][0])


def put_embedding(path: str, event_id: int, data: Any, created_at: int = 1) -> None:
    sql = "INSERT OR REPLACE INTO event_embeddings (eid, embedding, created_at) VALUES (?, ?, ?)"
    ledgers.execute(path, sql, event_id, data, created_at)


def check(
    cache: Cache,
    path: str,
    query: Any = "red apple",
    k: int = 7,
    scope: Any = None,
    is_complete: bool = True,
    **options: Any,
) -> Any:
    """One search of a ledger at rest, equal to the oracle; complete unless the table has no kinds."""
    hits = cache.search(query, k, scope, options.get("model"))
    check_hits(hits, expected(path, **options), query, k, scope)
    assert hits.as_of == (head(path) if is_complete else 0)
    assert hits.is_complete == is_complete
    return hits


@pytest.fixture
def steered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steered:
    monkeypatch.syspath_prepend(tmp_path)
    return Steered(tmp_path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cache, dict[int, Any]]]:
    """A ledger with a table, events behind it, and no daemon any more."""
    path = str(tmp_path_factory.mktemp("searched") / "ledger.db")
    EventLog(path).close()
    fill(path, 300)
    ledgers.execute(path, EMBEDDINGS)
    put_embedding(path, 5, blob(*[0.0] * 32))
    put_embedding(path, 6, blob(*[0.0] * 31, -1.0))
    with ForkedDaemon(Path(path), *NEVER) as daemon:
        index(path)
        daemon.kill()
    fill(path, 60, 1_000)
    with connect(path) as cache:
        yield cache, expected(path)


@pytest.fixture
def daemon(ledger: str) -> Iterator[ForkedDaemon]:
    """A daemon of `ledger` that verifies only on request."""
    with ForkedDaemon(Path(ledger), *NEVER) as daemon:
        yield daemon
