"""What the daemon tells a service manager: the sd_notify protocol, one datagram to the socket in NOTIFY_SOCKET.

Where the variable is not set nothing is done, and nothing here ever fails or delays the daemon: what a manager cannot
take at the moment waits for the next time.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pmm_cached.logs import Logger
from pmm_shm import limits

_LINE_CHARS_MAX = 500


class Notifier:
    """Sends states to the manager that started this process. Thread-safe.

    Parameters:
        environment: where the manager's variables are looked up.
        clock: seconds, monotonic.

    Attributes:
        watchdog_s: the manager ends this process after so many seconds without a sign of life; None: it does not.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = None if self._address is None else _watchdog_s(environment)
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        # What is not told yet; a newer value of the same name takes the place of the older.
        self._pending: dict[str, str] = {}
        self._fed_at = clock()
        self._is_stopping = False

    @property
    def is_wanted(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    @property
    def feeding_s(self) -> float:
        """How often, in seconds, `feed` is to be called at least; infinite where no watchdog waits."""
        return float("inf") if self.watchdog_s is None else self.watchdog_s / 2

    def ready(self) -> None:
        """Tell that the sockets answer."""
        self._send(READY="1")

    def stopping(self) -> None:
        """Tell that this process ends in order."""
        self._is_stopping = True
        self._send(STOPPING="1")

    def status(self, line: str) -> None:
        """Tell people how it is, in one line."""
        self._send(STATUS=_one_line(line))

    def feed(self) -> None:
        """Tell of real progress: call it wherever some was made, as often as you like.

        At most one message in half of the watchdog's time is sent.
        """
        if self._address is None:
            return
        if self._clock() - self._fed_at >= self.feeding_s:
            self._send(WATCHDOG="1")
        elif self._pending:
            self._send()

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _send(self, **states: str) -> None:
        if self._address is None:
            return
        with self._lock:
            self._pending.update(states)
            if self._is_stopping:
                # Nothing comes behind this, lest it look as if the process went on.
                self._pending = {name: value for name, value in self._pending.items() if name == "STOPPING"}
            if not self._pending:
                return
            message = "\n".join(f"{name}={value}" for name, value in self._pending.items())
            if "WATCHDOG" in states:
                self._fed_at = self._clock()
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                    # A manager that does not read must not hold up the follower.
                    self._socket.setblocking(False)
                self._socket.sendto(message.encode("utf-8", "replace"), self._address)
            except OSError:
                return
            self._pending.clear()


class StatusReporter:
    """A thread that tells the manager how the daemon is, whenever that has changed.

    It looks by itself, as whoever asks for the numbers does: of a follower that stands still it says so. It never feeds
    the watchdog.

    Parameters:
        numbers: the daemon's numbers, as the stats command answers them.
    """

    def __init__(self, notifier: Notifier, numbers: Callable[[], Mapping[str, Any]], log: Logger) -> None:
        self._notifier = notifier
        self._numbers = numbers
        self._log = log
        self._told: str | None = None
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Begin, where anybody listens."""
        if self._notifier.is_wanted:
            self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Wait for the thread. Returns whether it has ended."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def report(self) -> None:
        """Look, and tell what is new."""
        line = status_line(self._numbers())
        if line != self._told:
            self._told = line
            self._notifier.status(line)

    def _run(self) -> None:
        while True:
            try:
                self.report()
            except Exception:
                # A line for people; the stats command raises the same where it is asked for.
                self._log.exception("status failed")
            if self._is_stopping.wait(limits.STATUS_REPORT_S):
                return


def status_line(numbers: Mapping[str, Any]) -> str:
    """Health, position, lag and reasons, for one line of `systemctl status`."""
    line = f"{numbers['health']}, as of event {numbers['as_of']}"
    if numbers["lag_events"]:
        line += f", {numbers['lag_events']} behind"
    return "; ".join([line, *numbers["health_reasons"]])


def _address(text: str) -> str | None:
    """The socket's address; an at sign in front stands for the abstract name space. None for what is neither."""
    if text.startswith("@") and len(text) > 1:
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    # As sd_watchdog_enabled reads it: without a pid it is for whoever gets it.
    try:
        period_us = int(environment.get("WATCHDOG_USEC", "0"))
        pid = int(environment.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return period_us / 1_000_000 if period_us > 0 and pid == os.getpid() else None


def _one_line(text: str) -> str:
    """Without line breaks, behind which the manager would read another assignment, and other control characters."""
    return "".join(char if char.isprintable() else " " for char in text)[:_LINE_CHARS_MAX]
