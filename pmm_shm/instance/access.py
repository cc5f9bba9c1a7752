"""Permissions of an instance directory: what clients check before they trust it; `making` has how the daemon makes it.

Anyone who can write in the directory could put a false state, sockets or marks there, so only its owner may. Only users
who can read the ledger may read its state. The group may enter if it can read the ledger: it needs to write `lock.mdb`
and the ordinary socket, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import stat

from pmm_shm.errors import InstanceDirectoryError
from pmm_shm.instance.file_systems import existing_part, kind_of, plain_file_system
from pmm_shm.instance.paths import Instance, StrPath
from pmm_shm.late import late_imports
from pmm_shm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_REMEDY = "move it away, or set PMM_SHM_DIR to a directory of your own"


def may_others_write(directory: StrPath) -> bool:
    """Whether users other than its owner may write in a directory."""
    return bool(os.lstat(directory).st_mode & _OTHERS_WRITE)


def unusable(directory: StrPath, lacking: str) -> str:
    """The message about a file system that lacks what an instance directory needs."""
    return (
        f"{directory}: it is on {kind_of(existing_part(directory))}, a file system without {lacking}; set PMM_SHM_DIR "
        "to a directory on another disk, for the daemon and all workers"
    )


def check_socket_directory(directory: Path, instance: Instance) -> None:
    """Check that a client may trust the sockets in a directory elsewhere.

    It and its folder must belong to the instance directory's owner, and nobody else may write there. After a clean-up
    of temporary files, anybody could create both again.

    Raises:
        InstanceDirectoryError: it may not.
        OSError: it does not exist, or this user may not access it.
    """
    owner = os.stat(instance.path).st_uid
    for one in (directory.parent, directory):
        refuse_foreign(one, {owner})
        if os.lstat(one).st_mode & _OTHERS_WRITE:
            raise InstanceDirectoryError(f"{one}: users other than its owner may write it: its sockets are not trusted")


def check_directory(instance: Instance) -> None:
    """Check that a client may trust the files in the instance directory.

    Only its owner may write in it, and the owner must be somebody who could change the ledger or this process anyway:
    this user, root, the owner of the ledger, or the owner of the directory's folder, unless anybody could have created
    that folder.

    Raises:
        InstanceDirectoryError: it may not.
        OSError: it does not exist, or this user may not access it.
    """
    trusted = {os.geteuid(), 0}
    directory = instance.path
    folder = os.path.dirname(directory)
    with contextlib.suppress(OSError):
        trusted.add(os.stat(instance.ledger).st_uid)
    with contextlib.suppress(OSError):
        if not os.stat(os.path.dirname(folder)).st_mode & _OTHERS_WRITE:
            trusted.add(os.stat(folder).st_uid)
    refuse_foreign(directory, trusted)
    if os.lstat(directory).st_mode & _OTHERS_WRITE:
        if plain_file_system(directory) is not None:
            raise InstanceDirectoryError(unusable(directory, "permissions"))
        raise InstanceDirectoryError(
            f"{directory}: users other than its owner may write it: nothing in it is trusted; the next "
            "start of its daemon checks its files and takes that permission away"
        )


def refuse_foreign(directory: StrPath, owners: set[int]) -> None:
    """Raise `InstanceDirectoryError` where it is not a directory, or belongs to nobody of `owners`."""
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
        raise InstanceDirectoryError(f"{directory}: {what}; {_REMEDY}")
    if status.st_uid not in owners:
        raise InstanceDirectoryError(f"{directory}: belongs to {name_of_user(status.st_uid)}; {_REMEDY}")


def name_of_user(uid: int) -> str:
    """A user as messages name it."""
    with late_imports:
        import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
