"""`search` and `recall`: what the specification's brute force finds, at the event that they say, daemon or not."""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm import limits
from pmm_shm.errors import (
    ClosedError,
    ConfigError,
    DaemonError,
    InvalidTextError,
    InvalidVectorError,
    SnapshotUnavailableError,
    UnknownModelError,
)
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm_client import connect, connect_async
from pmm_shm_client.cache import Cache
from tests.support import ledgers
from tests.support.fork_daemon import ForkedDaemon
from tests.support.polling import until
from tests.support.profiles import examples
from tests.support.readers import table_of_readers_held
from tests.support.search_oracle import Steered, blob, bow, check_hits, digest, expected, index, tables
from tests.support.searching import (
    EMBEDDINGS,
    NEVER,
    WORDS,
    check,
    events,
    fill,
    head,
    put_embedding,
    text,
)
from tests.support.waiting import at_most

_fork = multiprocessing.get_context("fork")


# The oracle.


def test_equals_the_oracle(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 700)
    with connect(ledger) as cache:
        cache.append("embedding_indexed", "", {"eid": 6, "digest": digest(text(2))})
        cache.append("embedding_indexed", "", {"eid": 13, "digest": "00000000"})
        assert index(ledger)["as_of"] == 702
        vectors = expected(ledger)
        for query in ("red apple", "swim", "?", text(3), bow("tea"), [0.0] * 32, [1e300] * 32, [-1e-300] * 32):
            for k in (1, 2, 5, 10_000):
                hits = cache.search(query, k)
                check_hits(hits, vectors, query, k)
                assert (hits.as_of, hits.is_complete, hits.embedded_here, hits.model) == (702, True, 0, "local-bow")
        assert len(hits) == len(vectors) == tables(ledger)["tables"]["local-bow"]["rows"]


ids = st.one_of(st.integers(-5, 400), st.sampled_from([-(2**63), 2**63 - 1, 10**6]))
coordinates = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=examples(80))
@given(
    query=st.one_of(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
        st.text(min_size=1, max_size=20),
        st.lists(coordinates, min_size=32, max_size=32),
    ),
    k=st.integers(1, 400),
    scope=st.none() | st.lists(ids, max_size=60),
)
def test_any_search_equals_the_oracle(searched: tuple[Cache, dict[int, Any]], query: Any, k: int, scope: Any) -> None:
    cache, vectors = searched
    hits = cache.search(query, k, scope)
    check_hits(hits, vectors, query, k, scope)
    assert (hits.as_of, hits.is_complete) == (360, True)
    assert hits.embedded_here == sum(event_id > 300 for event_id in vectors)


def test_ties_and_zero_vectors(ledger: str, daemon: ForkedDaemon) -> None:
    ledgers.execute(ledger, EMBEDDINGS)
    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": "the same", "meta": {}} for _ in range(600)])
    for event_id in (3, 599):
        put_embedding(ledger, event_id, blob(*[0.0] * 32))
    index(ledger)
    with connect(ledger) as cache:
        same = [event_id for event_id in range(1, 601) if event_id not in (3, 599)]
        hits = check(cache, ledger, "the same", 10)
        assert [hit.event_id for hit in hits] == same[:10]
        assert [hit.event_id for hit in cache.search([0.0] * 32, 600)] == list(range(1, 601))
        opposite = [-value for value in bow("the same")]
        assert [hit.event_id for hit in cache.search(opposite, 3)] == [3, 599, 1]
        assert cache.search(opposite, 3)[0].similarity == 0.0


def test_recall_brings_the_events(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 30)
    index(ledger)
    with connect(ledger) as cache, EventLog(ledger) as log:
        last = cache.append("user", "quite something else", {"a": 1})
        found = cache.recall("quite something else", 3)
        assert found[0].event == {**log.get_event(last)}  # type: ignore[dict-item]
        hits = cache.search("quite something else", 3)
        assert [one[:2] for one in found] == [tuple(hit) for hit in hits]
        assert (found.as_of, found.is_complete, found.model) == (last, True, "local-bow")

        async def asked() -> None:
            async with await connect_async(ledger) as waiting:
                assert await waiting.search_async("quite something else", 3) == hits
                assert await waiting.recall_async("quite something else", 3) == found

        asyncio.run(asked())


