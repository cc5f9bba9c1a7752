"""The versions of this process: of pmm-shm, its store format, its protocol, Python and SQLite."""

from __future__ import annotations

import platform
import sqlite3
from importlib.metadata import PackageNotFoundError, version

from pmm_shm.names import DISTRIBUTION
from pmm_shm.store.layout import FORMAT
from pmm_shm.wire import protocol

UNKNOWN = "unknown"
"""The version where pmm-shm is not installed, or its version cannot be read."""


def distribution_version() -> str:
    """The version of the installed pmm-shm."""
    try:
        return version(DISTRIBUTION)
    except (PackageNotFoundError, ImportError):
        # A process that gave up its privileges may no longer be able to read the interpreter's own files.
        return UNKNOWN


def of_this_process() -> dict[str, str | int]:
    """The versions that the daemon reports, and a client compares with its own."""
    return {
        "version": distribution_version(),
        "format": FORMAT,
        "protocol": protocol.VERSION,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
