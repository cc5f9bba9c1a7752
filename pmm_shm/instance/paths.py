"""The paths of a ledger's instance directory and of the files in it; and the identity of a file.

A path names different files in different containers, and a record that names one can be copied. A file's identity is
its device and inode; telling it never opens the file.
"""

from __future__ import annotations

import os

from pmm_shm import flags
from pmm_shm.digests import blake2b
from pmm_shm.errors import LedgerNotFoundError
from pmm_shm.late import late_imports
from pmm_shm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

FileId = tuple[int, int]
"""(device, inode)"""
StrPath = str | os.PathLike[str]

LOCK_FILE = "daemon.lock"
ENDPOINTS_FILE = "endpoints.json"
BOOT_FILE = "boot.json"
DATA_FILE = "data.mdb"
LOCK_TABLE_FILE = "lock.mdb"
LOG_FILE = "daemon.log"
WORDS_FILE = "words.db"
SHAPE_FILE = "shape.json"


def real_path(path: StrPath) -> str:
    """The absolute path without symbolic links; no file has to exist.

    Raises:
        LedgerNotFoundError: the path is relative, and the current directory was deleted.
    """
    try:
        return os.path.realpath(os.fspath(path))
    except FileNotFoundError:
        raise LedgerNotFoundError(f"{os.fspath(path)}: no such file: the current directory was deleted") from None


def folders_above(path: str) -> list[str]:
    """The folders that an absolute path is in, the nearest one first."""
    folders = []
    while (folder := os.path.dirname(path)) != path:
        folders.append(folder)
        path = folder
    return folders


class Instance(NamedTuple):
    """One ledger and the directory of its shared state.

    Attributes:
        ledger: the real path of the ledger.
        path: of the directory: `<ledger>-cache`, or a subfolder of `PMM_SHM_DIR` with the ledger's file name and a
            short digest of its real path.
    """

    ledger: str
    path: str

    @classmethod
    def of(cls, ledger: StrPath) -> Instance:
        """The instance of a ledger; no file has to exist. Raises as `real_path`."""
        real = real_path(ledger)
        base = flags.shm_dir()
        if base is None:
            return cls(real, real + "-cache")
        digest = blake2b(os.fsencode(real), digest_size=6).hexdigest()
        return cls(real, os.path.join(base, f"{os.path.basename(real)}-{digest}"))

    def file(self, name: str) -> str:
        """The path of a file in the directory. A first read takes this one: `pathlib` costs it 3 ms."""
        return os.path.join(self.path, name)

    @property
    def directory(self) -> Path:
        with late_imports:
            from pathlib import Path

        return Path(self.path)

    @property
    def lock_file(self) -> Path:
        return self.directory / LOCK_FILE

    @property
    def endpoints_file(self) -> Path:
        return self.directory / ENDPOINTS_FILE

    @property
    def boot_file(self) -> Path:
        return self.directory / BOOT_FILE

    @property
    def data_file(self) -> Path:
        return self.directory / DATA_FILE

    @property
    def words_file(self) -> Path:
        return self.directory / WORDS_FILE

    @property
    def shape_file(self) -> Path:
        return self.directory / SHAPE_FILE

    @property
    def log_file(self) -> Path:
        return self.directory / LOG_FILE


def file_id(path: StrPath) -> FileId | None:
    """The identity of the file or directory at the path now; None if it is missing or hidden from this user."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def is_id_of(recorded: object, path: StrPath) -> bool:
    """Whether an identity out of a JSON record is that of the file or directory at the path now."""
    found = file_id(path)
    return found is not None and recorded == list(found)
