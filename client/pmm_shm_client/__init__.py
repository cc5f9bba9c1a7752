"""The client of pmm-shm: exact shared state of an event-sourced agent, as a chat worker reads it.

from pmm_shm_client import connect

with connect("pmm.db") as cache:
    cache.append("user", "hello")
    cache.metrics().ias
"""

from __future__ import annotations

from importlib import import_module

from pmm_shm.late import late_imports

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from pmm_shm.ledger.eventlog import EventDict, EventLog
    from pmm_shm.ledger.rows import Event
    from pmm_shm_client.aio import AsyncCache, connect_async
    from pmm_shm_client.cache import Cache, connect
    from pmm_shm_client.context import Context
    from pmm_shm_client.drop_in import build_self_model_cached, get_or_compute_ias_gas
    from pmm_shm_client.frame import Frame
    from pmm_shm_client.hits import Hit, Hits, Recollection
    from pmm_shm_client.results import Commitments, History, Identity, Metrics, Model, Recent, SelfModelDict, Stage
    from pmm_shm_client.stats import Stats

__all__ = [
    "AsyncCache",
    "Cache",
    "Commitments",
    "Context",
    "Event",
    "EventDict",
    "EventLog",
    "Frame",
    "History",
    "Hit",
    "Hits",
    "Identity",
    "Metrics",
    "Model",
    "Recent",
    "Recollection",
    "SelfModelDict",
    "Stage",
    "Stats",
    "build_self_model_cached",
    "connect",
    "connect_async",
    "get_or_compute_ias_gas",
]

# Loaded on first use: the command line and programs without asyncio need not pay for what they do not call.
_HOMES = {
    "AsyncCache": "pmm_shm_client.aio",
    "Cache": "pmm_shm_client.cache",
    "Commitments": "pmm_shm_client.results",
    "Context": "pmm_shm_client.context",
    "Event": "pmm_shm.ledger.rows",
    "EventDict": "pmm_shm.ledger.eventlog",
    "EventLog": "pmm_shm.ledger.eventlog",
    "Frame": "pmm_shm_client.frame",
    "History": "pmm_shm_client.results",
    "Hit": "pmm_shm_client.hits",
    "Hits": "pmm_shm_client.hits",
    "Identity": "pmm_shm_client.results",
    "Metrics": "pmm_shm_client.results",
    "Model": "pmm_shm_client.results",
    "Recent": "pmm_shm_client.results",
    "Recollection": "pmm_shm_client.hits",
    "SelfModelDict": "pmm_shm_client.results",
    "Stage": "pmm_shm_client.results",
    "Stats": "pmm_shm_client.stats",
    "build_self_model_cached": "pmm_shm_client.drop_in",
    "connect": "pmm_shm_client.cache",
    "connect_async": "pmm_shm_client.aio",
    "get_or_compute_ias_gas": "pmm_shm_client.drop_in",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with late_imports:
        value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
