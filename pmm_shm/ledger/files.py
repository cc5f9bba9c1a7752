"""The file at the ledger's path: its identity, whether it replaced a file that is still in use, and whether its users
elsewhere share its `-wal`.

Uses only `stat` and the system's table of locks; never opens the ledger's files.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from pmm_shm.errors import ConfigError, LedgerNotFoundError, LedgerReplacedError, LedgerUnreadableError, NotALedgerError
from pmm_shm.instance.file_systems import is_mounted_alone
from pmm_shm.instance.paths import FileId, file_id
from pmm_shm.ledger.locks import PENDING_BYTE, WAL_DMS_BYTE, holders_of, holds_lock, pids_with_lock
from pmm_shm.ledger.sqlite_errors import BlankLedgerError, why_not_reached

_DATABASE_BYTES_MIN = 512
_LOOKS = 3
_LOOK_AGAIN_S = 0.01

MOUNTED_ALONE = (
    "mounted as a single file, without the -wal and -shm beside it, so others' commits are not seen here, and commits "
    "made here can be lost; mount the folder that holds the ledger instead"
)
"""Why a ledger in WAL mode is refused at a mount point of its own."""


class LedgerMoved(Exception):
    """Another file is at the ledger's path: call `close_replaced` with no connection's lock held, and begin again."""


def checked_name(path: str | os.PathLike[str]) -> str:
    """The path of a ledger as text. Raises `ConfigError` where it cannot be that of a file."""
    try:
        name = os.fsdecode(path)
        os.fsencode(name)
    except (TypeError, UnicodeError):
        raise ConfigError(f"{path!r:.80}: not the path of a file") from None
    if not name or "\0" in name or name == ":memory:" or name.startswith("file:"):
        raise ConfigError(f"{name!r}: the ledger must be a file that several processes can open; pass its path")
    return name


def not_reached(path: str, error: OSError) -> LedgerNotFoundError | LedgerUnreadableError:
    """The error for a `stat` of the ledger's path that failed."""
    if isinstance(error, FileNotFoundError):
        return LedgerNotFoundError(f"{path}: no such file")
    return LedgerUnreadableError(f"{path}: {why_not_reached(path, error)}")


