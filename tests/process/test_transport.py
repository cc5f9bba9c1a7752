"""The transport: unix sockets by absolute paths and nothing else; deadlines that hold whatever the other side sends."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import re
import socket as sockets
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pmm_shm.errors import DaemonAbsentError, DaemonTimeoutError
from pmm_shm.instance.paths import Instance, file_id
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints, check_listening, find_endpoints, record_endpoints
from pmm_shm_client import EventLog, connect, connect_async
from pmm_shm_client.commands import CommandConnection, call
from tests.conftest import StartDaemon
from tests.support import answers
from tests.support.addresses import WRONG
from tests.support.sources import sources
from tests.support.waiting import at_most

KINDS = ["commands", "admin", "announcements", "reports"]


@pytest.mark.parametrize("field", KINDS[:3])
@pytest.mark.parametrize("case", WRONG)
def test_a_record_of_other_addresses_connects_nowhere(ledger: str, case: str, field: str) -> None:
    instance = Instance.of(ledger)
    instance.directory.mkdir()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        paths = {name: f"{name}.sock" for name in KINDS}
        paths[field] = WRONG[case].format(port=port)
        instance.endpoints_file.write_text(
            json.dumps({"directory": file_id(instance.directory), **paths, "pid": 1}), encoding="utf-8"
        )
        with connect(ledger) as cache, pytest.raises(DaemonAbsentError, match="no daemon serves it"):
            cache.wait_for(10**6, 1.0)
        with pytest.raises(DaemonAbsentError):
            CommandConnection(instance, protocol.VERIFY)

        async def listen() -> None:
            async with await connect_async(ledger) as cache:
                async for _ in cache.announcements():
                    raise AssertionError("nobody announces")

        with pytest.raises(DaemonAbsentError):
            asyncio.run(listen())
        assert not router.poll(20)
    with connect(ledger) as cache:
        assert answers.everything(cache) == answers.replayed(ledger)


@pytest.mark.parametrize("place", ["relative.sock", "\0pmm-shm-abstract"])
def test_a_record_leads_to_no_other_socket_even_where_somebody_listens(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    instance = Instance.of(ledger)
    instance.directory.mkdir()
    monkeypatch.chdir(tmp_path)
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as listener:
        listener.bind(place)
        listener.listen()
        listener.setblocking(False)
        record = {"directory": file_id(instance.directory), **dict.fromkeys(KINDS, place), "reports": "", "pid": 1}
        instance.endpoints_file.write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(DaemonAbsentError, match="no daemon serves it"):
            call(instance, protocol.PING, {}, 1.0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_relative_base_directory_is_made_absolute(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_daemon: StartDaemon
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMM_SHM_DIR", "base")
    (tmp_path / "base").mkdir(mode=0o700)
    daemon = start_daemon(ledger)
    assert find_endpoints(daemon.instance).commands.startswith("/")
    with connect(ledger) as cache:
        assert cache.wait_for(cache.append("user", "hello", {}), 30.0) == 1


SCHEME = re.compile(r"(ipc|tcp|inproc|udp|pgm|epgm|norm|vmci|wss?|tipc|vsock|hvsocket|gssapi)://")


def test_only_one_function_makes_addresses() -> None:
    """Every constant that begins an address stands there, and every socket gets its address from it."""
    makers, arguments = [], []
    for name, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and SCHEME.match(node.value):
                makers.append(name)
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("bind", "connect", "bind_to_random_port")
                and "socket" in ast.unparse(node.func.value)
            ):
                arguments.append((name, ast.unparse(node.args[0])))
    assert makers == ["pmm_shm/wire/endpoints.py"]
    # Unix datagram sockets of the workers' reports have paths, and the metrics stand on the loopback interface alone.
    beside = {
        ("pmm_shm_client/reporting.py", "path"),
        ("pmm_cached/reports.py", "path"),
        ("pmm_cached/prometheus.py", "self.server_address"),
    }
    arguments = [one for one in arguments if (one[0].split("/", 1)[1], one[1]) not in beside]
    assert sorted(arguments) == [
        ("client/pmm_shm_client/aio.py", "address_of(path)"),
        ("client/pmm_shm_client/commands.py", "address"),
        ("server/pmm_cached/sockets.py", "address_of(path)"),
    ]


# A daemon that answers with anything but an answer, without end.


@pytest.fixture
def near() -> Iterator[str]:
    """A ledger whose path leaves room for the names of sockets, however deep the tests' own folders lie."""
    with tempfile.TemporaryDirectory(prefix="pmm-") as folder:
        path = f"{folder}/ledger.db"
        EventLog(path).close()
        yield path


@contextlib.contextmanager
def flooding(ledger: str, frames: list[bytes]) -> Iterator[Instance]:
    """A daemon that sends `frames` again and again to whoever has asked it something."""
    instance = Instance.of(ledger)
    instance.directory.mkdir(mode=0o700, exist_ok=True)
    names = (str(instance.directory / f"{name}.sock") for name in ("commands", "admin", "announcements"))
    endpoints = Endpoints(*names, pid=1)
    record_endpoints(instance, endpoints)
    is_over = threading.Event()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.SNDHWM, 1_000)
        router.bind("ipc://" + endpoints.commands)
        check_listening(endpoints.commands)

        def serve() -> None:
            peers = set()
            while not is_over.is_set():
                while router.poll(0 if peers else 20):
                    peers.add(router.recv_multipart()[0])
                for peer in peers:
                    router.send_multipart([peer, *frames])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield instance
        finally:
            is_over.set()
            thread.join()


FLOODS: dict[str, list[bytes]] = {
    "garbage": [b"\xc1" * 100],
    "empty frames": [b""],
    "answers to another": [protocol.pack_result(2**62, {"pid": 1, "as_of": 1})],
    "many frames": [b"x"] * 50,
    "large garbage": [b"\xc1" * (1 << 20)],
}


@pytest.mark.parametrize("case", FLOODS)
def test_a_client_gives_up_at_its_deadline_under_a_flood(near: str, case: str) -> None:
    with flooding(near, FLOODS[case]) as instance:
        with at_most(0.5), pytest.raises(DaemonTimeoutError, match=r"did not answer ping within 0\.5 s"):
            call(instance, protocol.PING, {}, 0.5)

        async def wait() -> None:
            async with await connect_async(near) as cache:
                await cache.wait_for_async(10**6, 0.5)

        with at_most(0.5), pytest.raises(DaemonTimeoutError):
            asyncio.run(wait())


def test_a_line_to_a_daemon_that_stands_still_never_blocks(ledger: str, start_daemon: StartDaemon) -> None:
    """More commands than the queues on the way take, each within its deadline."""
    daemon = start_daemon(ledger)
    with CommandConnection(daemon.instance, protocol.PUT) as connection:
        daemon.freeze()
        try:
            for _ in range(40):
                args = {"model": "m", "vectors": [[bytes(32), 1, bytes(4 * 8_000)]]}
                with at_most(0.02), pytest.raises(DaemonTimeoutError):
                    connection.ask(protocol.PUT, args, 0.02)
        finally:
            daemon.thaw()
