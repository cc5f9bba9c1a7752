"""A service manager's end of the sd_notify protocol: a real datagram socket that remembers what came, and when."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tests.support import daemons

_FAREWELL = b"the test ends"
_numbers = itertools.count()


class Message(NamedTuple):
    """One datagram: when it came (monotonic seconds), and its assignments."""

    at: float
    states: dict[str, str]


class Manager:
    """Listens until `close`; `folder` holds the socket, None for one in the abstract name space."""

    def __init__(self, folder: Path | None) -> None:
        name = f"notify-{next(_numbers)}"
        self.address = f"@pmm-{time.monotonic_ns()}-{name}" if folder is None else str(folder / name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:] if folder is None else self.address)
        self.messages: list[Message] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while (data := self._socket.recv(1 << 16)) != _FAREWELL:
            states = dict(line.split("=", 1) for line in data.decode().split("\n"))
            self.messages.append(Message(time.monotonic(), states))

    def environment(self, watchdog_s: float | None = None, **changes: str | None) -> dict[str, str]:
        """That of a daemon which this manager starts."""
        if watchdog_s is not None:
            changes["WATCHDOG_USEC"] = str(int(watchdog_s * 1_000_000))
        return daemons.environment(NOTIFY_SOCKET=self.address, **changes)

    def of(self, name: str) -> list[Message]:
        """The messages that assign this name, in order."""
        return [message for message in self.messages if name in message.states]

    def wait_for(self, name: str, text: str = "") -> Message:
        """The first message whose value of this name holds the text."""
        return daemons.until(
            lambda: next((one for one in self.of(name) if text in one.states[name]), None),  # type: ignore[arg-type, return-value]
            f"{name}={text}: {self.messages[-3:]}",
        )

    def settle(self) -> None:
        """Wait until everything that has been sent so far is in `messages`."""
        number = str(next(_numbers))
        self._send(f"SETTLED={number}".encode())
        self.wait_for("SETTLED", number)

    def close(self) -> None:
        """Stop listening."""
        self._send(_FAREWELL)
        self._thread.join(daemons.DEADLINE_S)
        self._socket.close()

    def _send(self, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(daemons.DEADLINE_S)
            sender.sendto(data, self._socket.getsockname())
