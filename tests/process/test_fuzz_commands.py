"""The command sockets under attack: hostile messages and hostile peers, beside honest clients."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import statistics
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from pmm_cached.memory import MemoryWatch, Suspects
from pmm_shm import limits
from pmm_shm.errors import CommandError
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints, find_endpoints
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import answers, ledgers
from tests.support.daemons import Daemon, until
from tests.support.fuzz_commands import Fuzzer, Message, command_of, raw_peer, seed_of

MESSAGES = 100_000
WARM_UP = 5_000
PEERS = 24
# What a daemon may grow by for hostile messages that end: 16,384 leases, 1,024 clients who wait, the queues.
GROWTH_BYTES = 64 << 20
# What it may grow by for messages that never end, before it hangs up: the limit, and what comes in meanwhile.
PEAK_BYTES = limits.PEERS_MEMORY_BYTES_MAX + (640 << 20)
LOG_BYTES = 64 << 10


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


OPENED_LATE = 8
"""Descriptors that a daemon opens once in its first seconds: connections to the ledger, each with its `-wal`."""


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def events() -> list[dict[str, Any]]:
    return [
        {"id": number, "ts": ledgers.TS.format(number), "kind": kind, "content": content, "meta": meta}
        for number, (kind, content, meta) in enumerate(
            [
                ("identity_adopt", "Ada", {}),
                ("commitment_open", "", {"cid": "c1", "text": "write"}),
                ("user", "hello", {}),
                ("assistant", "hello you", {}),
                ("reflection", "well", {}),
            ]
            * 20,
            1,
        )
    ]


class Honest:
    """A client that asks for something again and again, beside an attack; counts what it gave as commands."""

    def __init__(self, daemon: Daemon, deadline_s: float = limits.COMMAND_TIMEOUT_S) -> None:
        self._daemon = daemon
        self._deadline_s = deadline_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.latencies_s: list[float] = []
        self.errors: list[Exception] = []

    def _run(self) -> None:
        while not self._is_over.wait(0.005):
            started = time.monotonic()
            try:
                self._daemon.call(protocol.PING, timeout_s=self._deadline_s)
            except Exception as error:
                self.errors.append(error)
            self.latencies_s.append(time.monotonic() - started)

    def __enter__(self) -> Honest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def p99_s(self) -> float:
        return statistics.quantiles(self.latencies_s, n=100)[-1]


class Attackers:
    """Peers of both command sockets; every third reads its answers, the others never do."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._peers: dict[bool, list[zmq.Socket[bytes]]] = {}
        for is_admin, path in ((False, endpoints.commands), (True, endpoints.admin)):
            self._peers[is_admin] = [self._peer(path, number) for number in range(PEERS)]
        self._sent = 0

    def _peer(self, path: str, number: int) -> zmq.Socket[bytes]:
        peer = self._context.socket(zmq.DEALER)
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.SNDTIMEO, 30_000)
        peer.setsockopt(zmq.SNDHWM, 50)
        if number % 2:
            peer.setsockopt(zmq.ROUTING_ID, os.urandom(1 + number * 10))
        peer.connect("ipc://" + path)
        return peer

    def send(self, message: Message) -> None:
        self._sent += 1
        number = self._sent % PEERS
        peer = self._peers[message.is_admin][number]
        peer.send_multipart(message.frames)
        if number % 3 == 0:
            with contextlib.suppress(zmq.Again):
                while True:
                    peer.recv(zmq.NOBLOCK)

    def close(self) -> None:
        self._context.destroy(linger=0)


