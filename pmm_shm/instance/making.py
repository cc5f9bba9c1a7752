"""How the daemon makes its instance directory, and how files in it are written.

Invariant: no file or socket of the daemon ever has, not even for a moment, a wider mode than it is meant to have.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from pmm_shm.crash_points import crash_point
from pmm_shm.errors import InstanceDirectoryError, StoreError
from pmm_shm.instance.access import name_of_user, refuse_foreign
from pmm_shm.instance.paths import LOCK_TABLE_FILE, Instance, StrPath, folders_above
from pmm_shm.late import late_imports

DATA_MODE = 0o640
"""For files that the group reads: the data file, the records beside it."""

LOCK_TABLE_MODE = 0o660
"""For LMDB's lock file: its readers register there, so they write it."""

PRIVATE_MODE = 0o600
"""For files that only the daemon's user opens: its log, and its lock, which everyone who can open it could hold."""

_OWNER = stat.S_IRWXU
_GROUP = stat.S_IRGRP | stat.S_IXGRP


def make_directory(instance: Instance) -> None:
    """Create the instance directory, or take over an existing one of this user.

    A new one gets the ledger's group, unless the folder or the user chose another. The group may enter only if it can
    read the ledger, and new files inherit it. An existing directory loses permissions that are too wide.

    Raises:
        StoreError: it cannot be created, or LMDB could not open it.
        InstanceDirectoryError: it, or a file in it, is a link or belongs to another user.
    """
    directory = instance.directory
    _refuse_unreadable_name(directory)
    try:
        for folder in reversed([one for one in directory.parents if not one.exists()]):
            folder.mkdir(mode=0o755, exist_ok=True)
        if _is_to_be_made(directory):
            directory.mkdir(mode=_OWNER, exist_ok=True)
            crash_point("instance.made")
            _choose_group(directory, instance.ledger)
            _chmod(directory, _OWNER | _GROUP | stat.S_ISGID)
            crash_point("instance.opened")
        refuse_foreign(directory, {os.geteuid()})
        status = os.lstat(directory)
        _chmod(directory, status.st_mode & _mode_allowed(status, instance.ledger))
        for entry in directory.iterdir():
            _check_entry(entry)
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}; set PMM_SHM_DIR to a writable directory") from None


def make_socket_directory(directory: Path, instance: Instance) -> None:
    """Create a directory for an instance's sockets elsewhere, for the same users, in a folder of this user.

    Raises:
        OSError: it cannot be created.
        InstanceDirectoryError: one of the two exists and belongs to another user, or is not a directory.
    """
    wanted = os.stat(instance.directory)
    # Everybody may pass through the folder; the mode of the directory in it decides who may enter.
    for one, mode in ((directory.parent, 0o711), (directory, _OWNER)):
        one.mkdir(mode=mode, exist_ok=True)
        refuse_foreign(one, {os.geteuid()})
    _chmod(directory.parent, 0o711)
    if os.stat(directory).st_gid != wanted.st_gid:
        os.chown(directory, -1, wanted.st_gid)
    _chmod(directory, wanted.st_mode)


def make_file(path: Path, mode: int) -> int:
    """Open a file for reading and writing, created with exactly this mode if it is missing; returns the descriptor.

    Raises:
        OSError: it cannot be opened, or is a link.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    # The umask may have narrowed it.
    os.fchmod(descriptor, mode)
    return descriptor


def replace_file(path: StrPath, text: str, *, is_durable: bool = False) -> None:
    """Replace a file that the group reads in one step: written under another name, then renamed.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    temporary = Path(f"{os.fspath(path)}.new")
    crash_point("replace_file.before")
    temporary.unlink(missing_ok=True)
    descriptor = make_file(temporary, DATA_MODE)
    crash_point("replace_file.made")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if is_durable:
            os.fsync(descriptor)
    crash_point("replace_file.written")
    temporary.replace(path)
    crash_point("replace_file.renamed")


def may_group_enter(instance: Instance) -> bool:
    """Whether the group may enter the instance directory."""
    return bool(os.stat(instance.path).st_mode & stat.S_IXGRP)


def allowed_mode(instance: Instance) -> int:
    """The widest mode that the instance directory may have, given its ledger's.

    Raises:
        OSError: one of the two does not exist, or this user may not access it.
    """
    return _mode_allowed(os.lstat(instance.path), instance.ledger)


def _refuse_unreadable_name(directory: Path) -> None:
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise StoreError(
            f"{os.fsencode(directory)!r}: LMDB needs a path in UTF-8; rename the ledger, or, if only its folder's name "
            "is not UTF-8, set PMM_SHM_DIR"
        ) from None


def _is_to_be_made(directory: Path) -> bool:
    """Whether the directory is missing, or empty as it is between two steps of its creation by a daemon that died."""
    try:
        status = os.lstat(directory)
        is_begun = stat.S_IMODE(status.st_mode) == _OWNER and status.st_uid == os.geteuid()
        return is_begun and stat.S_ISDIR(status.st_mode) and not any(directory.iterdir())
    except FileNotFoundError:
        return True


def _check_entry(path: Path) -> None:
    """Refuse another user's file and a link, which would make us write elsewhere; narrow the mode of our own file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise InstanceDirectoryError(f"{path}: a symbolic link; remove it")
    if status.st_uid != os.geteuid():
        raise InstanceDirectoryError(f"{path}: belongs to {name_of_user(status.st_uid)}; move it away")
    if stat.S_ISREG(status.st_mode):
        _chmod(path, status.st_mode & (LOCK_TABLE_MODE if path.name == LOCK_TABLE_FILE else DATA_MODE))


def _choose_group(directory: Path, ledger: str) -> None:
    """Give a new directory the ledger's group, unless its group was chosen: by its folder, or for this process."""
    group, ledgers_group = os.stat(directory).st_gid, os.stat(ledger).st_gid
    is_chosen = group != _login_group() and _may_read(ledger, group)
    if group != ledgers_group and not is_chosen and _may_read(ledger, ledgers_group):
        # This user is not a member of that group: then the group may not enter.
        with contextlib.suppress(PermissionError):
            os.chown(directory, -1, ledgers_group)


def _login_group() -> int | None:
    with late_imports:
        import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_gid
    except KeyError:
        return None


def _chmod(path: Path, mode: int) -> None:
    mode = stat.S_IMODE(mode)
    if stat.S_IMODE(os.stat(path).st_mode) == mode:
        return
    try:
        os.chmod(path, mode)
    except PermissionError:
        # A service may be forbidden to set the set-group-ID bit, by which new files inherit the group.
        os.chmod(path, mode & ~stat.S_ISGID)


def _mode_allowed(directory: os.stat_result, ledger: str) -> int:
    return _OWNER | stat.S_ISGID | (_GROUP if _may_read(ledger, directory.st_gid) else 0)


def _may_read(ledger: str, group: int) -> bool:
    """Whether the members of a group may read the ledger: the file itself, and all folders above it."""

    def may(path: str, for_group: int, for_others: int) -> bool:
        status = os.stat(path)
        return bool(status.st_mode & (for_group if status.st_gid == group else for_others))

    return may(ledger, stat.S_IRGRP, stat.S_IROTH) and all(
        may(folder, stat.S_IXGRP, stat.S_IXOTH) for folder in folders_above(ledger)
    )
