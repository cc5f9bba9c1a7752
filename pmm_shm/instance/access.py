"""Who may use an instance directory: how the daemon makes it and its files, and what its users look at before they
trust it.

Whoever may write in the directory can put another state, other sockets or another mark there, so that is its owner
alone. Nobody may read a state whose ledger he could not read. The group may enter where the ledger lets it: it needs to
write `lock.mdb` and the ordinary socket, and nothing else.

Invariant: no file or socket of the daemon ever has, not even for a moment, a wider mode than it is meant to have.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from pmm_shm.crash_points import crash_point
from pmm_shm.errors import InstanceDirectoryError, StoreError
from pmm_shm.instance.paths import LOCK_TABLE_FILE, Instance
from pmm_shm.late import late_imports

DATA_MODE = 0o640
"""What the group reads: the data file, the records beside it."""

LOCK_TABLE_MODE = 0o660
"""LMDB's readers register in its lock file, so they write it."""

PRIVATE_MODE = 0o600
"""What only the daemon's user opens: its lock (whoever can open it can hold it), its log."""

_OWNER = stat.S_IRWXU
_GROUP = stat.S_IRGRP | stat.S_IXGRP
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_REMEDY = "remove it or move it away (it is a cache), or set PMM_SHM_DIR to a directory of your own"


def make_directory(instance: Instance) -> None:
    """Make the instance directory, or take over the one that stands there where it is this user's alone to write.

    It gets the ledger's group where the system gave it none that was chosen, lets the group in only where the ledger
    does, and hands its group on to what is made in it. One that stands there loses what is too much.

    Raises:
        StoreError: it cannot be made, or LMDB could not open it.
        InstanceDirectoryError: it is a link, or something in it is, or is another user's.
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
        _refuse_foreign(directory, {os.geteuid()})
        status = os.lstat(directory)
        _chmod(directory, status.st_mode & _mode_allowed(status, instance.ledger))
        for entry in directory.iterdir():
            _check_entry(entry)
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}; set PMM_SHM_DIR to a writable directory") from None


def make_socket_directory(directory: Path, instance: Instance) -> None:
    """Make a directory for an instance's sockets elsewhere, for the same users, in a folder that is this user's own.

    Raises:
        OSError: it cannot be made.
        InstanceDirectoryError: what stands there is another user's, or no directory.
    """
    wanted = os.stat(instance.directory)
    # Others may pass through the folder; the directory in it says who may enter.
    for one, mode in ((directory.parent, 0o711), (directory, _OWNER)):
        one.mkdir(mode=mode, exist_ok=True)
        _refuse_foreign(one, {os.geteuid()})
    _chmod(directory.parent, 0o711)
    if os.stat(directory).st_gid != wanted.st_gid:
        os.chown(directory, -1, wanted.st_gid)
    _chmod(directory, wanted.st_mode)


def check_socket_directory(directory: Path, instance: Instance) -> None:
    """Whether a client may trust the sockets in a directory elsewhere: it and the folder it lies in must be of the
    instance directory's owner, who alone may write there. Who cleans up temporary files leaves both names to anybody.

    Raises:
        InstanceDirectoryError: it is not.
        OSError: it is not there, or this user may not look.
    """
    owner = os.stat(instance.directory).st_uid
    for one in (directory.parent, directory):
        _refuse_foreign(one, {owner})
        if os.lstat(one).st_mode & _OTHERS_WRITE:
            raise InstanceDirectoryError(f"{one}: others than its owner may write it: no socket in it is trusted")


def may_group_enter(instance: Instance) -> bool:
    """Whether the instance directory lets its group in."""
    return bool(os.stat(instance.directory).st_mode & stat.S_IXGRP)


def allowed_mode(instance: Instance) -> int:
    """The widest mode that the instance directory may have beside its ledger.

    Raises:
        OSError: one of the two is not there, or this user may not look.
    """
    return _mode_allowed(os.lstat(instance.directory), instance.ledger)


def check_directory(instance: Instance) -> None:
    """Whether a client may trust what lies in the instance directory.

    It must be a directory that nobody but its owner writes, and the owner must be one who could as well change what
    the ledger says, or this process: this user, root, the owner of the ledger, or of the folder the directory lies in,
    unless anybody could have made that folder.

    Raises:
        InstanceDirectoryError: it is not.
        OSError: it is not there, or this user may not look.
    """
    trusted = {os.geteuid(), 0}
    folder = instance.directory.parent
    with contextlib.suppress(OSError):
        trusted.add(os.stat(instance.ledger).st_uid)
    with contextlib.suppress(OSError):
        if not os.stat(folder.parent).st_mode & _OTHERS_WRITE:
            trusted.add(os.stat(folder).st_uid)
    _refuse_foreign(instance.directory, trusted)
    if os.lstat(instance.directory).st_mode & _OTHERS_WRITE:
        raise InstanceDirectoryError(
            f"{instance.directory}: others than its owner may write it: nothing in it is trusted; its daemon's next "
            "start, or chmod g-w,o-w, mends that"
        )


def make_file(path: Path, mode: int) -> int:
    """Open a file for reading and writing, made with exactly this mode where it is not there; returns the descriptor.

    Raises:
        OSError: it cannot be opened, or is a link.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    # The umask may have made it narrower.
    os.fchmod(descriptor, mode)
    return descriptor