def check_attack(daemon: Daemon, seed: int, count: int) -> None:
    """Send `count` hostile messages; afterwards everything is as before, and the daemon has told command from no
    command as the page of the format does.
    """
    path, endpoints = daemon.instance.ledger, find_endpoints(daemon.instance)
    for command, args in (
        (protocol.VERIFY, {"fold": None}),
        (protocol.INVALIDATE, {"fold": None}),
        (protocol.INDEX, {}),
    ):
        # What is opened once and kept.
        daemon.call(command, args)
    fuzzer, rows = Fuzzer(seed), ledgers.raw_rows(path)
    before = daemon.stats()
    before_files = descriptors(daemon.pid)
    commands, own, kinds = Counter[str](), 0, Counter[str]()
    memory = log_bytes = 0
    attackers = Attackers(endpoints)
    started = time.monotonic()
    try:
        with Honest(daemon) as honest:
            for number, message in enumerate(fuzzer.messages(count)):
                if number == WARM_UP:
                    memory, log_bytes = anonymous_bytes(daemon.pid), daemon.log.stat().st_size
                kinds[message.kind] += 1
                request = command_of(message)
                commands[request["command"] if request else "malformed"] += 1
                attackers.send(message)

        with_valid = sum(commands.values()) - commands["malformed"]

        def is_through() -> bool:
            nonlocal own
            numbers, own = daemon.stats(), own + 1
            return (
                numbers["malformed_messages"] - before["malformed_messages"] >= commands["malformed"]
                and numbers["commands"] - before["commands"] >= with_valid + len(honest.latencies_s) + own
            )

        until(is_through, "the daemon has taken every message")
        took_s = time.monotonic() - started
    finally:
        attackers.close()
    until(lambda: descriptors(daemon.pid) <= before_files + OPENED_LATE, "descriptors are closed")
    numbers, own = daemon.stats(), own + 1
    print(f"{count} messages in {took_s:.1f} s, {with_valid} of them commands; honest p99 {honest.p99_s * 1e3:.1f} ms")
    print(f"grown by {(anonymous_bytes(daemon.pid) - memory) >> 10} KiB; {dict(kinds)}; {dict(commands)}")
    assert honest.errors == []
    assert honest.p99_s < limits.COMMAND_TIMEOUT_S / 2
    assert numbers["malformed_messages"] - before["malformed_messages"] == commands["malformed"]
    assert numbers["commands"] - before["commands"] == with_valid + own + len(honest.latencies_s)
    assert anonymous_bytes(daemon.pid) - memory < GROWTH_BYTES
    assert daemon.log.stat().st_size - log_bytes < LOG_BYTES
    assert "Traceback" not in daemon.log.read_text(encoding="utf-8")
    for name in ("hang_ups", "rebuild_waits_for_pid", "last_difference", "problem", "as_of", "events_folded"):
        assert numbers[name] == before[name], name
    assert numbers["embeddings"]["text_vectors"] == before["embeddings"]["text_vectors"]
    assert numbers["verifications_failed"] == 0
    assert ledgers.raw_rows(path) == rows
    with connect(path) as cache:
        assert cache.verify()
        assert answers.everything(cache) == answers.replayed(path)


@pytest.fixture
def daemon(ledger: str, start_daemon: StartDaemon) -> Daemon:
    """A daemon of a ledger with some events, without the periodic verification, so that nothing changes by itself."""
    answers.insert(ledger, events())
    return start_daemon(ledger, "--verify-every", "0", "--embedder", "none")


def test_100_000_hostile_messages(daemon: Daemon) -> None:
    check_attack(daemon, seed_of(4), MESSAGES)


@pytest.mark.slow
def test_hostile_messages_of_another_seed_each_time(daemon: Daemon) -> None:
    seed = seed_of(None)
    for number in range(5):
        check_attack(daemon, seed + number, MESSAGES)


# Peers that keep to no protocol.


def test_bytes_below_the_transport(daemon: Daemon) -> None:
    endpoints, fuzzer = find_endpoints(daemon.instance), Fuzzer(seed_of(4))
    before, files, memory = daemon.stats(), descriptors(daemon.pid), anonymous_bytes(daemon.pid)
    with Honest(daemon) as honest:
        for number in range(1_500):
            path = (endpoints.commands, endpoints.admin, endpoints.announcements)[number % 3]
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer, contextlib.suppress(OSError):
                peer.settimeout(1.0)
                peer.connect(path)
                peer.sendall(fuzzer.raw())
    assert honest.errors == []
    until(lambda: descriptors(daemon.pid) <= files + OPENED_LATE, "descriptors are closed")
    after = daemon.stats()
    assert after["commands"] - before["commands"] == len(honest.latencies_s) + 1
    assert anonymous_bytes(daemon.pid) - memory < GROWTH_BYTES


def flood(connect_: Callable[[], socket.socket], data: bytes, duration_s: float, pid: int) -> tuple[int, int]:
    """Send without end, and connect again when hung up on; returns (bytes sent, the daemon's largest memory)."""
    sent = peak = 0
    ends = time.monotonic() + duration_s
    while time.monotonic() < ends:
        with contextlib.suppress(OSError), connect_() as peer:
            while time.monotonic() < ends:
                peer.sendall(data)
                sent += len(data)
                peak = max(peak, anonymous_bytes(pid))
    return sent, peak


def long_frame(flags: int, body: bytes) -> bytes:
    return bytes((flags | 2,)) + struct.pack(">Q", len(body)) + body


