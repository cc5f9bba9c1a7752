"""`embed` and `embed_many`: a text is embedded once for all workers and all restarts, and never an error of the cache.

With real daemons and real processes; the embedders write a byte to a file for each text that they compute.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import pytest
import zmq

from pmm_shm import limits
from pmm_shm.errors import (
    ClosedError,
    ConfigError,
    EmbedderError,
    InvalidTextError,
    UnknownModelError,
)
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.store.layout import FORMAT
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_client import connect, connect_async
from pmm_shm_client.cache import Cache
from tests.support import daemons
from tests.support.fork_daemon import ForkedDaemon
from tests.support.waiting import at_most

DIMENSION = 24
_fork = multiprocessing.get_context("fork")


class Counting(Embedder):
    """Embedders of one name that count together, in a file; `salt` makes one differ from the others."""

    name = "counting"
    batch_max = 16

    def __init__(
        self,
        count: Path,
        *,
        pause_s: float = 0.0,
        salt: str = "",
        until: Path | None = None,
        dimension: int = DIMENSION,
    ) -> None:
        self.count, self.pause_s, self.salt, self.until, self.dimension = count, pause_s, salt, until, dimension

    def embed(self, texts: Sequence[str]) -> Any:
        assert 0 < len(texts) <= self.batch_max
        descriptor = os.open(self.count, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, b"." * len(texts))
        finally:
            os.close(descriptor)
        time.sleep(self.pause_s * len(texts))
        while self.until is not None and not self.until.exists():
            time.sleep(0.005)
        return [self.vector(text) for text in texts]

    def vector(self, text: str) -> Any:
        digest = hashlib.sha256((self.salt + text).encode("utf-8", "surrogatepass")).digest()
        return np.frombuffer(digest * 32, "u1")[: self.dimension].astype(np.float32) / np.float32(3)

    @property
    def calls(self) -> int:
        return self.count.stat().st_size if self.count.exists() else 0


@pytest.fixture
def count(tmp_path: Path) -> Path:
    return tmp_path / "count"


@pytest.fixture
def daemon(ledger: str) -> Iterator[ForkedDaemon]:
    with ForkedDaemon(Path(ledger)) as daemon:
        yield daemon


@contextlib.contextmanager
def process(target: Callable[..., None], *args: Any) -> Iterator[Any]:
    """A process of its own that does not outlive the test."""
    child = _fork.Process(target=target, args=args)
    child.start()
    try:
        yield child
    finally:
        if child.is_alive():
            child.kill()
        child.join()


def same(left: Any, right: Any) -> bool:
    return bool(left.dtype == right.dtype == np.float32 and left.tobytes() == right.tobytes())


def numbers(cache: Cache) -> dict[str, Any]:
    return cache.stats()["daemon"]["embeddings"]  # type: ignore[no-any-return]


# Once for all.


def embed_all(ledger: str, embedder: Embedder, texts: list[str], seed: int, begin: Any, out: Path) -> None:
    """One of the workers: all texts, in an order of its own, at once or one by one."""
    with connect(ledger, embedder=embedder) as cache:
        begin.wait()
        if seed % 2:
            matrix = cache.embed_many(texts)
        else:
            order = list(range(len(texts)))
            random.Random(seed).shuffle(order)
            rows = {index: cache.embed(texts[index]) for index in order}
            matrix = np.stack([rows[index] for index in range(len(texts))])
        np.save(out, matrix)


@pytest.mark.parametrize("seeds", [range(0, 16, 2), range(1, 17, 2), range(8)], ids=["one by one", "many", "mixed"])
def test_eight_processes_compute_each_text_once(
    ledger: str, count: Path, daemon: ForkedDaemon, tmp_path: Path, seeds: range
) -> None:
    embedder = Counting(count, pause_s=0.05)
    texts = [f"text {number}" for number in range(100)]
    begin = _fork.Barrier(len(seeds))
    outs = [tmp_path / f"{seed}.npy" for seed in seeds]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(process(embed_all, ledger, embedder, texts, seed, begin, out))
            for seed, out in zip(seeds, outs, strict=True)
        ]
        for child in children:
            child.join(60)
            assert child.exitcode == 0
    assert embedder.calls == 100
    expected = np.stack([embedder.vector(text) for text in texts])
    assert all(same(np.load(out), expected) for out in outs)
    with connect(ledger, embedder=embedder) as cache:
        assert same(cache.embed_many(texts), expected)
        assert numbers(cache)["late_puts"] == numbers(cache)["leases_held"] == 0
        assert cache.stats()["embeddings"] == {
            "hits": 100,
            "misses": 0,
            "hit_rate": 1.0,
            "maxsize": limits.TEXT_VECTORS_MAX,
            "currsize": 100,
            "leases_granted": 100,
            "lease_waits": numbers(cache)["lease_waits"],
            "leases_expired": 0,
        }
    assert embedder.calls == 100


def test_threads_compute_each_text_once(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder, texts = Counting(count, pause_s=0.02), [f"text {number}" for number in range(10)]
    vectors: list[Any] = []
    with connect(ledger, embedder=embedder) as cache:
        threads = [threading.Thread(target=lambda: vectors.append(cache.embed_many(texts))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert embedder.calls == 10
    assert len(vectors) == 6
    assert all(same(vector, vectors[0]) for vector in vectors)


def test_restarts_keep_what_was_embedded(ledger: str, count: Path) -> None:
    embedder = Counting(count)
    for end in (ForkedDaemon.kill, ForkedDaemon.stop):
        with ForkedDaemon(Path(ledger)) as daemon, connect(ledger, embedder=embedder) as cache:
            assert same(cache.embed("hello"), embedder.vector("hello"))
            end(daemon)
        with connect(ledger, embedder=embedder) as cache:
            assert same(cache.embed("hello"), embedder.vector("hello"))
            assert cache.stats()["embeddings"]["hits"] == 1
    assert embedder.calls == 1


def test_vectors_in_an_untrusted_directory_are_not_used(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    """Snapshots are refused there, and so are vectors: anybody may have put them."""
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        assert same(cache.embed("a text"), embedder.vector("a text"))
    with connect(ledger, embedder=Counting(count, salt="other")) as cache:
        assert same(cache.embed("a text"), embedder.vector("a text"))
    Instance.of(ledger).directory.chmod(0o777)
    with connect(ledger, embedder=Counting(count, salt="other")) as cache:
        assert same(cache.embed("a text"), Counting(count, salt="other").vector("a text"))
    assert embedder.calls == 2


def test_the_oldest_goes_first(ledger: str, count: Path) -> None:
    embedder = Counting(count)
    with ForkedDaemon(Path(ledger), "--text-vectors-max", "5"):
        with connect(ledger, embedder=embedder) as cache:
            for number in range(8):
                cache.embed(f"text {number}")
            assert cache.stats()["embeddings"]["currsize"] == 5
        with connect(ledger, embedder=embedder) as cache:
            for number in range(3, 8):
                cache.embed(f"text {number}")
            assert embedder.calls == 8
            cache.embed("text 0")
            assert embedder.calls == 9


def test_duplicates_order_and_batches(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder = Counting(count)
    texts = [f"text {number % 40}" for number in range(100)]
    with connect(ledger, embedder=embedder) as cache:
        cache.embed("text 7")
        matrix = cache.embed_many(iter(texts))
        assert matrix.shape == (100, DIMENSION)
        assert same(matrix, np.stack([embedder.vector(text) for text in texts]))
        assert embedder.calls == 40
        counted = cache.stats()["embeddings"]
        assert (counted["hits"], counted["misses"]) == (1, 40)
        empty = cache.embed_many([])
        assert (empty.shape, empty.dtype) == ((0, DIMENSION), np.float32)


def test_large_vectors_are_put_in_several_messages(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder = Counting(count, dimension=1_000)
    texts = [f"text {number}" for number in range(40)]
    with connect(ledger, embedder=embedder) as cache:
        cache.embed_many(texts)
        assert numbers(cache)["text_vectors"] == 40
        assert same(cache.embed("text 39"), embedder.vector("text 39"))
    assert embedder.calls == 40


def test_a_vector_is_the_callers_own(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        for _ in range(3):
            vector = cache.embed("hello")
            assert same(vector, embedder.vector("hello"))
            vector[:] = 0
            matrix = cache.embed_many(["hello"])
            assert same(matrix[0], embedder.vector("hello"))
            matrix[:] = 0


def test_a_long_computation_keeps_its_lease(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    slow = Counting(count, pause_s=limits.LEASE_S + 1.0)
    threads = threading.active_count()
    with connect(ledger, embedder=slow) as one, connect(ledger, embedder=Counting(count)) as two:
        first = threading.Thread(target=one.embed, args=("hello",))
        first.start()
        daemons.until(lambda: slow.calls == 1)
        two.embed("hello")
        first.join()
        assert slow.calls == 1
        assert (numbers(two)["leases_expired"], numbers(two)["late_puts"]) == (0, 0)
    assert threading.active_count() == threads


# Holders that die, stand still or fail.


def embed_one(ledger: str, embedder: Embedder, text: str, out: Path) -> None:
    with connect(ledger, embedder=embedder) as cache:
        np.save(out, cache.embed(text))


def test_a_killed_holder_is_succeeded(ledger: str, count: Path, daemon: ForkedDaemon, tmp_path: Path) -> None:
    embedder = Counting(count)
    holder = Counting(count, pause_s=60)
    with process(embed_one, ledger, holder, "hello", tmp_path / "out.npy") as child:
        daemons.until(lambda: holder.calls == 1)
        child.kill()
        with at_most(limits.LEASE_S), connect(ledger, embedder=embedder) as cache:
            assert same(cache.embed("hello"), embedder.vector("hello"))
            assert numbers(cache)["leases_expired"] == 1
    assert embedder.calls == 2


def test_a_stopped_holder_comes_late_and_changes_nothing(
    ledger: str, count: Path, daemon: ForkedDaemon, tmp_path: Path
) -> None:
    go_on, out = tmp_path / "go on", tmp_path / "out.npy"
    holder = Counting(count, salt="the holder's", until=go_on)
    other = Counting(count, salt="the other's")
    with process(embed_one, ledger, holder, "hello", out) as child:
        daemons.until(lambda: holder.calls == 1)
        os.kill(child.pid, signal.SIGSTOP)
        with connect(ledger, embedder=other) as cache:
            vector = cache.embed("hello")
            assert same(vector, other.vector("hello"))
            go_on.touch()
            os.kill(child.pid, signal.SIGCONT)
            child.join(20)
            assert child.exitcode == 0
            assert numbers(cache)["late_puts"] == 1
            # Not its own, but what is stored.
            assert same(np.load(out), vector)
        with connect(ledger, embedder=holder) as cache:
            assert same(cache.embed("hello"), vector)
    assert holder.calls == 2


class Failing(Counting):
    """Does what its name says, in one of several ways."""

    def __init__(self, count: Path, how: str) -> None:
        super().__init__(count)
        self.how = how

    def embed(self, texts: Sequence[str]) -> Any:
        vectors = np.stack(super().embed(texts))
        if self.how == "raises":
            raise ValueError("out of credit")
        if self.how == "raises ours":
            raise EmbedderError("out of credit")
        if self.how == "is interrupted":
            raise KeyboardInterrupt
        if self.how == "NaN":
            vectors[0, 0] = np.nan
        return vectors[:, :-1] if self.how == "dimension" else vectors


@pytest.mark.parametrize("how", ["raises", "raises ours", "NaN", "dimension", "is interrupted"])
def test_an_embedder_that_fails_holds_nobody_up(ledger: str, count: Path, daemon: ForkedDaemon, how: str) -> None:
    expected = KeyboardInterrupt if how == "is interrupted" else EmbedderError
    with connect(ledger, embedder=Failing(count, how)) as cache:
        with pytest.raises(expected):
            cache.embed("hello")
        with pytest.raises(expected):
            cache.embed_many(["hello", "you"])
        assert numbers(cache)["leases_held"] == 0
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        assert same(cache.embed("hello"), embedder.vector("hello"))
        assert (numbers(cache)["lease_waits"], numbers(cache)["leases_expired"]) == (0, 0)


class Down(Counting):
    """A provider that takes its time to fail: its first calls, by the number of texts, for all who count together."""

    def __init__(self, count: Path, failures: int, **options: Any) -> None:
        super().__init__(count, **options)
        self.failures = failures

    def embed(self, texts: Sequence[str]) -> Any:
        is_down = self.calls < self.failures
        vectors = super().embed(texts)
        if is_down:
            raise ConnectionError("the provider is down")
        return vectors


def embed_at_once(ledger: str, embedder: Embedder, begin: Any, ends: Any) -> None:
    """Puts what became of it, and after how many seconds."""
    with connect(ledger, embedder=embedder) as cache:
        begin.wait()
        started = time.monotonic()
        try:
            outcome = cache.embed("hello").tobytes()
        except EmbedderError as error:
            outcome = str(error)
        ends.put((time.monotonic() - started, outcome))
        if isinstance(outcome, bytes):
            # It is kept here, stored or not.
            assert cache.embed("hello").tobytes() == outcome


def all_at_once(ledger: str, embedder: Embedder, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
    begin, ends = _fork.Barrier(4), _fork.Queue()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process(embed_at_once, ledger, embedder, begin, ends)) for _ in range(4)]
        meanwhile()
        outcomes = [ends.get(timeout=20) for _ in children]
        for child in children:
            child.join(20)
            assert child.exitcode == 0
    return outcomes


def test_an_embedder_that_is_down_fails_for_all_at_once(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder = Down(count, 1_000, pause_s=0.3)
    outcomes = all_at_once(ledger, embedder)
    assert all("the provider is down" in str(outcome) for _, outcome in outcomes)
    # The first one's call, then those of all others, side by side. One after the other they take 4 * 0.3 s.
    assert max(seconds for seconds, _ in outcomes) < 1.2
    assert embedder.calls == 4
    with connect(ledger, embedder=embedder) as cache:
        assert numbers(cache)["leases_held"] == 0


def test_who_waited_for_a_failure_computes_for_itself(
    ledger: str, count: Path, daemon: ForkedDaemon, tmp_path: Path
) -> None:
    go_on = tmp_path / "go on"
    embedder = Down(count, 1, until=go_on)
    vector = embedder.vector("hello").tobytes()
    with connect(ledger, embedder=embedder) as cache:

        def fail() -> None:
            daemons.until(lambda: numbers(cache)["lease_waits"] == 3)
            go_on.touch()

        outcomes = all_at_once(ledger, embedder, fail)
        assert sorted(outcome == vector for _, outcome in outcomes) == [False, True, True, True]
        assert embedder.calls == 4
        counted = numbers(cache)
        assert (counted["leases_granted"], counted["leases_held"], counted["text_vectors"]) == (1, 0, 0)
        # The key is free: the next one has the lease, and stores it for all.
        assert cache.embed("hello").tobytes() == vector
        assert numbers(cache)["text_vectors"] == 1
    assert embedder.calls == 5


# Without a daemon of use.


def test_without_a_daemon(ledger: str, count: Path) -> None:
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        for _ in range(3):
            assert same(cache.embed("hello"), embedder.vector("hello"))
            assert same(cache.embed_many(["hello"])[0], embedder.vector("hello"))
        assert cache.stats()["embeddings"] == {
            "hits": 5,
            "misses": 1,
            "hit_rate": 5 / 6,
            "maxsize": limits.LOCAL_TEXT_VECTORS_MAX,
            "currsize": 1,
            "leases_granted": 0,
            "lease_waits": 0,
            "leases_expired": 0,
        }
        assert embedder.calls == 1
        cache.embed_many([f"text {number}" for number in range(limits.LOCAL_TEXT_VECTORS_MAX)])
        assert cache.stats()["embeddings"]["currsize"] == limits.LOCAL_TEXT_VECTORS_MAX
        before = embedder.calls
        cache.embed("hello")
        assert embedder.calls == before + 1


def test_a_daemon_that_comes_later_is_used(ledger: str, count: Path) -> None:
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        cache.embed("before")
        with ForkedDaemon(Path(ledger)):
            cache.embed("after")
            assert numbers(cache)["text_vectors"] == 1
            with connect(ledger, embedder=embedder) as other:
                other.embed("shared")
            cache.embed("shared")
        assert embedder.calls == 3


def test_a_daemon_that_is_killed_meanwhile(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    """One worker computes, one waits for it."""
    embedder = Counting(count, pause_s=0.5)
    vectors: list[Any] = []
    with connect(ledger, embedder=embedder) as one, connect(ledger, embedder=embedder) as two:
        threads = [threading.Thread(target=lambda c=cache: vectors.append(c.embed("hello"))) for cache in (one, two)]
        threads[0].start()
        daemons.until(lambda: embedder.calls == 1)
        threads[1].start()
        daemons.until(lambda: numbers(one)["lease_waits"] == 1)
        daemon.kill()
        started = time.monotonic()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 4.0
        assert len(vectors) == 2
        assert all(same(vector, embedder.vector("hello")) for vector in vectors)
        assert embedder.calls == 2
        one.embed("more")


def test_a_daemon_that_stands_still_is_left_alone(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        cache.embed("before")
        daemon.freeze()
        try:
            with at_most(3.0):
                cache.embed("before")
                assert same(cache.embed("hello"), embedder.vector("hello"))
            # Each of them would wait for it.
            with at_most(1.0):
                for number in range(100):
                    cache.embed(f"text {number}")
        finally:
            daemon.thaw()


@contextlib.contextmanager
def replies(ledger: str, reply: Callable[[int], bytes]) -> Iterator[None]:
    """A daemon whose every answer is this one."""
    endpoints = find_endpoints(Instance.of(ledger))
    is_over = threading.Event()
    os.unlink(endpoints.commands)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.bind("ipc://" + endpoints.commands)

        def serve() -> None:
            while not is_over.is_set():
                if router.poll(20):
                    peer, data = router.recv_multipart()
                    request = protocol.unpack_request(data, protocol.ORDINARY)
                    router.send_multipart([peer, reply(request.id)])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def lease_result(**fields: list[Any]) -> dict[str, list[Any]]:
    return {"granted": [], "ready": [], "held": [], "failed": [], **fields}


REPLIES: dict[str, Callable[[int], bytes]] = {
    "an older protocol": lambda number: protocol.pack_error(number, "malformed", "unknown command 'lease'"),
    "busy": lambda number: protocol.pack_error(number, "busy", "too many"),
    "nothing of use": lambda number: protocol.pack_result(number, None),
    "other keys": lambda number: protocol.pack_result(number, lease_result(granted=[[99, 1]])),
    "ready, and is not": lambda number: protocol.pack_result(number, lease_result(ready=[0])),
    "its holder failed": lambda number: protocol.pack_result(number, lease_result(failed=[0])),
    "no answer to anything": lambda number: protocol.pack_result(number, lease_result()),
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_daemon_that_is_no_help(ledger: str, count: Path, daemon: ForkedDaemon, case: str) -> None:
    embedder = Counting(count)
    with replies(ledger, REPLIES[case]), connect(ledger, embedder=embedder) as cache:
        assert same(cache.embed("hello"), embedder.vector("hello"))
        assert same(cache.embed_many(["you"])[0], embedder.vector("you"))
    assert embedder.calls == 2


def test_another_dimension_under_the_same_name(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    one, two = Counting(count), Counting(count, dimension=8)
    with connect(ledger, embedder=one) as cache:
        cache.embed("hello")
    with connect(ledger, embedder=two) as cache:
        for text in ("hello", "you"):
            assert same(cache.embed(text), two.vector(text))
        assert numbers(cache)["leases_held"] == 0
        assert numbers(cache)["text_vectors"] == 1


def test_the_flag(ledger: str, count: Path, daemon: ForkedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Counting(count)
    monkeypatch.setenv("PMM_USE_EMBEDDING_CACHE", "false")
    with connect(ledger, embedder=embedder) as cache:
        monkeypatch.delenv("PMM_USE_EMBEDDING_CACHE")
        for _ in range(2):
            assert same(cache.embed("hello"), embedder.vector("hello"))
        assert same(cache.embed_many(["hello", "hello"])[1], embedder.vector("hello"))
        assert embedder.calls == 3
        counted = cache.stats()["embeddings"]
        assert (counted["hits"], counted["misses"], counted["currsize"]) == (0, 3, 0)
    monkeypatch.setenv("PMM_USE_EMBEDDING_CACHE", "perhaps")
    with pytest.raises(ConfigError):
        connect(ledger)


# Forks, closing, environments made anew, threads.


def exit_code_of(action: Callable[[], None]) -> int:
    """What a forked child makes of it: 0 when it did not raise."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(20)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_both_sides_of_a_fork_embed(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        cache.embed("hello")

        def in_child() -> None:
            assert same(cache.embed("hello"), embedder.vector("hello"))
            assert same(cache.embed("child"), embedder.vector("child"))

        assert exit_code_of(in_child) == 0
        assert embedder.calls == 2
        cache.embed_many(["hello", "child", "parent"])
        assert embedder.calls == 3