def ledger_file_id(path: str) -> FileId:
    """The identity of the file at the ledger's path. Raises `LedgerNotFoundError`, `LedgerUnreadableError`."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise not_reached(path, error) from None
    return status.st_dev, status.st_ino


def check_file(path: str, *, may_be_made: bool) -> None:
    """Check that a ledger can be opened at the path, as far as `stat` tells.

    Raises:
        LedgerNotFoundError, LedgerUnreadableError, NotALedgerError: as their names say.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if may_be_made and isinstance(error, FileNotFoundError):
            return
        raise not_reached(path, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise NotALedgerError(f"{path}: not a regular file")
    if status.st_size == 0 and not may_be_made:
        raise BlankLedgerError(f"{path}: the file is empty, not a ledger")
    if 0 < status.st_size < _DATABASE_BYTES_MIN:
        # SQLite treats a file of one byte as an empty database, and would overwrite it.
        raise NotALedgerError(f"{path}: file is not a database")


def refuse_foreign_wal(path: str, wal_inode: int | None) -> None:
    """Raise if a replaced ledger's non-empty `-wal`, with this inode, is beside the file that replaced it.

    Raises:
        LedgerReplacedError: opening the ledger would destroy data.
    """
    if wal_inode is None:
        return
    try:
        status = os.stat(path + "-wal")
    except OSError:
        return
    if status.st_ino != wal_inode or status.st_size == 0:
        return
    # If others have the new file open already, the -wal is theirs by now.
    if not pids_with_lock(ledger_file_id(path), PENDING_BYTE) - {os.getpid()}:
        raise beside_old_wal(path)


def refuse_orphaned_wal(path: str) -> None:
    """Raise if the ledger is missing and its `-wal` is not empty: SQLite deletes such a `-wal` with a new file.

    Raises:
        LedgerReplacedError: a new ledger there would destroy commits.
    """
    # In this order: a process that creates the ledger makes the file before the -wal.
    if has_wal(path) and not os.path.exists(path):
        raise LedgerReplacedError(
            f"{path}: missing, but its -wal holds commits, which a new ledger would destroy. "
            f"Put the ledger back beside it, or move {path}-wal to another name"
        )


def beside_old_wal(path: str) -> LedgerReplacedError:
    """The error for a ledger beside a non-empty `-wal` that may be its predecessor's, with the remedy.

    It may be the ledger's own, too, if somebody has appended and ended before this process looked. Nothing in the files
    tells. A backup shows what both together hold, and writes neither.
    """
    return LedgerReplacedError(
        f"{path}: replaced beside a -wal with commits, its own or those of the file it replaced; to write the wrong "
        f"pair would destroy data. Stop all users of the ledger, then `pmm-shm backup {path} FILE` and `pmm-shm verify "
        "FILE` show what both together hold. If that is ok and has the newest events, start again; if not, first move "
        f"{path}-wal to another name; the right way next time: `pmm-shm restore`"
    )


def bytes_of(path: str) -> int:
    """The size of a file; 0 if it does not exist."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def has_wal(path: str) -> bool:
    """Whether the ledger has a non-empty `-wal`."""
    return bytes_of(path + "-wal") > 0


def why_wal_is_not_shared(path: str, shm_id: FileId | None) -> str | None:
    """Why other users of the ledger in WAL mode have another `-wal` than the one beside this path; None if they do not.

    SQLite finds it by the name of the ledger. A file mounted alone, or with several names, has one for each place.
    """
    if is_mounted_alone(path):
        return MOUNTED_ALONE
    status = os.stat(path)
    if status.st_nlink == 1 or shm_id is None:
        return None
    identity = status.st_dev, status.st_ino
    pids: set[int] = set()
    for look in range(_LOOKS):
        if look:
            # A process that is just opening the ledger by this name locks one file after the other.
            time.sleep(_LOOK_AGAIN_S)
        suspects = pids_with_lock(identity, PENDING_BYTE) - pids_with_lock(shm_id, WAL_DMS_BYTE) - {os.getpid()}
        pids = {pid for pid in suspects if holds_lock(shm_id, WAL_DMS_BYTE, pid) is False}
        if not pids:
            break
    if pids:
        return (
            f"process {min(pids)} has it open by another name (a hard link), with another -wal, so neither sees the "
            "other's commits; stop it, and use one name only"
        )
    other = _name_with_wal(path, status.st_ino)
    return other and (
        f"{other} is the same file (a hard link), and its -wal holds commits, which are not seen here, and which would "
        "destroy those made here; use that name only"
    )


def _name_with_wal(path: str, inode: int) -> str | None:
    """Another name of the file in the same folder, with commits that a killed process left in its `-wal`."""
    with contextlib.suppress(OSError), os.scandir(os.path.dirname(path)) as entries:
        for entry in entries:
            if entry.inode() == inode and entry.path != path and has_wal(entry.path):
                return entry.path
    return None


def old_users(path: str, shm_id: FileId | None) -> set[int]:
    """Other processes that use this `-shm` file and not the ledger beside it: they have the replaced file open."""
    identity = file_id(path)
    if shm_id is None or identity is None:
        return set()
    suspects = holders_of(shm_id[1], WAL_DMS_BYTE)
    if any(pid != os.getpid() for pid, _ in suspects):
        # Both files are on one device.
        suspects -= holders_of(identity[1], PENDING_BYTE)
    # The system's table may miss a lock, and have those of a file with the same inode on another device; its list for a
    # single process is complete.
    return {
        pid
        for pid, _ in suspects
        if pid != os.getpid()
        and holds_lock(shm_id, WAL_DMS_BYTE, pid) is not False
        and not holds_lock(identity, PENDING_BYTE, pid)
    }