ENDLESS = {
    "empty frames": ("commands", b"DEALER", b"\x01\x00" * 50_000),
    "large frames": ("commands", b"DEALER", long_frame(1, bytes(60_000)) * 10),
    "frames to the announcements": ("announcements", b"SUB", b"\x01\x00" * 50_000),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_message_without_end_is_hung_up_on(daemon: Daemon, case: str) -> None:
    """libzmq keeps every frame of a message until the last has come, without any bound of its own."""
    name, kind, data = ENDLESS[case]
    path = getattr(find_endpoints(daemon.instance), name)
    memory = anonymous_bytes(daemon.pid)
    # A short deadline: one that waits five seconds for a lost answer would not notice that others are lost, too.
    with Honest(daemon, 0.5) as honest:
        sent, peak = flood(lambda: raw_peer(path, kind), data, 2.5, daemon.pid)
    lost = f"{len(honest.errors)} of {len(honest.latencies_s)} lost"
    print(f"{sent >> 20} MiB sent, peak {peak >> 20} MiB, p99 {honest.p99_s * 1e3:.0f} ms, {lost}")
    assert peak - memory < PEAK_BYTES
    assert daemon.stats()["hang_ups"] >= 1
    # One that asks in the moment of a hang-up may be meant, too; most are answered.
    assert len(honest.errors) < len(honest.latencies_s) / 4
    until(lambda: anonymous_bytes(daemon.pid) - memory < limits.PEERS_MEMORY_BYTES_MAX, "the memory is given back")


def test_a_message_over_many_turns_is_answered_and_keeps_nobody_waiting(daemon: Daemon) -> None:
    path = find_endpoints(daemon.instance).commands
    with raw_peer(path) as peer, Honest(daemon) as honest:
        peer.sendall(b"\x01\x00" * 300_000 + b"\x00\x01\xc0")
        peer.settimeout(30.0)
        data = b""
        while b"a message of 300001 frames" not in data:
            more = peer.recv(4_096)
            assert more
            data += more
    assert honest.errors == []
    assert daemon.stats()["malformed_messages"] == 1


def test_subscriptions_without_number_cost_bounded_memory(daemon: Daemon) -> None:
    path = find_endpoints(daemon.instance).announcements
    memory = anonymous_bytes(daemon.pid)
    data = b"".join(long_frame(0, b"\x01" + os.urandom(500)) for _ in range(2_000))
    is_over = threading.Event()

    def append() -> None:
        with connect(daemon.instance.ledger) as cache:
            while not is_over.wait(0.01):
                cache.append("debug", "", {})

    writer = threading.Thread(target=append)
    writer.start()
    try:
        with Honest(daemon, 0.5) as honest:
            _, peak = flood(lambda: raw_peer(path, b"SUB"), data, 2.5, daemon.pid)
    finally:
        is_over.set()
        writer.join()
    assert peak - memory < PEAK_BYTES
    assert len(honest.errors) < len(honest.latencies_s) / 4
    with connect(daemon.instance.ledger) as cache:
        assert cache.verify()


def test_connections_without_number_leave_room_for_honest_ones(daemon: Daemon) -> None:
    """libzmq aborts a process that has no descriptor left for a connection."""
    endpoints = find_endpoints(daemon.instance)
    daemon.stats()
    files = descriptors(daemon.pid)
    with contextlib.ExitStack() as stack, Honest(daemon) as honest:
        for number in range(3_000):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connect_patiently(peer, (endpoints.commands, endpoints.announcements)[number % 2])
        until(lambda: daemon.stats()["connections"] <= 2 * limits.CONNECTIONS_MAX + 64, "there are few connections")
        assert daemon.process.poll() is None
        assert descriptors(daemon.pid) < files + 2 * limits.CONNECTIONS_MAX + 100
        assert daemon.stats()["hang_ups"] > 1_500
        time.sleep(0.1)
    assert honest.errors == []
    until(lambda: descriptors(daemon.pid) <= files + OPENED_LATE, "descriptors are closed")
    assert len(daemon.log.read_text(encoding="utf-8").splitlines()) < 100


def connect_patiently(peer: socket.socket, path: str) -> None:
    def is_connected() -> bool:
        try:
            peer.connect(path)
        except BlockingIOError:
            # The backlog is full.
            return False
        return True

    peer.settimeout(5.0)
    until(is_connected, f"{path} accepts")


@contextlib.contextmanager
def dealer(path: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.SNDTIMEO, 30_000)
        peer.connect("ipc://" + path)
        yield peer


def test_a_peer_that_reads_no_answer_costs_bounded_memory(daemon: Daemon) -> None:
    for _ in range(200):
        daemon.stats()
    memory, before = anonymous_bytes(daemon.pid), daemon.stats()["commands"]
    with dealer(find_endpoints(daemon.instance).commands) as peer:
        peer.setsockopt(zmq.RCVHWM, 1)
        for number in range(10_000):
            peer.send(protocol.Request(number, protocol.STATS, {}).pack())
        with Honest(daemon) as honest:
            until(lambda: daemon.stats()["commands"] - before > 10_000, "all are carried out")
    assert honest.errors == []
    assert anonymous_bytes(daemon.pid) - memory < 16 << 20


def test_a_peer_that_takes_all_places_to_wait_loses_its_own(daemon: Daemon) -> None:
    with dealer(find_endpoints(daemon.instance).commands) as peer:
        for number in range(limits.WAITERS_MAX + 10):
            args = {"event_id": 2**62, "timeout_ms": 60_000}
            peer.send(protocol.Request(number, protocol.WAIT, args).pack())
        for _ in range(10):
            assert msgpack.unpackb(peer.recv())["error"]["code"] == "busy"
        # Another peer waits in the place of the oldest of these.
        assert daemon.call(protocol.WAIT, {"event_id": 2**62, "timeout_ms": 100}) == {"reached": False, "as_of": 100}
        answer = msgpack.unpackb(peer.recv())
        assert (answer["id"], answer["error"]["code"]) == (0, "busy")


def test_leases_that_thousands_wait_for_are_refused_and_not_queued(daemon: Daemon) -> None:
    key = hashlib.sha256(b"text").digest()
    args = {"model": "m", "keys": [key], "wait_ms": 60_000}
    assert daemon.call(protocol.LEASE, args | {"wait_ms": 0})["granted"]
    with dealer(find_endpoints(daemon.instance).commands) as peer, Honest(daemon) as honest:
        for number in range(limits.WAITERS_MAX + 10):
            peer.send(protocol.Request(number, protocol.LEASE, args).pack())
        codes = Counter[str]()
        for _ in range(10):
            codes[msgpack.unpackb(peer.recv())["error"]["code"]] += 1
    assert codes == {"busy": 10}
    assert honest.errors == []


def test_roles_without_number_are_refused(daemon: Daemon) -> None:
    until(lambda: daemon.call(protocol.CLAIM, {"role": "first", "token": None})["token"], "roles are given")

    def claim_all() -> None:
        for number in range(limits.ROLES_MAX):
            daemon.call(protocol.CLAIM, {"role": f"role {number}", "token": None})

    with pytest.raises(CommandError, match="64 roles are held"):
        claim_all()


# The watch over the memory, with a clock of its own.


def test_what_does_not_go_back_was_not_the_peers() -> None:
    size, now, trims = [100], [0.0], [0]

    def trim() -> None:
        trims[0] += 1

    watch = MemoryWatch(lambda: size[0], trim, lambda: now[0])
    size[0] += limits.PEERS_MEMORY_BYTES_MAX
    assert watch.check() is Suspects.NONE
    size[0] += 1
    assert (watch.check(), trims[0]) == (Suspects.WITH_UNREAD_DATA, 0)
    assert (watch.check(), trims[0]) == (Suspects.ALL, 1)
    now[0] += 0.6
    assert watch.check() is Suspects.NONE
    size[0] += limits.PEERS_MEMORY_BYTES_MAX
    assert watch.check() is Suspects.NONE
    size[0] += 1
    assert watch.check() is Suspects.WITH_UNREAD_DATA


def test_memory_that_goes_back_makes_the_base_small_again() -> None:
    size = [100 << 20]
    watch = MemoryWatch(lambda: size[0], lambda: None, lambda: 0.0)
    size[0] = 300 << 20
    assert watch.check() is Suspects.WITH_UNREAD_DATA
    size[0] = 50 << 20
    assert watch.check() is Suspects.NONE
    size[0] = 190 << 20
    assert watch.check() is Suspects.WITH_UNREAD_DATA
    watch.rebase()
    assert watch.check() is Suspects.NONE


def test_what_is_free_does_not_raise_the_base() -> None:
    """Or a peer that comes, sends and goes would make room for more each time."""
    size = [100 << 20]

    def trim() -> None:
        size[0] = 100 << 20

    watch = MemoryWatch(lambda: size[0], trim, lambda: 0.0)
    size[0] = 220 << 20
    watch.rebase()
    size[0] = 230 << 20
    assert watch.check() is Suspects.WITH_UNREAD_DATA
