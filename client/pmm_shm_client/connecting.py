"""`connect`, and the same for any kind of `Cache`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from pmm_shm import flags, limits
from pmm_shm.errors import ConfigError, LedgerNotFoundError
from pmm_shm.ledger.connection import Durability
from pmm_shm.ledger.freshness import Choice
from pmm_shm.typed import TYPE_CHECKING, Any, TypeVar
from pmm_shm_client.cache import Cache
from pmm_shm_client.reads import Consistency

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm.ledger.shape import Shape
    from pmm_shm.vectors.embedder import Embedder

_C = TypeVar("_C", bound=Cache)


def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    autostart: bool = False,
    consistency: Consistency = "exact",
    timeout: float = limits.LEDGER_TIMEOUT_S,
    freshness: Choice = "auto",
    embedder: Embedder | str | None = None,
    create: bool = False,
    durability: Durability = "default",
    folds: Iterable[Fold | type[Fold]] = (),
    shape: Shape | str | os.PathLike[str] | None = None,
) -> Cache:
    """The shared state of a ledger; works with or without a daemon.

    Parameters:
        path: the ledger; None for the one in `PMM_DB`.
        autostart: start a daemon where none runs, now and whenever a command or a new embedding needs one. It ends
            by itself after `limits.AUTOSTART_IDLE_EXIT_S` seconds without appends, commands and workers' reports.
        consistency, timeout, freshness, embedder, durability, folds, shape: see `Cache`.
        create: make a new ledger if there is none.

    Raises:
        LedgerNotFoundError: no file at `path`, and `create` is false.
        LedgerError: no usable ledger there.
        ConfigError: an argument or an environment variable has no meaning; `shape` is not the recorded one.
        FoldError: one of `folds` breaks the contract, or has the name of another fold.
        DaemonError: `autostart`, and the daemon does not start.
    """
    options = {
        "consistency": consistency,
        "timeout": timeout,
        "freshness": freshness,
        "embedder": embedder,
        "create": create,
        "durability": durability,
        "folds": folds,
        "shape": shape,
    }
    return open_cache(Cache, path, autostart, options)


def open_cache(kind: type[_C], path: str | os.PathLike[str] | None, autostart: bool, options: Mapping[str, Any]) -> _C:
    """`connect` for any kind of `Cache`."""
    ledger = path if path is not None else flags.default_ledger()
    if ledger is None:
        raise ConfigError("no ledger: name one, or set PMM_DB")
    try:
        cache = kind(ledger, **options)
    except LedgerNotFoundError as error:
        raise LedgerNotFoundError(f"{error}; create=True makes a new ledger") from None
    if autostart:
        try:
            cache.start_daemon()
        except BaseException:
            cache.close()
            raise
    return cache