def test_a_fork_while_other_threads_embed(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder, is_over = Counting(count), threading.Event()
    wrong: list[Any] = []
    with connect(ledger, embedder=embedder) as cache:
        expected = cache.embed("hello").tobytes()

        def read() -> None:
            while not is_over.is_set():
                if cache.embed("hello").tobytes() != expected:
                    wrong.append(1)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                assert exit_code_of(lambda: cache.embed("hello")) == 0
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
    assert not wrong
    assert embedder.calls == 1


def test_a_closed_cache(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    cache = connect(ledger, embedder=Counting(count))
    cache.embed("hello")
    cache.close()
    for call in (lambda: cache.embed("hello"), lambda: cache.embed_many(["hello"])):
        with pytest.raises(ClosedError):
            call()
    assert cache._texts.get(b"h") is None


def test_an_environment_made_anew(ledger: str, count: Path) -> None:
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        for round_ in range(2):
            with ForkedDaemon(Path(ledger)) as daemon:
                cache.embed(f"in round {round_}")
                daemon.stop()
            directory = Instance.of(ledger).directory
            (directory / "data.mdb").unlink()
            (directory / "lock.mdb").unlink()
        time.sleep(limits.TRUST_PERIOD_S)
        assert same(cache.embed("in round 0"), embedder.vector("in round 0"))
        # From this process's own memory.
        assert embedder.calls == 2


def test_signal_handlers_may_embed(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder, seen = Counting(count), []
    with connect(ledger, embedder=embedder) as cache:
        cache.embed("hello")
        before = signal.signal(signal.SIGALRM, lambda *_: seen.append(cache.embed("hello")))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                assert same(cache.embed("hello"), embedder.vector("hello"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert len(seen) > 10
    assert embedder.calls == 1


def test_a_signal_handler_does_not_wait_for_its_own_thread(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder, seen = Counting(count, pause_s=0.5), []
    with connect(ledger, embedder=embedder) as cache:
        before = signal.signal(signal.SIGALRM, lambda *_: seen.append(cache.embed("hello")))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with at_most(2.0):
                vector = cache.embed("hello")
        finally:
            signal.signal(signal.SIGALRM, before)
        assert len(seen) == 1
        assert same(vector, seen[0])
        assert numbers(cache)["leases_held"] == 0


@pytest.mark.parametrize("what", ["garbage", "truncated", "another format"])
def test_a_table_that_cannot_be_read_is_an_empty_one(ledger: str, count: Path, what: str) -> None:
    embedder, directory = Counting(count), Instance.of(ledger).directory
    with ForkedDaemon(Path(ledger)) as daemon, connect(ledger, embedder=embedder) as cache:
        cache.embed("hello")
        daemon.stop()
    file = directory / "data.mdb"
    if what == "garbage":
        file.write_bytes(b"\xff" * 65_536)
    elif what == "truncated":
        os.truncate(file, 8_192)
    else:
        with lmdb.open(str(directory)) as env, env.begin(write=True) as transaction:
            transaction.put(b"h", msgpack.packb({"format": FORMAT + 1}))
    with connect(ledger, embedder=embedder) as cache:
        for text in ("hello", "you", "hello"):
            assert same(cache.embed(text), embedder.vector(text))
    assert embedder.calls == 3


# Arguments, and what is imported when.


def test_arguments(ledger: str, count: Path) -> None:
    embedder = Counting(count)
    with connect(ledger, embedder=embedder) as cache:
        for bad in ("", None, 1, b"x", "x" * (limits.TEXT_CHARS_MAX + 1)):
            with pytest.raises(InvalidTextError):
                cache.embed(bad)  # type: ignore[arg-type]
            with pytest.raises(InvalidTextError):
                cache.embed_many(["good", bad])  # type: ignore[list-item]
        for bad in ("text", b"text", 1, None):
            with pytest.raises(InvalidTextError):
                cache.embed_many(bad)  # type: ignore[arg-type]
        for model in ("", 1, [], "x" * 200, "a\nb"):
            with pytest.raises(ConfigError):
                cache.embed("hello", model)  # type: ignore[arg-type]
        assert embedder.calls == 0
        assert same(cache.embed("\ud800 half", "counting"), embedder.vector("\ud800 half"))
    for embedder_ in (1, "", object(), Counting(count, dimension=0)):
        with pytest.raises(ConfigError):
            connect(ledger, embedder=embedder_)  # type: ignore[arg-type]


def test_models_by_name(ledger: str, count: Path, daemon: ForkedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(ledger) as cache:
        vector = cache.embed("hello")
        assert vector.shape == (32,)
        assert same(cache.embed("hello", "local-bow"), vector)
        with pytest.raises(UnknownModelError):
            cache.embed("hello", "no such model")
    with connect(ledger, embedder=Counting(count)) as cache:
        assert cache.embed("hello").shape == (DIMENSION,)
        assert same(cache.embed("hello", "local-bow"), vector)
        assert same(cache.embed("hello", "counting"), cache.embed("hello"))
    with connect(ledger, embedder="local-bow") as cache:
        assert same(cache.embed("hello"), vector)
        assert cache.embed("").shape == cache.embed(None).shape == (32,)
    own = types.ModuleType("own_embedders")
    monkeypatch.setitem(sys.modules, "own_embedders", own)
    own.found = Counting(count)  # type: ignore[attr-defined]
    with connect(ledger, embedder="own_embedders:found") as cache:
        assert same(cache.embed("hello", "counting"), cache.embed("hello"))
    monkeypatch.setenv("PMM_EMBEDDER", "no such model")
    with connect(ledger) as cache, pytest.raises(UnknownModelError):
        cache.embed("hello")


def test_asyncio(ledger: str, count: Path, daemon: ForkedDaemon) -> None:
    embedder = Counting(count, pause_s=0.05)

    async def run() -> None:
        async with await connect_async(ledger, embedder=embedder) as cache:
            vectors = await asyncio.gather(*(cache.embed_async("hello") for _ in range(5)))
            assert all(same(vector, embedder.vector("hello")) for vector in vectors)
            matrix = await cache.embed_many_async(["hello", "you"])
            assert same(matrix[1], embedder.vector("you"))
            assert same(await cache.embed_async("you"), matrix[1])
            with pytest.raises(InvalidTextError):
                await cache.embed_async("")
        with pytest.raises(ClosedError):
            await cache.embed_async("hello")

    asyncio.run(run())
    assert embedder.calls == 2


def test_what_a_worker_that_embeds_nothing_imports(ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append("identity_adopt", "Ada", {})
    ran = daemons.run_python(
        "import sys; from pmm_shm_client import connect\n"
        "with connect(sys.argv[1]) as cache:\n"
        "    cache.metrics(), cache.metrics()\n"
        "print(sorted({'numpy', 'zmq'} & sys.modules.keys()))",
        ledger,
        forked=False,
    )
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
