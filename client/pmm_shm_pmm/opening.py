"""Opens the library's cache of a ledger, and starts a daemon beside it where none runs."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from pmm_shm.late import late_imports

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache

_START_S = 2.0
_START_DELAY_S = 0.2
_NOT_IN_PMM = ("recent", "history")
"""Folds whose answers no function of PMM gives."""
cache_options: Mapping[str, Any] = {}
"""Set by `log.install`: `starts_daemon`, `parts`."""


def open_cache(path: str) -> Cache:
    """The library's cache of a ledger; where the settings say so, a daemon is started in the background."""
    with late_imports:
        from pmm_shm_client.cache import Cache
        from pmm_shm_pmm.folds import folds_of

    cache = Cache(path, folds=folds_of(cache_options.get("parts", ())), heeds_flags=False, late_folds=_NOT_IN_PMM)
    if cache_options.get("starts_daemon"):
        thread = threading.Thread(target=_start_daemon, args=(cache,), name="pmm-shm-start", daemon=True)
        _starts.append(thread)
        thread.start()
    return cache


_starts: list[threading.Thread] = []
_is_ending = threading.Event()


@atexit.register
def _await_starts() -> None:
    """A program that ends at once leaves a daemon all the same, which the next one finds at work."""
    _is_ending.set()
    deadline = monotonic() + _START_S
    for thread in _starts:
        thread.join(max(0.0, deadline - monotonic()))


def _start_daemon(cache: Cache) -> None:
    # A warm daemon is no news, and a new one has nothing published yet: the read that is under way comes first.
    _is_ending.wait(_START_DELAY_S)
    try:
        cache.start_daemon()
    except Exception:
        # Reads are exact without one.
        pass
