"""The two drop-in functions that take an `EventLog`."""

from __future__ import annotations

import contextlib
import weakref

from pmm_shm import flags
from pmm_shm.flags import Flag
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.self_model import MAX_TRAIT_DELTA, SelfModelFold, warnings_since
from pmm_shm.late import late_imports
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.typed import TYPE_CHECKING
from pmm_shm_client.cache import Cache
from pmm_shm_client.frame import OnWarn, checked_trait_delta, warn
from pmm_shm_client.results import SelfModelDict, self_model_dict

if TYPE_CHECKING:
    from pmm_shm_client.replaying import ReplayReading

_caches: weakref.WeakKeyDictionary[EventLog, Cache] = weakref.WeakKeyDictionary()


def build_self_model_cached(
    eventlog: EventLog,
    strict: bool = False,
    max_trait_delta: float = MAX_TRAIT_DELTA,
    on_warn: OnWarn | None = None,
) -> SelfModelDict:
    """The self-model of a ledger as a fresh dict: from the shared cache where `PMM_USE_PROJECTION_CACHE` is true,
    otherwise by a plain full replay.

    Raises:
        ProjectionInvariantError: `strict`, and the state violates an invariant.
        LedgerError: the ledger cannot be read.
    """
    if flags.projection_cache() is Flag.ON:
        return cache_of(eventlog).self_model(strict, max_trait_delta, on_warn)
    fold = SelfModelFold(checked_trait_delta(max_trait_delta) if strict else MAX_TRAIT_DELTA)
    reading = _replayed(eventlog, fold)
    if on_warn is not None:
        for cid, event_id in warnings_since(reading.state("self_model"), 0):
            warn(cid, event_id, on_warn)
    return self_model_dict(reading.view("self_model"), strict=strict)


def get_or_compute_ias_gas(eventlog: EventLog) -> tuple[float, float]:
    """(IAS, GAS) of a ledger: from the shared cache where `PMM_USE_METRICS_CACHE` is true, otherwise by a plain full
    replay.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    if flags.metrics_cache() is Flag.ON:
        metrics = cache_of(eventlog).metrics()
        return metrics.ias, metrics.gas
    scores = _replayed(eventlog, MetricsFold()).view("metrics")
    return scores.ias, scores.gas


def _replayed(eventlog: EventLog, fold: Fold) -> ReplayReading:
    with late_imports:
        from pmm_shm.ledger.recovery import open_recovered
        from pmm_shm_client.replaying import replayed

    with contextlib.closing(open_recovered(eventlog.path, eventlog.timeout)) as connection:
        return replayed(connection, [fold])


def cache_of(eventlog: EventLog) -> Cache:
    """The cache that belongs to this `EventLog`; it closes with it."""
    cache = _caches.get(eventlog)
    if cache is None:
        cache = _caches[eventlog] = Cache(eventlog.path, timeout=eventlog.timeout)
        eventlog.add_close_hook(lambda: _close_cache(reference))
        reference = weakref.ref(eventlog)
    return cache


def _close_cache(reference: weakref.ref[EventLog]) -> None:
    eventlog = reference()
    cache = _caches.pop(eventlog, None) if eventlog is not None else None
    if cache is not None:
        cache.close()
