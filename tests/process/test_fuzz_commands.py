"""The command sockets under attack: hostile messages and hostile peers, beside honest clients."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections import Counter

import msgpack
import pytest

from pmm_shm import limits
from pmm_shm.errors import CommandError
from pmm_shm.instance.paths import file_id
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import answers
from tests.support.attacks import (
    GROWTH_BYTES,
    MESSAGES,
    OPENED_LATE,
    PEAK_BYTES,
    Honest,
    anonymous_bytes,
    check_attack,
    dealer,
    descriptors,
    events,
    flood,
)
from tests.support.daemons import Daemon, until
from tests.support.fuzz_commands import Fuzzer, raw_peer, seed_of


@pytest.fixture
def daemon(ledger: str, start_daemon: StartDaemon) -> Daemon:
    """A daemon of a ledger with some events, without the periodic verification, so that nothing changes by itself."""
    answers.insert(ledger, events())
    return start_daemon(ledger, "--verify-every", "0", "--embedder", "none")


def test_hostile_messages(daemon: Daemon) -> None:
    """A short version of `tests/chaos/test_fuzz_commands.py`."""
    check_attack(daemon, seed_of(4), MESSAGES // 8)


# Peers that keep to no protocol.


def test_bytes_below_the_transport(daemon: Daemon) -> None:
    endpoints, fuzzer = find_endpoints(daemon.instance), Fuzzer(seed_of(4), file_id(daemon.instance.ledger))
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


def test_a_peer_that_takes_all_places_to_wait_loses_its_own(daemon: Daemon) -> None:
    with dealer(find_endpoints(daemon.instance).commands) as peer:
        for number in range(limits.WAITERS_MAX + 10):
            args = {"event_id": 2**62, "timeout_ms": 60_000}
            peer.send(protocol.Request(number, protocol.WAIT, args, file_id(daemon.instance.ledger)).pack())
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
            peer.send(protocol.Request(number, protocol.LEASE, args, file_id(daemon.instance.ledger)).pack())
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