# Without a daemon.


@pytest.mark.parametrize("end", [ForkedDaemon.freeze, ForkedDaemon.kill, ForkedDaemon.stop])
def test_with_a_daemon_that_rests(ledger: str, daemon: ForkedDaemon, end: Callable[[ForkedDaemon], Any]) -> None:
    fill(ledger, 400)
    with connect(ledger) as before:
        index(ledger)
        check(before, ledger)
        end(daemon)
        began = time.monotonic()
        with connect(ledger) as after:
            assert check(after, ledger).embedded_here == 0
            for number in range(4):
                fill(ledger, 40, 1_000 + 40 * number)
                before.append("embedding_indexed", "", {"eid": 6, "digest": digest(text(2))})
                before.append("embedding_indexed", "", {"eid": 7 + 7 * number, "digest": digest("no")})
                here = check(before, ledger).embedded_here
                assert here == check(after, ledger).embedded_here
                last = before.append("user", f"never said {number}")
                assert check(after, ledger, f"never said {number}", 2)[0].event_id == last
            assert here == sum(event_id > 400 for event_id in expected(ledger, until=last - 1)) + 1
        # The default embedding is computed here: nobody is waited for.
        assert time.monotonic() - began < 5.0


def test_more_events_than_are_embedded_here(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 100)
    index(ledger)
    daemon.kill()
    most = limits.SEARCH_EVENTS_MAX
    fill(ledger, 2 * most, 5_000)
    with connect(ledger) as cache, connect(ledger) as vector_cache:
        for _ in range(2):
            hits = cache.search("red apple", 50)
            assert not hits.is_complete
            assert hits.embedded_here == most
            vectors = expected(ledger, until=hits.as_of)
            assert sum(event_id > 100 for event_id in vectors) == most
            check_hits(hits, vectors, "red apple", 50)
            assert vector_cache.search(bow("red apple"), 50).as_of == hits.as_of
            fill(ledger, 3, 20_000)
        # With the limit reached, too, it is noticed that the log lost its end. The log still continues the table: only
        # what was read here behind it counts no more.
        ledgers.execute(ledger, "DELETE FROM events WHERE id > 500")
        check(cache, ledger)
        with ForkedDaemon(Path(ledger), *NEVER):
            index(ledger)
            assert check(cache, ledger).embedded_here == 0


