"""The environment variables; only this module reads them.

`PMM_USE_PROJECTION_CACHE` and `PMM_USE_METRICS_CACHE` have three states: `Flag.ON` is the shared cache, `Flag.OFF` is a
plain full replay everywhere, and with `Flag.UNSET` the entry point decides (a replay for the drop-in
functions, the cache for `connect`).
"""

from __future__ import annotations

import os

from pmm_shm.errors import ConfigError

NAMES = frozenset(
    {
        "PMM_DB",
        "PMM_EMBEDDER",
        "PMM_SHM",
        "PMM_SHM_DAEMON",
        "PMM_SHM_DIR",
        "PMM_SOURCE",
        "PMM_SOURCE_NAME",
        "PMM_SHM_ELECT_AUTONOMY",
        "PMM_SHM_PATCHES",
        "PMM_SHM_REPORT",
        "PMM_SHM_RUN",
        "PMM_SHM_SOURCES",
        "PMM_USE_EMBEDDING_CACHE",
        "PMM_USE_METRICS_CACHE",
        "PMM_USE_PROJECTION_CACHE",
    }
)
"""Every variable that the project reads."""

OF_READERS = frozenset({"PMM_USE_EMBEDDING_CACHE", "PMM_USE_METRICS_CACHE", "PMM_USE_PROJECTION_CACHE"})
"""Those that choose how a process reads; a daemon that it starts does not get them."""

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


class Flag:
    """A three-state switch: one of its three attributes. Not an `Enum`: that module costs a first read 3 ms."""

    ON: Flag
    OFF: Flag
    UNSET: Flag

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"Flag.{self._name}"

    def __reduce__(self) -> str:
        """A copy, or one that another process sends, is the same object: flags are compared by `is`."""
        return repr(self)


Flag.ON, Flag.OFF, Flag.UNSET = Flag("ON"), Flag("OFF"), Flag("UNSET")


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
    """`PMM_EMBEDDER`: the default embedder of daemon and workers: `local-bow` (if unset), `auto`, `wordllama`,
    `openai:MODEL`, `openai:MODEL/DIMENSION` or `package.module:attribute`.
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


def shm_dir() -> str | None:
    """`PMM_SHM_DIR`: the base of the instance directories; the same for a daemon and its workers. If it is unset or
    empty, the state of a ledger is beside the ledger, in `<ledger>-cache`.
    """
    value = os.environ.get("PMM_SHM_DIR")
    try:
        return os.path.abspath(value) if value else None
    except FileNotFoundError:
        raise ConfigError(f"PMM_SHM_DIR: {value!r} is relative, and the current directory was deleted") from None


def run_pmm() -> Flag:
    """`PMM_SHM`: with false, `pmm-shm run`, `pmm_shm_pmm.auto` and the pytest plugin replace nothing in PMM.

    Raises:
        ConfigError: neither true nor false nor empty.
    """
    return _flag("PMM_SHM")


def run_patches() -> frozenset[str] | None:
    """`PMM_SHM_PATCHES`: the parts of PMM that are replaced, separated by commas (`log,projection,metrics`). Unset or
    empty: all.
    """
    names = os.environ.get("PMM_SHM_PATCHES", "").split(",")
    return frozenset(name.strip() for name in names if name.strip()) or None


def run_daemon() -> Flag:
    """`PMM_SHM_DAEMON`: with false, no daemon is started for the ledgers of PMM, as with `pmm-shm run --no-daemon`.

    Raises:
        ConfigError: neither true nor false nor empty.
    """
    return _flag("PMM_SHM_DAEMON")


def run_report() -> str | None:
    """`PMM_SHM_REPORT`: where a process of PMM reports at its end: `stderr`, as with `pmm-shm run --report`, or the
    path of a file, to which it appends. Unset or empty: nowhere.
    """
    return os.environ.get("PMM_SHM_REPORT", "").strip() or None


def run_elects_autonomy() -> Flag:
    """`PMM_SHM_ELECT_AUTONOMY`: with true, only one of the processes of PMM on a ledger runs its autonomy, as with
    `pmm-shm run --elect-autonomy`.

    Raises:
        ConfigError: neither true nor false nor empty.
    """
    return _flag("PMM_SHM_ELECT_AUTONOMY")


def run_sources() -> str | None:
    """`PMM_SHM_SOURCES`: a JSON file with the SHA-256 of further sources that replacements of tier 2 are right for, by
    "module:name": for a copy of PMM with changes that you have checked.
    """
    return os.environ.get("PMM_SHM_SOURCES", "").strip() or None


def run_pid() -> int | None:
    """`PMM_SHM_RUN`: the process that `pmm-shm run` has become, which it sets: only this one says what is active."""
    value = os.environ.get("PMM_SHM_RUN", "")
    return int(value) if value.isdecimal() else None
