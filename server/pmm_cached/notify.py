"""Notifies a service manager by the sd_notify protocol: datagrams to the socket in NOTIFY_SOCKET.

Without that variable nothing is sent. Nothing here fails or delays the daemon: a message that the manager cannot take
now is sent with the next one.
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
        environment: has the manager's variables.
        clock: monotonic seconds.

    Attributes:
        watchdog_s: the manager ends this process after so many seconds without a keep-alive; None if it does not.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = None if self._address is None else _watchdog_s(environment)
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        # States that are not sent yet, by name.
        self._pending: dict[str, str] = {}
        self._fed_at = clock()
        self._is_stopping = False

    @property
    def is_wanted(self) -> bool:
        """Whether a manager listens."""
        return self._address is not None

    @property
    def feeding_s(self) -> float:
        """The longest time between two calls of `feed`, in seconds; infinite without a watchdog."""
        return float("inf") if self.watchdog_s is None else self.watchdog_s / 2

    def ready(self) -> None:
        """Report that the sockets answer."""
        self._send(READY="1")

    def stopping(self) -> None:
        """Report that this process is shutting down."""
        self._is_stopping = True
        self._send(STOPPING="1")

    def status(self, line: str) -> None:
        """Send a status line for people."""
        self._send(STATUS=_one_line(line))

    def feed(self) -> None:
        """Send a keep-alive after progress; may be called as often as there is any.

        At most one message per half of the watchdog's time is sent.
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
                # Nothing may follow STOPPING: it would look as if the process went on.
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
    """A thread that sends the manager a status line whenever it has changed.

    It does not depend on the follower, so it reports one that hangs. It never feeds the watchdog.

    Parameters:
        numbers: returns the daemon's numbers, as the stats command answers them.
    """

    def __init__(self, notifier: Notifier, numbers: Callable[[], Mapping[str, Any]], log: Logger) -> None:
        self._notifier = notifier
        self._numbers = numbers
        self._log = log
        self._last_line: str | None = None
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Start the thread, if a manager listens."""
        if self._notifier.is_wanted:
            self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Wait for the thread. Returns whether it has ended."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def report(self) -> None:
        """Send the status line, if it has changed."""
        line = status_line(self._numbers())
        if line != self._last_line:
            self._last_line = line
            self._notifier.status(line)

    def _run(self) -> None:
        while True:
            try:
                self.report()
            except Exception:
                # The line is only for people, and the stats command fails in the same way.
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
    """The socket's address, a path or `@` and an abstract name; None for anything else."""
    if text.startswith("@") and len(text) > 1:
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    # As sd_watchdog_enabled reads it: without a pid it is meant for any process.
    try:
        period_us = int(environment.get("WATCHDOG_USEC", "0"))
        pid = int(environment.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return period_us / 1_000_000 if period_us > 0 and pid == os.getpid() else None


def _one_line(text: str) -> str:
    """The text without line breaks, after which the manager would read another assignment, and control characters."""
    return "".join(char if char.isprintable() else " " for char in text)[:_LINE_CHARS_MAX]