def test_exactly_as_many_events_as_are_embedded_here(
    ledger: str, daemon: ForkedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEARCH_EVENTS_MAX", 10)
    fill(ledger, 50)
    index(ledger)
    daemon.freeze()
    with connect(ledger) as cache:
        for number in range(14):
            assert cache.append("user", f"word{number} apple") == 51 + number
            hits = cache.search("apple", 5)
            check_hits(hits, expected(ledger, until=hits.as_of), "apple", 5)
            assert hits.is_complete == (number < 10) == (hits.as_of == 51 + number)
            assert hits.embedded_here == min(10, number + 1)
        daemon.thaw()
        index(ledger)
        check(cache, ledger)


def test_an_empty_log(ledger: str, daemon: ForkedDaemon) -> None:
    index(ledger)
    with connect(ledger) as cache:
        hits = cache.search("red")
        assert (list(hits), hits.as_of, hits.is_complete, hits.embedded_here) == ([], 0, True, 0)
        daemon.kill()
        cache.append("user", "red")
        assert check(cache, ledger, "red").embedded_here == 1


def test_vectors_of_an_embedder_that_is_not_here(
    ledger: str, steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"model": "counting", "embed": steered.vector, "takes_empty": False}
    fill(ledger, 40)
    with ForkedDaemon(Path(ledger), *NEVER, "--embedder", steered.option) as daemon, connect(ledger) as cache:
        index(ledger)
        query = steered.vector("apple")
        check(cache, ledger, query, **options)
        daemon.kill()
        # Nothing came, or nothing that has a vector: still complete.
        cache.append("note", "of another kind")
        check(cache, ledger, query, **options)
        for number in range(3):
            cache.append("user", f"something {number}")
            hits = cache.search(query, 7, model="counting")
            assert not hits.is_complete
            assert hits.embedded_here == 0
            check_hits(hits, expected(ledger, **options, until=hits.as_of), query, 7)
        with pytest.raises(UnknownModelError):
            cache.search("a text", model="counting")
        with connect(ledger, embedder=steered.embedder) as able:
            hits = check(able, ledger, query, **options)
            assert (hits.embedded_here, hits.model) == (3, "counting")
            able.append("user", "")
            assert check(able, ledger, query, **options).embedded_here == 3


def test_an_embedder_of_another_dimension(ledger: str, steered: Steered) -> None:
    other = Steered(steered.folder, dimension=9)
    fill(ledger, 10)
    with ForkedDaemon(Path(ledger), *NEVER, "--embedder", steered.option) as daemon:
        index(ledger)
        daemon.kill()
    with connect(ledger, embedder=other.embedder) as cache:
        with pytest.raises(InvalidVectorError, match="dimension"):
            cache.search("a text")
        assert len(cache.search(steered.vector("a"), 3)) == 3
        cache.append("user", "later")
        with pytest.raises(InvalidVectorError, match="dimension"):
            cache.search(steered.vector("a"), 3)


def test_events_that_come_while_texts_are_embedded(ledger: str, steered: Steered) -> None:
    """What is committed during a search may be in it or not; what it says of itself is true all the same."""
    options = {"model": "counting", "embed": steered.vector, "takes_empty": False}
    fill(ledger, 40)
    with ForkedDaemon(Path(ledger), *NEVER, "--embedder", steered.option) as daemon:
        index(ledger)
        daemon.freeze()
        fill(ledger, 20, 100)
        with connect(ledger, embedder=steered.embedder) as cache, connect(ledger) as other:
            steered.pause(0.02)
            done = threading.Event()

            def write() -> None:
                number = 0
                while not done.is_set():
                    other.append("user", f"meanwhile {number}")
                    number += 1
                    if number == 10:
                        daemon.thaw()
                    time.sleep(0.01)

            writer = threading.Thread(target=write)
            writer.start()
            try:
                for _ in range(3):
                    before = head(ledger)
                    hits = cache.search(steered.vector("apple"), 9)
                    assert before <= hits.as_of
                    check_hits(hits, expected(ledger, **options, until=hits.as_of), steered.vector("apple"), 9)
            finally:
                done.set()
                writer.join()


# Appends, while others index and search.


def write_events(path: str, count: int, seed: int) -> None:
    with EventLog(path) as log:
        chosen = random.Random(seed)
        for number in range(count):
            if chosen.random() < 0.1:
                named = chosen.randint(1, 300)
                row = ledgers.execute(path, "SELECT content FROM events WHERE id = ?", named)
                meta = {"eid": named, "digest": digest(row[0][0]) if row else ""}
                log.append("embedding_indexed", "", meta)
            else:
                log.append_many(events(chosen.randint(1, 4), 10_000 * seed + 4 * number))


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_every_list_of_hits_is_that_of_its_event(tmp_path: Path, journal: str) -> None:
    path = ledgers.build(tmp_path / "ledger.db", 0, journal=journal)
    with EventLog(path) as log:
        log.append("user", "red")
    fill(path, 250)
    found: list[tuple[int, str, Any]] = []
    with ForkedDaemon(Path(path), *NEVER), connect(path) as first, connect(path) as second:
        index(path)
        writer = _fork.Process(target=write_events, args=(path, 150, 1))
        writer.start()

        def read(cache: Cache, seed: int) -> None:
            chosen = random.Random(seed)
            while writer.is_alive() or len(found) < 40:
                before, query = head(path), " ".join(chosen.choices(WORDS, k=2))
                if chosen.random() < 0.2:
                    before = cache.append("user", query)
                found.append((before, query, cache.search(query, 6)))

        readers = [threading.Thread(target=read, args=(cache, seed)) for seed, cache in enumerate((first, second))]
        for reader in readers:
            reader.start()
        for thread in (writer, *readers):
            thread.join(60)
        assert writer.exitcode == 0
        check(first, path)
    assert all(hits.is_complete and hits.as_of >= before for before, _, hits in found)
    for _, query, hits in random.Random(0).sample(found, min(60, len(found))):
        check_hits(hits, expected(path, until=hits.as_of), query, 6)


# Forks, threads, the end.


def test_after_a_fork(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 50)
    index(ledger)
    with connect(ledger) as cache:
        check(cache, ledger)

        def child() -> None:
            check(cache, ledger)
            cache.append("user", "from the child")
            assert check(cache, ledger, "from the child", 1)[0].event_id == 51
            os._exit(7)

        process = _fork.Process(target=child)
        process.start()
        process.join(20)
        assert process.exitcode == 7
        assert check(cache, ledger, "from the child", 1)[0].event_id == 51


def test_threads_share_a_cache_until_it_closes(ledger: str, daemon: ForkedDaemon) -> None:
    fill(ledger, 400)
    index(ledger)
    daemon.freeze()
    cache, errors, searches = connect(ledger), [], []
    vectors = expected(ledger)

    def search(seed: int) -> None:
        try:
            while True:
                query = text(seed) or "red"
                check_hits(cache.search(query, 3), vectors, query, 3)
                searches.append(seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: len(searches) > 12, "searches")
    cache.close()
    for thread in threads:
        thread.join(20)
    assert [type(error) for error in errors] == [ClosedError] * 6
    for call in (cache.search, cache.recall):
        with pytest.raises(ClosedError):
            call("red")


def test_an_environment_made_anew(ledger: str) -> None:
    fill(ledger, 30)
    with connect(ledger) as cache:
        for number in range(4):
            with ForkedDaemon(Path(ledger), *NEVER) as daemon:
                index(ledger)
                check(cache, ledger)
                check(cache, ledger, "red", 4)
                daemon.kill()
            cache.append("user", f"round {number}")
            check(cache, ledger, f"round {number}", 1)
            shutil.rmtree(Instance.of(ledger).directory)
            check(cache, ledger, "red", 4)


# The oracle.


@pytest.mark.parametrize(
    "scope",
    [
        [],
        (),
        {3, 1, 2},
        frozenset({7}),
        [1, 1, 2, 2, 1],
        [-1, -(2**63), 2**63 - 1, 10**9],
        range(1, 50),
        np.array([1, 2, 3]),
        np.array([9, 8, 9], np.int8),
        np.array([1, 2], np.uint64),
        np.empty(0),
        {4: "a dict's keys"},
    ],
    ids=str,
)
def test_scopes(searched: tuple[Cache, dict[int, Any]], scope: Any) -> None:
    cache, vectors = searched
    inside = [int(event_id) for event_id in scope]
    check_hits(cache.search("red pear", 5, scope), vectors, "red pear", 5, inside)
    check_hits(cache.search("red pear", 5, (one for one in inside)), vectors, "red pear", 5, inside)


@pytest.mark.parametrize(
    "scope",
    [
        5,
        "123",
        [1.5],
        [math.nan],
        ["1"],
        [None],
        [2**63],
        [-(2**63) - 1],
        [10**30],
        [2**63, -1],
        np.array([2**63], np.uint64),
        np.array([[1, 2]]),
        np.array(3),
        [True, False],
        [[1], [2, 3]],
        pytest.param(object(), id="object"),
    ],
    ids=str,
)
def test_scopes_that_mean_nothing(searched: tuple[Cache, dict[int, Any]], scope: Any) -> None:
    with pytest.raises(ConfigError, match="scope"):
        searched[0].search("red", 5, scope)


@pytest.mark.parametrize("k", [0, -1, True, "5", 1.0, None, limits.SEARCH_K_MAX + 1, 2**70])
def test_counts_that_mean_nothing(searched: tuple[Cache, dict[int, Any]], k: Any) -> None:
    with pytest.raises(ConfigError, match="k: "):
        searched[0].search("red", k)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", InvalidTextError),
        ("x" * (limits.TEXT_CHARS_MAX + 1), InvalidTextError),
        ([0.1] * 31, InvalidVectorError),
        ([0.1] * 33, InvalidVectorError),
        ([], InvalidVectorError),
        ([math.nan] * 32, InvalidVectorError),
        ([math.inf] * 32, InvalidVectorError),
        ([[0.1] * 32], InvalidVectorError),
        (["a"] * 32, InvalidVectorError),
        (None, InvalidVectorError),
        (b"bytes", InvalidVectorError),
        pytest.param(object(), InvalidVectorError, id="object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_queries_that_mean_nothing(searched: tuple[Cache, dict[int, Any]], query: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        searched[0].search(query)


def test_models_that_are_not_there(searched: tuple[Cache, dict[int, Any]]) -> None:
    cache, _ = searched
    with pytest.raises(UnknownModelError, match="nobody"):
        cache.search("a text", model="nobody")
    with pytest.raises(SnapshotUnavailableError, match=r"no vectors of model 'nobody'.*start pmm-cached"):
        cache.search([1.0] * 32, model="nobody")
    with pytest.raises(ConfigError):
        cache.search("red", model="")


def test_lone_surrogates_are_a_text_like_any_other(searched: tuple[Cache, dict[int, Any]]) -> None:
    cache, vectors = searched
    check_hits(cache.search("red \ud800", 4), vectors, "red \ud800", 4)


# Failures of the moment.


def test_a_ledger_replaced_while_the_old_file_is_trusted(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(ledger, 60)
    ledgers.execute(ledger, "PRAGMA journal_mode = DELETE")
    with ForkedDaemon(Path(ledger), *NEVER), connect(ledger) as cache:
        index(ledger)
        for number in range(2):
            check(cache, ledger)
            # The old file is trusted, and the table is the new one's, as if both fell into one period.
            monkeypatch.setattr(limits, "TRUST_PERIOD_S", 600.0)
            cache.search("red")
            shutil.copy(ledger, f"{ledger}.new")
            ledgers.execute(f"{ledger}.new", "DELETE FROM events WHERE id > 40")
            fill(f"{ledger}.new", 40, 5_000 + 100 * number)
            os.replace(f"{ledger}.new", ledger)
            until(lambda: _is_indexed(ledger), "the table of the new ledger")
            check(cache, ledger)


def test_a_column_added_while_the_old_ones_are_trusted(
    ledger: str, daemon: ForkedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger, 60)
    index(ledger)
    with connect(ledger) as cache:
        check(cache, ledger)
        monkeypatch.setattr(limits, "TRUST_PERIOD_S", 600.0)
        cache.search("red")
        ledgers.execute(ledger, "ALTER TABLE events ADD COLUMN mood TEXT DEFAULT 'calm'")
        ledgers.execute(ledger, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'user', 'red', '{}')")
        until(lambda: _is_indexed(ledger), "the new event")
        check(cache, ledger)


def _is_indexed(ledger: str) -> bool:
    """Whether the daemon has found this ledger, and has its table at the head."""
    try:
        index(ledger)
        return bool(tables(ledger)["tables"]["local-bow"]["as_of"] == head(ledger))
    except DaemonError:
        return False


def test_a_first_search_while_another_process_holds_the_table_of_readers(
    ledger: str, steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped at the worst moment, or gets no CPU time on a busy machine."""
    with ForkedDaemon(Path(ledger), *NEVER, "--embedder", steered.option), contextlib.ExitStack() as held:
        fill(ledger, 40)
        index(ledger)
        with connect(ledger) as cache:
            held.enter_context(table_of_readers_held(Path(ledger)))
            release = threading.Timer(3 * limits.STORE_MUTEX_S, held.close)
            release.start()
            # The daemon's model is waited for, too: no other is searched in its place.
            hits = cache.search("red apple", 7)
            release.join()
            check_hits(
                hits,
                expected(ledger, model="counting", embed=steered.vector, takes_empty=False),
                steered.vector("red apple"),
                7,
            )
            assert (hits.model, hits.is_complete) == (steered.name, True)
        with table_of_readers_held(Path(ledger)), connect(ledger) as cache:
            monkeypatch.setattr(limits, "SEARCH_WAIT_S", 2 * limits.STORE_MUTEX_S)
            with at_most(2.0), pytest.raises(SnapshotUnavailableError, match="holds the lock of the reader table"):
                cache.search("red apple")


# Forks and replacements between the steps of a search.


def fork_once() -> None:
    """A child that ends at once. Before a fork, all connections to the ledger are closed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("mode", ["meaning", "hybrid"])
def test_forks_of_another_thread_end_no_search(ledger: str, mode: Any) -> None:
    forks: list[str] = []

    def embed(texts: list[str]) -> list[list[float]]:
        forks.extend(texts)
        thread = threading.Thread(target=fork_once)
        thread.start()
        thread.join()
        return [[1.0, float(len(text))] for text in texts]

    # Nothing is remembered: every embedding of a query is one fork within the search.
    with connect(ledger, create=True, embedder=FunctionEmbedder("forking", 2, embed)) as cache:
        cache.append("user", "a pear tree", {})
        searching = cache._searching or cache._open_searching()
        searching._embeddings.embed = lambda text, *_: np.array(embed([text])[0])  # type: ignore[method-assign]
        assert [hit.event_id for hit in cache.search("pear", 1, mode=mode)] == [1]
        assert [hit.event["id"] for hit in cache.recall("tree", 1, mode=mode)] == [1]
        assert {"pear", "tree"} <= set(forks)


def test_a_file_that_is_replaced_behind_a_fork_is_noticed(ledger: str, tmp_path: Path) -> None:
    """The log opens the new file; the connection of the searches, which the fork has closed, has not looked yet."""
    other = str(tmp_path / "other.db")
    for path, fruits in ((ledger, "apple pear"), (other, "pear apple")):
        with EventLog(path) as log:
            log.append_many([("user", f"a {fruit} tree", {}) for fruit in fruits.split()])
    with connect(ledger) as cache:
        cache.search("apple")
        whole, replaced = cache._searching.search, []  # type: ignore[union-attr]

        def search(*arguments: Any) -> Any:
            hits = whole(*arguments)
            if os.path.exists(other):
                fork_once()
                os.replace(other, ledger)
                replaced.append(True)
            return hits

        cache._searching.search = search  # type: ignore[union-attr, method-assign]
        assert cache.recall("apple", 1)[0].event["content"] == "a apple tree"
        assert replaced


def test_a_search_whose_steps_read_two_files_is_made_again(ledger: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.db")
    for path, fruits in ((ledger, "apple pear"), (other, "pear apple")):
        with EventLog(path) as log:
            log.append_many([("user", f"a {fruit} tree", {}) for fruit in fruits.split()])

    def embed(texts: list[str]) -> list[list[float]]:
        if "apple" in texts and os.path.exists(other):
            # The words are searched; the vectors will be those of the new file.
            os.replace(other, ledger)
            time.sleep(limits.TRUST_PERIOD_S)
        return [[1.0, float(len(text))] for text in texts]

    with connect(ledger, embedder=FunctionEmbedder("replacing", 2, embed)) as cache:
        hits = cache.search("apple", 2, mode="hybrid")
        assert not os.path.exists(other)
        assert [(hit.event_id, hit.found_by) for hit in hits] == [(2, "both"), (1, "meaning")]
