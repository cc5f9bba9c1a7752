"""The environment variables; only this module reads them.

`PMM_USE_PROJECTION_CACHE` and `PMM_USE_METRICS_CACHE` have three states: `Flag.ON` is the shared cache, `Flag.OFF` is a
plain full replay everywhere, and with `Flag.UNSET` the entry point decides (a replay for the drop-in
functions, the cache for `connect`).
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
"""Every variable that the project reads."""

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
    """`PMM_USE_PROJECTION_CACHE`: the source of self-model, identity, commitments, directives, recent and your own
    folds.

    True (`true`, `1`, `yes`, `on`): the shared cache. False (`false`, `0`, `no`, `off`): a plain full replay for each
    read. Unset or empty: a replay for `build_self_model_cached`, the shared cache for a cache made by `connect`. Case
    and surrounding white space are ignored.

    Raises:
        ConfigError: anything else.
    """
    return _flag("PMM_USE_PROJECTION_CACHE")


def metrics_cache() -> Flag:
    """`PMM_USE_METRICS_CACHE`: the same for metrics, stage and history, and for `get_or_compute_ias_gas`.

    Raises:
        ConfigError: neither true nor false nor empty.
    """
    return _flag("PMM_USE_METRICS_CACHE")


def embedding_cache() -> Flag:
    """`PMM_USE_EMBEDDING_CACHE`: with false, `embed` and `embed_many` compute every vector anew; unset means true.

    Raises:
        ConfigError: neither true nor false nor empty.
    """
    flag = _flag("PMM_USE_EMBEDDING_CACHE")
    return Flag.ON if flag is Flag.UNSET else flag


def embedder() -> str | None:
    """`PMM_EMBEDDER`: the default embedder of daemon and workers: `local-bow` (if unset), `wordllama`, `openai:MODEL`,
    `openai:MODEL/DIMENSION` or `package.module:attribute`.
    """
    return os.environ.get("PMM_EMBEDDER", "").strip() or None


def default_ledger() -> str | None:
    """`PMM_DB`: the default ledger of `connect()`, `pmm-shm` and `pmm-cached`."""
    return os.environ.get("PMM_DB") or None


def source() -> str | None:
    """`PMM_SOURCE`: the PostgreSQL cluster that `pmm-cached` follows into its ledger, a data source name without a
    password; unset: none.
    """
    return os.environ.get("PMM_SOURCE", "").strip() or None


def source_name() -> str | None:
    """`PMM_SOURCE_NAME`: the name of the ledger in that cluster."""
    return os.environ.get("PMM_SOURCE_NAME") or None


def shm_dir() -> Path | None:
    """`PMM_SHM_DIR`: the base of the instance directories; the same for a daemon and its workers. If it is unset or
    empty, the state of a ledger is beside the ledger, in `<ledger>-cache`.
    """
    value = os.environ.get("PMM_SHM_DIR")
    try:
        return Path(os.path.abspath(value)) if value else None
    except FileNotFoundError:
        raise ConfigError(f"PMM_SHM_DIR: {value!r} is relative, and the current directory was deleted") from None