def replace_file(path: Path, text: str, *, is_durable: bool = False) -> None:
    """Write a file of the group's to read in one step: under another name first, then renamed.

    Raises:
        OSError: it cannot be written; what stood there still does.
    """
    temporary = path.with_name(path.name + ".new")
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


def _refuse_unreadable_name(directory: Path) -> None:
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise StoreError(
            f"{os.fsencode(directory)!r}: LMDB needs a path in UTF-8; rename the ledger, or, where only its folder's "
            "name is another, set PMM_SHM_DIR"
        ) from None


def _is_to_be_made(directory: Path) -> bool:
    """Whether nothing stands there, or an empty directory as it is while it is made: whoever began that has died."""
    try:
        status = os.lstat(directory)
        is_begun = stat.S_IMODE(status.st_mode) == _OWNER and status.st_uid == os.geteuid()
        return is_begun and stat.S_ISDIR(status.st_mode) and not any(directory.iterdir())
    except FileNotFoundError:
        return True


def _refuse_foreign(directory: Path, owners: set[int]) -> None:
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
        raise InstanceDirectoryError(f"{directory}: {what}; {_REMEDY}")
    if status.st_uid not in owners:
        raise InstanceDirectoryError(f"{directory}: belongs to {_user(status.st_uid)}; {_REMEDY}")


def _check_entry(path: Path) -> None:
    """Refuse what somebody else put here, or would have us write elsewhere; narrow the mode of what is ours."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise InstanceDirectoryError(f"{path}: a symbolic link; remove it")
    if status.st_uid != os.geteuid():
        raise InstanceDirectoryError(f"{path}: belongs to {_user(status.st_uid)}; remove it")
    if stat.S_ISREG(status.st_mode):
        _chmod(path, status.st_mode & (LOCK_TABLE_MODE if path.name == LOCK_TABLE_FILE else DATA_MODE))


def _choose_group(directory: Path, ledger: str) -> None:
    """Give a new directory the ledger's group, unless its own was chosen: by the folder, or for this process."""
    group, ledgers_group = os.stat(directory).st_gid, os.stat(ledger).st_gid
    is_chosen = group != _login_group() and _may_read(ledger, group)
    if group != ledgers_group and not is_chosen and _may_read(ledger, ledgers_group):
        # Not a member of that group: then the group stays out.
        with contextlib.suppress(PermissionError):
            os.chown(directory, -1, ledgers_group)


def _mode_allowed(directory: os.stat_result, ledger: str) -> int:
    return _OWNER | stat.S_ISGID | (_GROUP if _may_read(ledger, directory.st_gid) else 0)


def _may_read(ledger: str, group: int) -> bool:
    """Whether the members of a group may read the ledger: the file, and its folders on the way there."""

    def may(path: str | Path, for_group: int, for_others: int) -> bool:
        status = os.stat(path)
        return bool(status.st_mode & (for_group if status.st_gid == group else for_others))

    return may(ledger, stat.S_IRGRP, stat.S_IROTH) and all(
        may(folder, stat.S_IXGRP, stat.S_IXOTH) for folder in Path(ledger).parents
    )


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
        # A service may be forbidden to set the bit that hands the group on.
        os.chmod(path, mode & ~stat.S_ISGID)


def _user(uid: int) -> str:
    with late_imports:
        import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
