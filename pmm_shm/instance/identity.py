"""The identity of a file or directory.

A path names different files in different containers, and a record that names one can be copied.

Invariant: never opens the file.
"""

from __future__ import annotations

import os

FileId = tuple[int, int]
"""(device, inode)"""


def file_id(path: str | os.PathLike[str]) -> FileId | None:
    """The identity of the file at the path now; None if it is missing or hidden from this user."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def is_id_of(recorded: object, path: str | os.PathLike[str]) -> bool:
    """Whether an identity out of a JSON record is that of the file at the path now."""
    found = file_id(path)
    return found is not None and recorded == list(found)
