"""The transport: unix sockets by absolute paths and nothing else; deadlines that hold whatever the other side sends."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from pmm_shm import limits
from pmm_shm.errors import CommandError, DaemonError
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import address_of
from tests.support.addresses import WRONG


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_absolute_path_is_no_address(case: str) -> None:
    with pytest.raises(DaemonError, match="absolute path"):
        address_of(WRONG[case])


def test_an_absolute_path_is_an_address() -> None:
    assert address_of("/run/é.sock") == "ipc:///run/é.sock"
    assert address_of("/" + "x" * (limits.SOCKET_PATH_BYTES_MAX - 1)).startswith("ipc:///x")


# A daemon that answers with anything but an answer, without end.


def test_an_error_of_the_daemons_is_one_short_line(ledger: str) -> None:
    error: dict[str, Any] = {"v": 2, "id": 7, "ok": False, "error": {"code": "failed", "message": "a\nb " * 1_000_000}}
    with pytest.raises(CommandError) as caught:
        protocol.unpack_reply(msgpack.packb(error), 7)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 1_000
