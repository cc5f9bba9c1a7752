"""Threads that the daemon cannot do without, and the outcome of the jobs that they do for clients."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from pmm_cached.logs import Logger
from pmm_shm.resources import shortage_of

STOPS = "the daemon stops"
"""The error of the jobs that a stopping daemon does not do any more."""

JobDone = Callable[[dict[str, Any] | None, str | None], None]
"""Called from any thread with (result, None) or (None, error message)."""


class Stopped(Exception):
    """The daemon stops: give up the current work."""


class BackgroundThread(ABC):
    """A thread that runs `_work`. `_changed` wakes it, and guards `_is_stopping` and the jobs.

    Parameters:
        name: of the thread.
        on_death: called with the reason if the thread fails.
    """

    _task: ClassVar[str]

    def __init__(self, name: str, log: Logger, on_death: Callable[[str], None]) -> None:
        self._log = log
        self._on_death = on_death
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Tell the thread to stop, and wait for it. Returns whether it has ended."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @abstractmethod
    def _work(self) -> None:
        """Work until `_is_stopping`; may end by `Stopped`."""

    def _run(self) -> None:
        try:
            self._work()
        except Stopped:
            return
        except BaseException as error:
            lacking = shortage_of(error)
            if lacking is None:
                self._log.exception(f"{self._task} ended")
            self._on_death(f"{self._task} ended: {lacking or f'{type(error).__name__}: {error}'}")
