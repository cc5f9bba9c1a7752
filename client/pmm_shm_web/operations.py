"""The daemon's health and numbers, and the findings of `pmm-shm doctor`, as the commands show them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.source.report import read_status
from pmm_shm_terminal.options import given_shape
from pmm_shm_terminal.state import Asked, ask, readers_of, reads_of, with_remedies, workers_of

ASK_S = 1.0
GLANCE_S = 0.05
"""How long a page waits for the daemon; a stopped one would hold it up for `ASK_S`."""
FRESH_S = 0.5
DOCTOR_S = 30.0


class Operations:
    """What runs around one ledger."""

    def __init__(self, path: str) -> None:
        self._instance = Instance.of(path)
        self._shape = given_shape()
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None
        self._last: tuple[float, Asked] | None = None

    def glance(self) -> Asked | None:
        """The daemon's numbers of the last `FRESH_S` seconds; older ones, or None, where it does not answer at once."""
        with self._lock:
            is_fresh = self._last is not None and time.monotonic() - self._last[0] < FRESH_S
            asking = self._asking
            if not is_fresh and asking is None:
                asking = self._asking = threading.Thread(target=self._ask, name="pmm-shm-web-ask", daemon=True)
                asking.start()
        if not is_fresh and asking is not None:
            asking.join(GLANCE_S)
        return None if self._last is None else self._last[1]

    def replica(self, asked: Asked | None) -> dict[str, Any] | None:
        """The state of a replica, of the daemon or of its follower's last report; None if the ledger is no replica."""
        if asked is not None and asked.numbers is not None:
            return asked.numbers.get("replica")
        status = read_status(self._instance.directory)
        return None if status is None else status._asdict()

    def _ask(self) -> None:
        try:
            self._last = time.monotonic(), self.ask()
        finally:
            self._asking = None

    def ask(self) -> Asked:
        """The daemon's numbers."""
        return ask(self._instance, ASK_S)

    def numbers(self) -> dict[str, Any]:
        """Health, problems with what to type, the daemon's numbers (None without one), reads and readers."""
        asked = self.ask()
        return {
            "health": asked.health,
            "problems": with_remedies(self._instance, asked.problems, self._shape),
            "daemon": asked.numbers,
            "replica": self.replica(asked),
            "reads": reads_of(asked.numbers),
            "workers": workers_of(asked.numbers),
            "readers": readers_of(asked.numbers),
        }

    def findings(self) -> dict[str, Any]:
        """The answer of `pmm-shm doctor --json`: a process of its own, so that it looks from outside.

        Returns:
            `ok` and `findings`; or `problem`, why there are none.
        """
        command = [sys.executable, "-m", "pmm_shm_cli", "doctor", self._instance.ledger, "--json"]
        if self._shape is not None:
            command += ["--shape", self._shape]
        try:
            ran = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOCTOR_S, check=False
            )
            found: dict[str, Any] = json.loads(ran.stdout)
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            return {"ok": False, "findings": [], "problem": f"pmm-shm doctor gave no answer: {type(error).__name__}"}
        return {"ok": found["ok"], "findings": found["findings"], "problem": None}
