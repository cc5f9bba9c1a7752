"""The table of text vectors as this process reads it, in shared memory.

A text's vector never changes, so what is read here counts whether a daemon runs or not, and whether the environment at
the path is still the right one is looked at only now and then. A table that cannot be read is an empty one.
"""

from __future__ import annotations

from time import monotonic

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.store import boot
from pmm_shm.store.environment import (
    DamagedStoreError,
    Environment,
    FileId,
    close,
    data_file_identity,
    open_reader,
)
from pmm_shm.store.layout import HEADER_KEY, Header


class SharedTexts:
    """Single values of the environment. Thread-safe; a value that is there is found without a lock of its own.

    Parameters:
        connection: it closes before a fork, and its lock is held until after it: nothing is opened or closed here
            without that lock.
    """

    def __init__(self, instance: Instance, connection: Connection) -> None:
        self._instance = instance
        self._connection = connection
        self._is_closed = False
        self._damaged: FileId | None = None
        # The environment, and until when it is the right one; swapped whole.
        self._state: tuple[Environment | None, float] = None, 0.0
        connection.on_close(self._give_back)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None where there is none."""
        environment, trusted_until = self._state
        if monotonic() >= trusted_until:
            environment = self.look(waits=environment is None)
        if environment is None:
            return None
        try:
            return environment.get(key)
        except StoreError as error:
            return self._get_in_another(key, environment, error)

    def look(self, *, waits: bool = True) -> Environment | None:
        """Look now what stands in the directory, and open it; `waits`: even if another thread reads the ledger.

        In a signal handler, within a call of this thread that has the connection's lock, nothing is looked at: that
        call may be opening or closing the very same.
        """
        lock = self._connection.lock
        if lock._is_owned() or not lock.acquire(blocking=waits):  # type: ignore[attr-defined]
            return self._state[0]
        try:
            return self._looked()
        finally:
            lock.release()

    def close(self) -> None:
        """Give the environment back, for good."""
        with self._connection.lock:
            self._is_closed = True
            self._give_back()

    def _looked(self) -> Environment | None:
        environment = self._state[0]
        identity = data_file_identity(self._instance.directory)
        if identity == self._damaged:
            identity = None
        if environment is not None and environment.identity != identity:
            self._give_back()
            environment = None
        if environment is None and identity is not None and not self._is_closed:
            environment = self._opened()
        self._state = environment, monotonic() + limits.TRUST_PERIOD_S
        return environment

    def _opened(self) -> Environment | None:
        if not boot.is_trusted(self._instance.boot_file):
            return None
        try:
            environment = open_reader(self._instance.directory)
        except StoreError:
            return None
        if environment is None:
            return None
        try:
            # Of another format, it is not ours to read.
            Header.unpack(environment.get(HEADER_KEY) or b"")
        except StoreError as error:
            self._remember(environment, error)
            close(environment)
            return None
        return environment

    def _get_in_another(self, key: bytes, environment: Environment, error: StoreError) -> bytes | None:
        """An environment failed. It may have been closed under this call: then what stands there now has the value."""
        if self._state[0] is not environment:
            present = self.look()
            try:
                return None if present is None else present.get(key)
            except StoreError:
                return None
        self._remember(environment, error)
        if self._damaged == environment.identity:
            self.look()
        return None

    def _remember(self, environment: Environment, error: StoreError) -> None:
        if isinstance(error, DamagedStoreError):
            self._damaged = environment.identity

    def _give_back(self) -> None:
        """Close, with the connection's lock held, and not under the `get` of another thread."""
        environment, self._state = self._state[0], (None, 0.0)
        if environment is None:
            return
        # Within a time limit, for that thread may be in a signal handler that waits for the connection. What is left
        # open then does no harm: it stays this process's, and a child of a fork does not touch it.
        with environment.between_gets(limits.STORE_MUTEX_S * 2) as is_between:
            if is_between:
                close(environment)
