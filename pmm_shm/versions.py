"""Which versions this process is made of: of the distribution, of what it stores and says, and of what it stands on."""

from __future__ import annotations

import platform
import sqlite3
from importlib.metadata import PackageNotFoundError, version

from pmm_shm.store.layout import FORMAT
from pmm_shm.wire import protocol

DISTRIBUTION = "pmm-shm"
UNKNOWN = "unknown"
"""The version of a checkout that is not installed, or that cannot be looked up."""


def distribution_version() -> str:
    """The version of pmm-shm as it is installed."""
    try:
        return version(DISTRIBUTION)
    except (PackageNotFoundError, ImportError):
        # The interpreter's own files may lie where a process that gave up its privileges cannot read any more.
        return UNKNOWN


def of_this_process() -> dict[str, str | int]:
    """What the daemon says of itself, and what a client compares it with."""
    return {
        "version": distribution_version(),
        "format": FORMAT,
        "protocol": protocol.VERSION,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
