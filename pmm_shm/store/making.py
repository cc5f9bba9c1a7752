"""Opens the environment for the daemon, its only writer, and makes its files."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.errors import StoreError
from pmm_shm.instance.making import DATA_MODE, LOCK_TABLE_MODE, make_file
from pmm_shm.instance.paths import DATA_FILE, LOCK_TABLE_FILE
from pmm_shm.store.environment import (
    SPARE_TRANSACTIONS,
    Environment,
    check_size,
    data_file_identity,
    open_map,
    open_once,
    store_error,
)


def open_writer(directory: Path, map_size_bytes: int = limits.MAP_SIZE_BYTES) -> Environment:
    """Open the environment in the directory for the daemon; it is made if it is missing.

    It has all reader slots that the daemon's threads need: none of them ever waits for another process to get one.

    Raises:
        StoreError: it cannot be opened.
    """

    def opened() -> Environment:
        check_size(directory)
        crash_point("open_environment.before")
        _make_files(directory)
        env, table = open_map(
            lambda size: lmdb.open(
                str(directory),
                map_size=size,
                max_readers=limits.READERS_MAX,
                max_spare_txns=SPARE_TRANSACTIONS,
                sync=False,
                metasync=False,
                readahead=False,
                meminit=False,
            ),
            directory,
            limits.COMMAND_TIMEOUT_S,
            map_size_bytes,
        )
        crash_point("open_environment.opened")
        identity = data_file_identity(directory)
        assert identity is not None
        environment = Environment(env, table, directory, identity, slots_kept_max=limits.DAEMON_READER_SLOTS)
        try:
            # First those of daemons that were killed, so that their number does not matter.
            environment.check_readers()
            environment.take_slots()
        except lmdb.Error as error:
            environment.close()
            raise store_error(directory, error) from error
        except BaseException:
            environment.close()
            raise
        return environment

    return open_once(directory, opened)


def _make_files(directory: Path) -> None:
    """Make both files with the modes that they are to have: LMDB gives both of them the same."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        os.close(make_file(directory / DATA_FILE, DATA_MODE))
        crash_point("open_environment.data_made")
        _make_lock_table(directory / LOCK_TABLE_FILE)
        crash_point("open_environment.files_made")
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}") from None


def _make_lock_table(path: Path) -> None:
    """Make the table of readers with all its pages: it is written through a map, and a page for which a full disk has
    no room would be a SIGBUS.
    """
    descriptor = make_file(path, LOCK_TABLE_MODE)
    try:
        if os.fstat(descriptor).st_size == 0:
            os.posix_fallocate(descriptor, 0, limits.LOCK_TABLE_BYTES)
    finally:
        os.close(descriptor)


def disk_hint(directory: Path) -> str:
    """A hint to add to an error: LMDB reports a write that a full disk cut short as an input/output error."""
    try:
        numbers = os.statvfs(directory)
    except OSError:
        return ""
    return "; No space left on device" if numbers.f_bavail * numbers.f_frsize < limits.DISK_FULL_BYTES else ""
