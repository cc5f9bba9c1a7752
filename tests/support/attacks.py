"""Hostile messages, in their thousands, and what a daemon may grow by for them."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from pmm_shm import limits
from pmm_shm.instance.paths import file_id
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints, find_endpoints
from pmm_shm_client import connect
from tests.support import answers, ledgers
from tests.support.daemons import Daemon, until
from tests.support.fuzz_commands import OTHER_LEDGER, Fuzzer, Message, command_of

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
    ours = file_id(path)
    fuzzer, rows = Fuzzer(seed, ours), ledgers.raw_rows(path)
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
                request = command_of(message, ours)
                commands[request["command"] if request else "malformed"] += 1
                attackers.send(message)

        with_valid = sum(commands.values()) - commands["malformed"] - commands[OTHER_LEDGER]

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


@contextlib.contextmanager
def dealer(path: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.SNDTIMEO, 30_000)
        peer.connect("ipc://" + path)
        yield peer
