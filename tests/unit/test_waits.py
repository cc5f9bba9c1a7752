"""Clients that wait for an event, the watch over memory, and the way of a result, without a daemon."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from pmm_cached.client_call import ClientCall
from pmm_cached.peers import MemoryWatch, Suspects
from pmm_cached.status import Status
from pmm_cached.waits import Waits
from pmm_shm import limits
from pmm_shm.errors import CommandError
from pmm_shm.projection.verification import VerifyReport
from pmm_shm.wire import protocol
from pmm_shm.wire.results import LeaseResult, WaitResult, read_result


class Clients:
    """Waits, with a clock to turn by hand; `replies` are (client, request id, result or error)."""

    def __init__(self) -> None:
        self.now = 100.0
        self.status = Status("x")
        self.waits = Waits(self.status, lambda: self.now)
        self.replies: list[tuple[bytes, int, Any]] = []

    def wait(self, client: bytes, request_id: int, event_id: int, timeout_ms: int = 1_000) -> None:
        args = {"event_id": event_id, "timeout_ms": timeout_ms}

        def send(data: bytes) -> None:
            reply = msgpack.unpackb(data)
            self.replies.append((client, reply["id"], reply.get("result") or reply["error"]["code"]))

        self.waits.add(ClientCall(protocol.Request(request_id, protocol.WAIT, args, None), client, send))

    def publish(self, as_of: int) -> None:
        self.status.as_of, self.status.is_published = as_of, True
        self.waits.advance()


def test_a_wait_ends_with_its_event_or_its_time() -> None:
    clients = Clients()
    assert clients.waits.next_deadline() is None
    clients.wait(b"a", 1, 5, 2_000)
    clients.wait(b"b", 2, 7)
    assert clients.waits.next_deadline() == 101.0
    clients.publish(5)
    assert clients.replies == [(b"a", 1, {"reached": True, "as_of": 5})]
    clients.now += 1.0
    clients.waits.advance()
    assert clients.replies[1:] == [(b"b", 2, {"reached": False, "as_of": 5})]
    assert len(clients.waits) == 0


def test_nothing_is_reached_until_something_is_published() -> None:
    clients = Clients()
    clients.wait(b"a", 1, 0)
    clients.waits.advance()
    assert clients.replies == []
    clients.publish(0)
    assert clients.replies == [(b"a", 1, {"reached": True, "as_of": 0})]


def test_room_is_made_by_the_client_with_most_waits() -> None:
    clients = Clients()
    assert not clients.waits.make_room_for(b"a")
    for number in range(3):
        clients.wait(b"a", number, 5)
    clients.wait(b"b", 3, 5)
    assert not clients.waits.make_room_for(b"a")
    assert clients.waits.make_room_for(b"b")
    assert clients.replies == [(b"a", 0, "busy")]
    # Two waits against one, and then two: to take turns would help nobody.
    assert not clients.waits.make_room_for(b"b")


def test_memory_is_checked_while_somebody_is_connected_and_a_second_longer() -> None:
    now, checks = [10.0], [0]

    def anonymous_bytes() -> int:
        checks[0] += 1
        return 100

    watch = MemoryWatch(anonymous_bytes, lambda: None, lambda: now[0])
    checks[0] = 0
    assert (watch.watch(is_anyone_connected=False), watch.next_deadline(), checks[0]) == (Suspects.NONE, None, 0)
    watch.watch(is_anyone_connected=True)
    assert watch.next_deadline() == pytest.approx(10.0 + limits.PEERS_MEMORY_CHECK_S)
    before = checks[0]
    watch.watch(is_anyone_connected=True)
    assert checks[0] == before
    now[0] += limits.PEERS_MEMORY_CHECK_S
    watch.watch(is_anyone_connected=False)
    assert checks[0] == before + 1
    now[0] += 1.0
    watch.watch(is_anyone_connected=False)
    assert watch.next_deadline() is None


@pytest.mark.parametrize(
    "result",
    [WaitResult(True, 7), LeaseResult(((0, 9),), (1,), (), (2,)), VerifyReport(False, 3, ("stage",), 4, 1, "a row")],
)
def test_a_result_comes_back_as_it_was(result: Any) -> None:
    fields = {name: getattr(result, name) for name in type(result).__annotations__}
    sent = msgpack.unpackb(msgpack.packb(fields | {"later": 1}))
    found = read_result(type(result), sent)
    assert type(found) is type(result)
    assert {name: _tuples(getattr(found, name)) for name in fields} == {name: _tuples(fields[name]) for name in fields}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("sent", [None, 3, [], {"reached": True}, "text"])
def test_a_result_without_its_fields_is_an_error(sent: Any) -> None:
    with pytest.raises(CommandError, match="WaitResult"):
        read_result(WaitResult, sent)
