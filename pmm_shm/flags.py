"""The environment variables, read in this one place.

`PMM_USE_PROJECTION_CACHE` and `PMM_USE_METRICS_CACHE` have three states: `Flag.ON` is the shared cache, `Flag.OFF` is a
plain full replay everywhere, and `Flag.UNSET` leaves it to the entry point (a replay for the drop-in functions, the
cache for `connect`).
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

from pmm_shm.errors import ConfigError

NAMES = frozenset(
    {
        "PMM_DB",
        "PMM_EMBEDDER",
        "PMM_SHM_DIR",
        "PMM_USE_EMBEDDING_CACHE",
        "PMM_USE_METRICS_CACHE",
        "PMM_USE_PROJECTION_CACHE",
    }
)
"""Every variable that means something."""

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


class Flag(enum.Enum):
    """A three-state switch."""

    ON = "true"
    OFF = "false"
    UNSET = "unset"


def _flag(name: str) -> Flag:
    text = os.environ.get(name, "").strip().lower()
    if not text:
        return Flag.UNSET
    if text in _TRUE:
        return Flag.ON
    if text in _FALSE:
        return Flag.OFF
    raise ConfigError(f"{name}: expected true or false, got {os.environ[name]!r}")


def projection_cache() -> Flag:
    """State of `PMM_USE_PROJECTION_CACHE` (self-model, directives, recent). Raises `ConfigError`."""
    return _flag("PMM_USE_PROJECTION_CACHE")


def metrics_cache() -> Flag:
    """State of `PMM_USE_METRICS_CACHE` (metrics, stage). Raises `ConfigError`."""
    return _flag("PMM_USE_METRICS_CACHE")


def embedding_cache() -> Flag:
    """State of `PMM_USE_EMBEDDING_CACHE`; unset means on. Raises `ConfigError`."""
    flag = _flag("PMM_USE_EMBEDDING_CACHE")
    return Flag.ON if flag is Flag.UNSET else flag


def embedder() -> str | None:
    """`PMM_EMBEDDER`: the embedder of daemon and workers where none is named; None where it is unset."""
    return os.environ.get("PMM_EMBEDDER", "").strip() or None


def default_ledger() -> str | None:
    """`PMM_DB`: the ledger that the command line uses when none is named."""
    return os.environ.get("PMM_DB") or None


def shm_dir() -> Path | None:
    """`PMM_SHM_DIR`: the base directory of instance directories; None for beside the ledger."""
    value = os.environ.get("PMM_SHM_DIR")
    return Path(os.path.abspath(value)) if value else None
