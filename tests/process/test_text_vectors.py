"""The daemon's side of the text vectors: its four commands, raw, and the table with its bound."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from pmm_shm import limits
from pmm_shm.errors import CommandError
from pmm_shm.instance.paths import Instance, file_id
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_client.commands import CommandConnection, call
from tests.support import daemons
from tests.support.fork_daemon import ForkedDaemon
from tests.support.waiting import at_most

MODEL = "model"
ONE = struct.pack("<2f", 1.0, 2.0)
TOKEN_MAX = 2**63 - 1


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "ledger.db"
    EventLog(path).close()
    return path


@pytest.fixture(scope="module")
def served(path: Path) -> Iterator[Instance]:
    """One daemon that all messages of this file go to."""
    with ForkedDaemon(path):
        yield Instance.of(path)


def ask(instance: Instance, command: str, timeout_s: float = 10.0, **args: Any) -> Any:
    return call(instance, command, args, timeout_s)


def lease(instance: Instance, *numbers: int, wait_ms: int = 0, model: str = MODEL) -> Any:
    return ask(instance, "lease", model=model, keys=[key(number) for number in numbers], wait_ms=wait_ms)


def put(instance: Instance, *entries: tuple[int, int, bytes], model: str = MODEL) -> Any:
    vectors = [[key(number), token, vector] for number, token, vector in entries]
    return ask(instance, "put", model=model, vectors=vectors)


def numbers(instance: Instance) -> dict[str, int]:
    return call(instance, protocol.STATS, {}, 10.0)["embeddings"]  # type: ignore[no-any-return]


def test_lease_put_ready(served: Instance) -> None:
    before = numbers(served)
    answer = lease(served, 1, 2)
    assert set(answer) == {"granted", "ready", "held", "failed"}
    (one, first), (two, second) = answer["granted"]
    assert (one, two, answer["ready"], answer["held"]) == (0, 1, [], [])
    assert lease(served, 2, 1) == {"granted": [], "ready": [], "held": [0, 1], "failed": []}
    assert ask(served, "renew", tokens=[first, second, 5]) == {"renewed": 2}
    assert put(served, (1, first, ONE), (2, first, ONE)) == {"stored": 1, "refused": 1}
    assert ask(served, "release", tokens=[second]) == {}
    again = lease(served, 1, 2)
    assert again["ready"] == [0]
    assert again["granted"][0][1] > second
    ask(served, "release", tokens=[again["granted"][0][1]])
    after = numbers(served)
    assert after["text_vectors"] == before["text_vectors"] + 1
    assert after["late_puts"] == before["late_puts"] + 1
    # Those of other tests may end meanwhile.
    assert after["leases_held"] <= before["leases_held"]
    assert after["text_vectors_max"] == limits.TEXT_VECTORS_MAX


def test_who_waits_is_answered_at_once_when_it_is_stored(served: Instance) -> None:
    ((_, token),) = lease(served, 10)["granted"]
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(lease(served, 10, wait_ms=20_000)))
    waiting.start()
    daemons.until(lambda: numbers(served)["lease_waits"] > 0)
    with at_most(1.0):
        put(served, (10, token, ONE))
        waiting.join()
    assert answers == [{"granted": [], "ready": [0], "held": [], "failed": []}]


def test_waiting_ends(served: Instance) -> None:
    lease(served, 11)
    started = time.monotonic()
    assert lease(served, 11, wait_ms=100) == {"granted": [], "ready": [], "held": [0], "failed": []}
    assert time.monotonic() - started > 0.09


def test_another_dimension_is_refused_and_the_leases_end(served: Instance) -> None:
    ((_, token),) = lease(served, 20, model="two")["granted"]
    put(served, (20, token, ONE), model="two")
    ((_, token),) = lease(served, 21, model="two")["granted"]
    with pytest.raises(CommandError, match="dimension"):
        put(served, (21, token, ONE * 2), model="two")
    ((_, token),) = lease(served, 21, model="two")["granted"]
    assert put(served, (21, token, ONE), model="two") == {"stored": 1, "refused": 0}


def test_the_largest_vector_fits(served: Instance) -> None:
    vector = os.urandom(2) + b"\0" * (limits.DIMENSION_MAX * 4 - 2)
    ((_, token),) = lease(served, 30, model="large")["granted"]
    assert put(served, (30, token, vector), model="large") == {"stored": 1, "refused": 0}


GOOD = {"model": MODEL, "keys": [key(100)], "wait_ms": 0}
NAN = struct.pack("<2f", 1.0, float("nan"))
MALFORMED: dict[str, tuple[str, dict[str, Any]]] = {
    "no keys": ("lease", {**GOOD, "keys": []}),
    "too many keys": ("lease", {**GOOD, "keys": [key(number) for number in range(limits.LEASE_KEYS_MAX + 1)]}),
    "a key twice": ("lease", {**GOOD, "keys": [key(1), key(1)]}),
    "a short key": ("lease", {**GOOD, "keys": [b"x" * 31]}),
    "a key of text": ("lease", {**GOOD, "keys": ["x" * 32]}),
    "keys that are a map": ("lease", {**GOOD, "keys": {"a": 1}}),
    "keys of lists": ("lease", {**GOOD, "keys": [[], {}]}),
    "no model": ("lease", {**GOOD, "model": ""}),
    "a long model": ("lease", {**GOOD, "model": "m" * (limits.MODEL_NAME_CHARS_MAX + 1)}),
    "an unprintable model": ("lease", {**GOOD, "model": "a\nb"}),
    "a model of bytes": ("lease", {**GOOD, "model": b"model"}),
    "a wait of years": ("lease", {**GOOD, "wait_ms": protocol.LEASE_WAIT_MS_MAX + 1}),
    "a negative wait": ("lease", {**GOOD, "wait_ms": -1}),
    "a wait of a float": ("lease", {**GOOD, "wait_ms": 1.0}),
    "one argument too many": ("lease", {**GOOD, "more": 1}),
    "one argument too few": ("lease", {"model": MODEL, "keys": [key(1)]}),
    "renew without tokens": ("renew", {"tokens": []}),
    "renew a token of text": ("renew", {"tokens": ["1"]}),
    "renew true": ("renew", {"tokens": [True]}),
    "renew a negative token": ("renew", {"tokens": [-1]}),
    "renew a token twice": ("renew", {"tokens": [1, 1]}),
    "renew a token over 63 bits": ("renew", {"tokens": [TOKEN_MAX + 1]}),
    "renew too many": ("renew", {"tokens": list(range(limits.LEASE_KEYS_MAX + 1))}),
    "release a map": ("release", {"tokens": {"1": 1}}),
    "release nothing": ("release", {}),
    "put nothing": ("put", {"model": MODEL, "vectors": []}),
    "put a pair": ("put", {"model": MODEL, "vectors": [[key(1), 1]]}),
    "put numbers": ("put", {"model": MODEL, "vectors": [[key(1), 1, [1.0, 2.0]]]}),
    "put text": ("put", {"model": MODEL, "vectors": [[key(1), 1, "abcd"]]}),
    "put an empty vector": ("put", {"model": MODEL, "vectors": [[key(1), 1, b""]]}),
    "put half a number": ("put", {"model": MODEL, "vectors": [[key(1), 1, b"\0" * 6]]}),
    "put NaN": ("put", {"model": MODEL, "vectors": [[key(1), 1, NAN]]}),
    "put infinity": ("put", {"model": MODEL, "vectors": [[key(1), 1, struct.pack("<f", float("inf"))]]}),
    "put two dimensions": ("put", {"model": MODEL, "vectors": [[key(1), 1, ONE], [key(2), 2, ONE * 2]]}),
    "put too long a vector": (
        "put",
        {"model": MODEL, "vectors": [[key(1), 1, b"\0" * 4 * (limits.DIMENSION_MAX + 1)]]},
    ),
    "put a key twice": ("put", {"model": MODEL, "vectors": [[key(1), 1, ONE], [key(1), 2, ONE]]}),
    "put a token of bytes": ("put", {"model": MODEL, "vectors": [[key(1), b"1", ONE]]}),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_message_is_refused_and_does_nothing(served: Instance, case: str) -> None:
    command, args = MALFORMED[case]
    daemons.until(lambda: numbers(served)["tables"], "the indexer's first round")
    before = numbers(served)
    message = protocol.Request(7, command, args, file_id(served.ledger)).pack()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect("ipc://" + find_endpoints(served).commands)
        dealer.send(message)
        assert dealer.poll(10_000)
        answer = msgpack.unpackb(dealer.recv())
    assert (answer["id"], answer["ok"], answer["error"]["code"]) == (7, False, "malformed")
    assert numbers(served) == before


def rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0])


def test_a_flood_of_leases_is_bounded(path: Path, served: Instance) -> None:
    """More leases than there may be, given back and taken again, and puts with tokens that are none."""
    pid = find_endpoints(served).pid

    def flood(begin: int, rounds: int) -> int:
        refused, size = 0, limits.LEASE_KEYS_MAX
        with CommandConnection(served, protocol.LEASE) as connection:
            for number in range(rounds):
                keys = [key(begin + number * size + index) for index in range(size)]
                try:
                    connection.ask("lease", {"model": MODEL, "keys": keys, "wait_ms": 0}, 10.0)
                    connection.ask("put", {"model": MODEL, "vectors": [[one, 1, ONE] for one in keys]}, 10.0)
                except CommandError:
                    refused += 1
        return refused

    rounds = limits.LEASES_MAX // limits.LEASE_KEYS_MAX
    assert flood(1 << 20, rounds + 8) >= 1
    daemons.until(lambda: numbers(served)["leases_held"] == 0, "the leases expire")
    before = rss_kib(pid)
    flood(1 << 21, rounds + 8)
    daemons.until(lambda: numbers(served)["leases_held"] == 0, "the leases expire")
    assert rss_kib(pid) < before + 16_384
    assert numbers(served)["text_vectors"] < 100


# The table.


def store(instance: Instance, *them: int) -> None:
    for number in them:
        ((_, token),) = lease(instance, number)["granted"]
        assert put(instance, (number, token, ONE)) == {"stored": 1, "refused": 0}


def stored(instance: Instance, *them: int) -> list[int]:
    answer = lease(instance, *them)
    if answer["granted"]:
        ask(instance, "release", tokens=[token for _, token in answer["granted"]])
    return [them[index] for index in answer["ready"]]


def test_what_was_stored_first_goes_first_and_restarts_keep_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    EventLog(path).close()
    instance, them = Instance.of(path), range(10)
    with ForkedDaemon(path, "--text-vectors-max", "6"):
        store(instance, *them)
        assert stored(instance, *them) == [4, 5, 6, 7, 8, 9]
        assert numbers(instance)["text_vectors"] == numbers(instance)["text_vectors_max"] == 6
    with ForkedDaemon(path, "--text-vectors-max", "6"):
        assert stored(instance, *them) == [4, 5, 6, 7, 8, 9]
        store(instance, 0)
        assert stored(instance, *them) == [0, 5, 6, 7, 8, 9]
    with ForkedDaemon(path, "--text-vectors-max", "2") as daemon:
        assert stored(instance, *them) == [0, 9]
        assert numbers(instance)["text_vectors"] == 2
        daemon.stop()
    with ForkedDaemon(path):
        assert stored(instance, *them) == [0, 9]


def test_a_token_of_the_daemon_before_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    EventLog(path).close()
    instance = Instance.of(path)
    with ForkedDaemon(path):
        ((_, token),) = lease(instance, 1)["granted"]
    with ForkedDaemon(path):
        lease(instance, 1)
        assert put(instance, (1, token, ONE)) == {"stored": 0, "refused": 1}
        assert numbers(instance)["late_puts"] == 1


def test_a_stopping_daemon_answers_who_waits(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    EventLog(path).close()
    instance = Instance.of(path)
    answers: list[Any] = []
    with ForkedDaemon(path) as daemon:
        lease(instance, 1)
        waiting = threading.Thread(target=lambda: answers.append(lease(instance, 1, wait_ms=20_000)))
        waiting.start()
        daemons.until(lambda: numbers(instance)["lease_waits"] == 1)
        with at_most(1.0):
            assert daemon.stop() == 0
            waiting.join()
    assert answers == [{"granted": [], "ready": [], "held": [0], "failed": []}]


def test_the_bound_must_be_at_least_one(path: Path) -> None:
    assert daemons.run_daemon("--text-vectors-max", "0", str(path)).returncode == 2
