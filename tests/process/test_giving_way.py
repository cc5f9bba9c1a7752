"""The indexer gives way to the follower: within every piece of its work, and for no longer than it must."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmm_cached import indexer
from pmm_cached.indexer import Indexer
from pmm_cached.logs import configure
from pmm_cached.status import EmbeddingStatus, WordStatus
from pmm_shm import limits
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.tail import Position
from pmm_shm.words.file import WordIndexReader, WordIndexWriter
from pmm_shm.words.texts import WORD_KINDS
from pmm_shm_client import EventLog
from tests.support import ledgers
from tests.support.polling import until
from tests.support.publishing import Publisher, foreign

EVENTS = 2_500
LOOKS = 20


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    path = str(tmp_path / "l.db")
    with EventLog(path) as log:
        log.append_many([("user", f"message number {number} about the garden", None) for number in range(EVENTS)])
    return path


@pytest.fixture
def publisher(ledger: str) -> Iterator[Publisher]:
    opened = Publisher(ledger)
    yield opened
    opened.close()


class Sleeps:
    """The clock of the indexer: counts its sleeps, which take no time."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.count = 0

    def sleep(self, _: float) -> None:
        self.count += 1
        time.sleep(0.0001)


class Work:
    """An indexer of words in this process, whose follower is behind when the test says so."""

    def __init__(self, ledger: str, publisher: Publisher, is_behind: Callable[[WordStatus], bool]) -> None:
        self.words, self.standstill, self.looks = WordStatus(), threading.Lock(), 0
        self._is_behind = is_behind
        server: Any = None
        self.indexer = Indexer(
            Instance.of(ledger), publisher.writer, None, None, (), WORD_KINDS, EmbeddingStatus(), self.words,
            configure("json", "error"), self.standstill, self._look, server, pytest.fail,
        )  # fmt: skip

    def _look(self) -> bool:
        self.looks += 1
        return self._is_behind(self.words)

    def is_done(self) -> bool:
        return self.words.as_of == EVENTS


@contextmanager
def working(ledger: str, publisher: Publisher, is_behind: Callable[[WordStatus], bool]) -> Iterator[Work]:
    work = Work(ledger, publisher, is_behind)
    work.indexer.start()
    try:
        yield work
    finally:
        assert work.indexer.stop(10)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_follower_is_behind_from_a_commit_to_its_step(tmp_path: Path, journal: str) -> None:
    path = str(tmp_path / "l.db")
    with EventLog(path) as log:
        log.append("user", "first", {})
    ledgers.execute(path, f"PRAGMA journal_mode = {journal}")
    publisher = Publisher(path)
    try:
        for number in range(3):
            publisher.publish()
            assert not publisher.follower.is_behind()
            foreign(path, content=f"message {number}")
            # In a rollback journal only SQLite knows, and the indexer does not ask.
            assert publisher.follower.is_behind() == (journal == "wal")
    finally:
        publisher.close()


def test_it_stands_still_until_the_follower_has_gone_on(
    ledger: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look that finds a commit comes within the second transaction, and nothing is taken in after it."""
    monkeypatch.setattr(limits, "INDEX_YIELD_S", 3_600.0)
    goes_on = threading.Event()
    with working(ledger, publisher, lambda words: words.rows > 0 and not goes_on.is_set()) as work:
        until(lambda: work.words.rows, "the first transaction")
        before = work.looks
        until(lambda: work.looks > before + LOOKS, "it looks again and again")
        assert 0 < work.words.as_of < EVENTS
        goes_on.set()
        until(work.is_done, "the rest")


def test_it_stands_still_while_the_follower_works(ledger: str, publisher: Publisher) -> None:
    begins = threading.Event()

    def is_behind(words: WordStatus) -> bool:
        if words.rows and not begins.is_set():
            # The follower begins a step between two pieces.
            work.standstill.acquire()
            begins.set()
        return False

    work = Work(ledger, publisher, is_behind)
    work.indexer.start()
    try:
        assert begins.wait(30)
        time.sleep(0.1)
        assert 0 < work.words.as_of < EVENTS
        work.standstill.release()
        until(work.is_done, "the rest")
    finally:
        assert work.indexer.stop(10)


def test_writers_without_a_pause_do_not_stop_it(
    ledger: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INDEX_YIELD_S", 0.002)
    with working(ledger, publisher, lambda _: True) as work:
        until(work.is_done, "all of it")


@pytest.mark.parametrize("is_busy", [False, True])
def test_it_rests_only_while_somebody_commits(
    ledger: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    sleeps = Sleeps()
    monkeypatch.setattr(indexer, "time", sleeps)
    monkeypatch.setattr(limits, "INDEX_CALM_S", 3_600.0)
    monkeypatch.setattr(limits, "INDEX_SLICE_S", 0.0001)
    work = Work(ledger, publisher, lambda _: False)
    if is_busy:
        work.indexer.ledger_changed()
    work.indexer.start()
    try:
        until(work.is_done, "all of it")
        # One of them gathers the commits for the next round.
        assert sleeps.count > LOOKS if is_busy else sleeps.count <= 1
    finally:
        assert work.indexer.stop(10)


def test_a_transaction_of_the_index_gives_way_and_locks_nobody_out(tmp_path: Path) -> None:
    """FTS5 merges within a commit, and writes more pages than SQLite's cache holds: at each look, a reader reads."""
    instance = Instance.of(str(tmp_path / "l.db"))
    instance.directory.mkdir()
    looks: list[int | None] = []
    statement = "SELECT event_id FROM state"

    def look() -> None:
        looks.append(reader.execute(statement).fetchall()[0][0] if len(looks) % 10 == 0 else None)

    chance = random.Random(1)
    index = WordIndexWriter(instance, b"store", WORD_KINDS, look)
    reader = sqlite3.connect(f"file:{instance.words_file}?mode=ro", uri=True, timeout=0, isolation_level=None)
    try:
        for number in range(1, 17):
            index.add([[(number, f"message {number}")]], Position(number, b"a"))
        assert set(looks) <= {None, *range(16)}
        looks.clear()
        texts = [
            (event_id, " ".join(f"{chance.getrandbits(40):x}" for _ in range(200))) for event_id in range(17, 2_017)
        ]
        index.add([texts], Position(2_016, b"b"))
        assert len(looks) > 1_000
        assert set(looks) == {None, 16}
        assert reader.execute(statement).fetchall() == [(2_016,)]
    finally:
        reader.close()
        index.close()


def test_a_commit_gives_way_while_it_merges(tmp_path: Path) -> None:
    instance = Instance.of(str(tmp_path / "l.db"))
    instance.directory.mkdir()
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    within_commits = []
    chance = random.Random(1)
    index = WordIndexWriter(instance, b"store", WORD_KINDS, look)

    def parts(first: int) -> Iterator[list[tuple[int, str]]]:
        nonlocal looks
        yield [(first + number, " ".join(f"{chance.getrandbits(40):x}" for _ in range(40))) for number in range(200)]
        looks = 0

    try:
        for first in range(1, 5_000, 200):
            index.add(parts(first), Position(first + 199, b"a"))
            within_commits.append(looks)
    finally:
        index.close()
    assert max(within_commits) > LOOKS
    with WordIndexReader(instance).begin(b"store") as found:
        assert found is not None
        assert found[0].totals().events == 5_000
