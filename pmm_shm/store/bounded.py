"""Calls that may block for as long as another process is stopped, within a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pmm_shm.errors import StoreError
from pmm_shm.late import late_imports


class BoundedCall:
    """Runs one action in a separate thread; the caller waits for a limited time.

    The first to ask waits for `timeout_s` seconds. As long as that call hangs, later ones do not wait at all, and none
    is begun beside it. Not thread-safe: the caller has a lock.
    """

    def __init__(self, action: Callable[[], None], timeout_s: float) -> None:
        self._action = action
        self._timeout_s = timeout_s
        self._thread: threading.Thread | None = None
        self._failure: list[Exception] = []

    @property
    def is_hanging(self) -> bool:
        """Whether a call is still under way."""
        return self._thread is not None and self._thread.is_alive()

    def run(self) -> bool:
        """Run the action, or wait for the one under way. Returns whether it has ended.

        Raises:
            StoreError: no thread can be started.
            Exception: as the action raised it.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="bounded", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                with late_imports:
                    from pmm_shm.resources import shortage_of

                raise StoreError(shortage_of(error) or str(error)) from error
            self._thread = thread
            thread.join(self._timeout_s)
        if self._thread.is_alive():
            return False
        self._thread = None
        if self._failure:
            raise self._failure.pop()
        return True

    def _run(self) -> None:
        try:
            self._action()
        except Exception as error:
            self._failure.append(error)
