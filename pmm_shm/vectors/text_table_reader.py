"""The text table as a worker reads it, in shared memory.

A text's vector never changes, so what is read here counts whether a daemon runs or not, and whether the environment at
the path is still the right one is checked only now and then. A table that cannot be read is an empty one.
"""

from __future__ import annotations

from time import monotonic

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.store.environment import DamagedStoreError, Environment
from pmm_shm.store.locator import EnvironmentLocator


class TextTableReader:
    """Single values of the text table. Thread-safe; a value that is in the table is found without a lock of ours.

    Parameters:
        connection: it closes before a fork, and its lock is held until after it: nothing is opened or closed here
            without that lock.
    """

    def __init__(self, instance: Instance, connection: Connection) -> None:
        self._locator = EnvironmentLocator(instance)
        self._connection = connection
        self._is_closed = False
        # The environment, and until when it is trusted; swapped whole.
        self._trusted: tuple[Environment | None, float] = None, 0.0
        connection.on_close(self._give_back)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None where there is none."""
        environment, trusted_until = self._trusted
        if monotonic() >= trusted_until:
            environment = self.refresh(waits=environment is None)
        if environment is None:
            return None
        try:
            return environment.get(key)
        except StoreError as error:
            return self._get_elsewhere(key, environment, error)

    def refresh(self, *, waits: bool = True) -> Environment | None:
        """Locate the environment now; `waits`: even if another thread reads the ledger.

        In a signal handler, within a call of this thread that has the connection's lock, nothing is located: that call
        may be opening or closing the same environment.
        """
        lock = self._connection.lock
        if lock._is_owned() or not lock.acquire(blocking=waits):  # type: ignore[attr-defined]
            return self._trusted[0]
        try:
            environment = None if self._is_closed else self._locator.locate()
            self._trusted = environment, monotonic() + limits.TRUST_PERIOD_S
            return environment
        finally:
            lock.release()

    def close(self) -> None:
        """Give the environment back, for good."""
        with self._connection.lock:
            self._is_closed = True
            self._give_back()

    def _get_elsewhere(self, key: bytes, environment: Environment, error: StoreError) -> bytes | None:
        """An environment failed. It may have been closed under this call: then what stands there now has the value."""
        if self._trusted[0] is not environment:
            present = self.refresh()
            try:
                return None if present is None else present.get(key)
            except StoreError:
                return None
        if isinstance(self._locator.fail(environment, error), DamagedStoreError):
            self.refresh()
        return None

    def _give_back(self) -> None:
        self._trusted = None, 0.0
        self._locator.close()
