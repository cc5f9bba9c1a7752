"""The one way for a reader to find, check, open and distrust the environment of an instance.

Used for snapshots and for the text table alike: both refuse the same directories, the same formats, the same damage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic

import lmdb

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm.instance.access import check_directory
from pmm_shm.instance.paths import BOOT_FILE, DATA_FILE, Instance, file_id
from pmm_shm.late import late_imports
from pmm_shm.store import boot
from pmm_shm.store.environment import (
    DamagedStoreError,
    Environment,
    SamePidError,
    close,
    open_reader,
    store_error,
)
from pmm_shm.store.layout import HEADER_KEY, Header


class _ShortageError(StoreError):
    """This process has no file descriptors to open the files; the next attempt may have them."""


class EnvironmentLocator:
    """Keeps the environment of one instance open. Not thread-safe: the caller has a lock.

    Survives an environment made anew; its owner calls `close` before a fork.

    Attributes:
        environment: the open one, usable or not: as long as it is open, no other file can have its inode.
        trusted_until: the monotonic time until which `environment` may be used without another `locate`.
        failure: why an existing environment cannot be used.
        pid_collisions: how often it was refused because a process of another pid namespace has this process's pid.
        on_pid_collision: called at the first of them.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._data_file = instance.file(DATA_FILE)
        self._is_usable: bool | None = None
        self._next_copy_check_s = 0.0
        self.trusted_until = 0.0
        self.environment: Environment | None = None
        self.failure: StoreError | None = None
        self.pid_collisions = 0
        self.on_pid_collision: Callable[[], None] = lambda: None

    def locate(self) -> Environment | None:
        """The environment whose data file is at the path now; None where it cannot be used."""
        identity = file_id(self._data_file)
        environment = self.environment
        if environment is not None and environment.identity != identity:
            self.close()
            environment = None
            # It was that of the other one.
            self.failure = None
        if monotonic() >= self._next_copy_check_s and environment is not None:
            self._follow_copy_up(environment)
        if environment is None and identity is not None:
            environment = self.environment = self._open()
        if self._is_usable is None and environment is not None:
            self._is_usable = self._has_our_format(environment)
        if not self._is_usable:
            return None
        self.trusted_until = self._next_copy_check_s
        return environment

    def fail(self, environment: Environment, error: StoreError | lmdb.Error) -> StoreError:
        """Note that reading the environment failed. A damaged one is refused as long as it is open here."""
        self.failure = store_error(self._instance.path, error) if isinstance(error, lmdb.Error) else error
        self._count_collision()
        if isinstance(self.failure, DamagedStoreError) and self.environment is environment:
            self._is_usable, self.trusted_until = False, 0.0
        return self.failure

    def may_enter(self) -> bool:
        """Whether this user may look into the instance directory; true if it does not exist."""
        directory = self._instance.path
        return not os.path.exists(directory) or os.access(directory, os.X_OK)

    def close(self) -> None:
        """Give the environment back."""
        environment, self.environment, self._is_usable = self.environment, None, None
        self.trusted_until = 0.0
        if environment is not None:
            close(environment)

    def _follow_copy_up(self, environment: Environment) -> None:
        self._next_copy_check_s = monotonic() + limits.TRUST_PERIOD_S
        try:
            environment.follow_copy_up()
        except StoreError as error:
            self.failure = error

    def _open(self) -> Environment | None:
        try:
            check_directory(self._instance)
            if not boot.is_trusted(self._instance.file(BOOT_FILE)):
                self._note_not_opened(None)
                return None
            environment = open_reader(self._instance.path)
            self._next_copy_check_s = monotonic() + limits.TRUST_PERIOD_S
        except StoreError as error:
            self._note_not_opened(error)
            return None
        except OSError:
            self._note_not_opened(None)
            return None
        self.failure = None
        return environment

    def _note_not_opened(self, failure: StoreError | None) -> None:
        """Note why, if it is known: a process without descriptors is told so, not that nothing is published."""
        with late_imports:
            from pmm_shm.resources import shortage
        # The data file and the lock file; another for the mark before.
        found = shortage(descriptors=3)
        if found is not None:
            failure = _ShortageError(f"{self._instance.path}: {found}")
        if failure is not None or isinstance(self.failure, _ShortageError):
            self.failure = failure
            self._count_collision()

    def _count_collision(self) -> None:
        if isinstance(self.failure, SamePidError):
            self.pid_collisions += 1
            if self.pid_collisions == 1:
                self.on_pid_collision()

    def _has_our_format(self, environment: Environment) -> bool | None:
        """Whether the header is of our format; None where that is not known yet."""
        try:
            raw = environment.get(HEADER_KEY)
        except StoreError as error:
            return False if isinstance(self.fail(environment, error), DamagedStoreError) else None
        if raw is None:
            # The daemon is about to write it.
            return None
        try:
            Header.unpack(raw)
        except StoreError as error:
            self.failure = error
            return False
        return True
