"""One daemon per ledger: `flock` on a file of the instance directory, taken before anything else is touched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.errors import DaemonRunningError, StoreError
from pmm_shm.instance.access import may_others_write, unusable
from pmm_shm.instance.file_systems import existing_part, network_file_system
from pmm_shm.instance.making import PRIVATE_MODE, make_directory, make_file
from pmm_shm.instance.paths import Instance


class InstanceLock:
    """Holds the lock of an instance until `release`.

    Raises:
        DaemonRunningError: another daemon holds it.
        StoreError: the instance directory cannot be made or written, belongs to another user, or is on a network file
            system, or on one without permissions, sockets or locks.
    """

    def __init__(self, instance: Instance) -> None:
        self._path = instance.lock_file
        network = network_file_system(existing_part(instance.directory))
        if network is not None:
            raise StoreError(
                f"{instance.directory}: it is on {network}, a network file system, where memory cannot be shared; "
                "set PMM_SHM_DIR to a directory on a local disk"
            )
        make_directory(instance)
        _check_abilities(instance)
        try:
            self._descriptor = make_file(self._path, PRIVATE_MODE)
        except OSError as error:
            raise StoreError(
                f"{instance.directory}: {error.strerror}; set PMM_SHM_DIR to a writable directory"
            ) from None
        crash_point("daemon_lock.opened")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise DaemonRunningError(
                f"{instance.ledger}: another pmm-cached (pid {holder}) already serves this ledger"
            ) from None
        except OSError:
            os.close(self._descriptor)
            raise StoreError(unusable(instance.directory, "locks")) from None
        crash_point("daemon_lock.locked")
        os.ftruncate(self._descriptor, 0)
        crash_point("daemon_lock.emptied")
        try:
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(self._descriptor)
            raise StoreError(f"{self._path}: {error.strerror}") from None
        crash_point("daemon_lock.written")

    def is_held(self) -> bool:
        """Whether the instance directory is still this daemon's: the locked file is still at its path."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except OSError:
            return False

    def release(self) -> None:
        os.close(self._descriptor)


def _check_abilities(instance: Instance) -> None:
    """Check that the file system of an instance directory, which exists, has permissions and sockets.

    Raises:
        StoreError: it has not. The directory is removed if it is empty.
    """
    directory = instance.directory
    lacking = "permissions" if may_others_write(directory) else None
    if lacking is None and not _has_sockets(directory):
        lacking = "sockets"
    if lacking is not None:
        with contextlib.suppress(OSError):
            directory.rmdir()
        raise StoreError(unusable(directory, lacking))


def _has_sockets(directory: Path) -> bool:
    """Whether a socket can be bound there; true where that cannot be known."""
    path = os.fsencode(directory / "probe.sock")
    if len(path) > limits.SOCKET_PATH_BYTES_MAX:
        # The sockets will be elsewhere.
        return True
    with contextlib.suppress(OSError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(path)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EADDRINUSE, errno.EROFS)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
    return True
