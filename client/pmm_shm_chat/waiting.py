"""A sign that the program waits, which takes its place back when it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FIRST_S = 0.5
_FRAME_S = 0.1


class Spinner:
    """A turning sign with the seconds so far, at the beginning of the line; nothing for the first half second.

    Parameters:
        write: called from another thread with what goes to the terminal.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._is_shown = False
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="spinner", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait_s, number = _FIRST_S, 0
        while not self._is_stopped.wait(wait_s):
            with self._lock:
                if self._is_stopped.is_set():
                    return
                self._is_shown = True
                self._write(f"\r{FRAMES[number % len(FRAMES)]} {time.monotonic() - self._began:.0f} s")
            wait_s, number = _FRAME_S, number + 1

    def stop(self) -> None:
        """Remove it; a second call does nothing."""
        # Before the lock: no frame follows even if Ctrl-C interrupts this.
        self._is_stopped.set()
        with self._lock:
            if self._is_shown:
                self._is_shown = False
                self._write("\r\x1b[K")
