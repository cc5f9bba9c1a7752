"""A client's request on its way through the daemon, together with the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pmm_shm.wire.protocol import Request, pack_error, pack_result


@dataclass(frozen=True)
class ClientCall:
    """A request that is answered once, by `succeed` or `fail`; only in the command thread.

    Attributes:
        client: ZeroMQ's identity of the connection that it came on.
        send: sends the packed reply there, or drops it if the client is gone or does not read.
    """

    request: Request
    client: bytes
    send: Callable[[bytes], None]

    @property
    def args(self) -> Mapping[str, Any]:
        return self.request.args

    def succeed(self, result: Mapping[str, Any]) -> None:
        self.send(pack_result(self.request.id, result))

    def fail(self, code: str, message: str) -> None:
        self.send(pack_error(self.request.id, code, message))
