"""The client of pmm-shm: exact shared state of an event-sourced agent, as a chat worker reads it.

from pmm_shm_client import connect

with connect("pmm.db") as cache:
    cache.append("user", "hello")
    cache.metrics().ias
"""

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client.aio import AsyncCache, connect_async
from pmm_shm_client.cache import Cache
from pmm_shm_client.connecting import build_self_model_cached, connect, get_or_compute_ias_gas
from pmm_shm_client.frame import Frame
from pmm_shm_client.results import Commitments, Identity, Metrics, Recent, Stage

__all__ = [
    "AsyncCache",
    "Cache",
    "Commitments",
    "EventLog",
    "Frame",
    "Identity",
    "Metrics",
    "Recent",
    "Stage",
    "build_self_model_cached",
    "connect",
    "connect_async",
    "get_or_compute_ias_gas",
]
