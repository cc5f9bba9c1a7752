"""PMM's folds on the shared cache: self-model, identity, directives, metrics and stage of a list that is the log.

Each answers from the frame at the list's position, and leaves any other list to PMM's own function.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm.frozen import thawed
from pmm_shm_pmm.caches import SharedMetricsCache, SharedProjectionCache
from pmm_shm_pmm.fallback import Fallback, passing_errors
from pmm_shm_pmm.lists import frame_of
from pmm_shm_pmm.log import log_of

if TYPE_CHECKING:
    from pmm_shm_pmm.loaded import PmmEvent
    from pmm_shm_pmm.patching import Patcher

PROJECTION = "pmm.storage.projection"
METRICS = "pmm.runtime.metrics"
STAGE = "pmm.runtime.stage_tracker"
_TRAIT_LIMIT = 0.05
_METRICS_UPDATE = "metrics_update"
_AGEING = (
    "autonomy_tick",
    "reflection",
    "commitment_open",
    "commitment_close",
    "identity_adopt",
    "commitment_expire",
    "invariant_violation",
)
"""Event kinds behind which stored metrics are old, the most frequent ones first."""


def install(patcher: Patcher, module: ModuleType) -> None:
    """Replace the folds in a module of PMM that has just been executed."""
    _INSTALLERS[module.__name__](patcher, module)


def _install_projection(patcher: Patcher, module: Any) -> None:
    def build_self_model(
        events: list[PmmEvent], *, strict: bool = False, max_trait_delta: float = _TRAIT_LIMIT, on_warn: Any = None
    ) -> dict[str, Any]:
        if strict and (type(max_trait_delta) is not float or max_trait_delta != _TRAIT_LIMIT):
            raise Fallback("another limit of trait deltas")
        view = frame_of(events).fold("self_model")
        if on_warn is not None and view.warning_count:
            raise Fallback("warnings are wanted")
        if strict and view.violation is not None:
            with passing_errors():
                raise module.ProjectionInvariantError(_words_of(view.violation, events))
        return {
            "identity": {"name": thawed(view.name), "traits": dict(view.strict_traits if strict else view.traits)},
            "commitments": {"open": dict(view.open), "expired": dict(view.expired)},
        }

    def build_identity(events: list[PmmEvent]) -> dict[str, Any]:
        view = frame_of(events).fold("self_model")
        return {"name": thawed(view.name), "traits": dict(view.traits)}

    def build_directives(events: list[PmmEvent]) -> list[dict[str, Any]]:
        return frame_of(events).directives()  # type: ignore[return-value]

    def build_directives_active_set(events: list[PmmEvent]) -> list[dict[str, Any]]:
        return frame_of(events).active_directives()  # type: ignore[return-value]

    def build_self_model_cached(
        eventlog: Any, *, strict: bool = False, max_trait_delta: float = _TRAIT_LIMIT, on_warn: Any = None
    ) -> Any:
        uses_cache = _config("USE_PROJECTION_CACHE")
        log_of(eventlog)
        with passing_errors():
            if not uses_cache:
                options = {"strict": strict, "max_trait_delta": max_trait_delta, "on_warn": on_warn}
                return module.build_self_model(eventlog.read_all(), **options)
            if module._global_projection_cache is None:
                made = SharedProjectionCache(module, strict=strict, max_trait_delta=max_trait_delta)
                module._global_projection_cache = made
            return module._global_projection_cache.get_model(eventlog, on_warn=on_warn)

    for function in (
        build_self_model,
        build_identity,
        build_directives,
        build_directives_active_set,
        build_self_model_cached,
    ):
        patcher.replace(module, function.__name__, function)


def _install_metrics(patcher: Patcher, module: Any) -> None:
    def compute_ias_gas(events: Iterable[PmmEvent]) -> tuple[float, float]:
        metrics = frame_of(events).metrics()
        return metrics.ias, metrics.gas

    def get_or_compute_ias_gas(eventlog: Any) -> Any:
        uses_cache = _config("USE_METRICS_CACHE")
        shared = log_of(eventlog)
        if uses_cache:
            with passing_errors():
                if module._global_metrics_cache is None:
                    module._global_metrics_cache = SharedMetricsCache(module)
                return module._global_metrics_cache.get_metrics(eventlog)
        stored = _stored_metrics(shared)
        if stored is not None:
            return stored
        with passing_errors():
            computed = module.compute_ias_gas(eventlog.read_all())
            meta = {"IAS": computed[0], "GAS": computed[1], "reason": "recomputed", "component": "metrics_system"}
            try:
                eventlog.append(kind=_METRICS_UPDATE, content="", meta=meta)
            except Exception:
                # As PMM does: the numbers are right without the event.
                pass
            return computed

    patcher.replace(module, "compute_ias_gas", compute_ias_gas)
    patcher.replace(module, "get_or_compute_ias_gas", get_or_compute_ias_gas)


def _install_stage(patcher: Patcher, module: Any) -> None:
    def infer_stage(events: list[PmmEvent]) -> tuple[str, dict[str, Any]]:
        stage = frame_of(events).stage()
        return stage.stage, dict(stage.snapshot)

    patcher.replace(module, "StageTracker.infer_stage", infer_stage)


_INSTALLERS = {PROJECTION: _install_projection, METRICS: _install_metrics, STAGE: _install_stage}


def _words_of(violation: Any, events: list[PmmEvent]) -> str:
    """PMM's words for a violated invariant."""
    if violation.violation == "identity":
        return f"identity reverted to None without identity_clear (last_eid={events[-1]['id']})"
    cid, event_id = violation.cid, violation.event_id
    return f"commitment_close without prior evidence_candidate (cid={cid}, eid={event_id})"


def _config(name: str) -> bool:
    """A flag of `pmm.config` as it is now: tests reload that module."""
    try:
        return bool(getattr(import_module("pmm.config"), name))
    except (ImportError, AttributeError):
        raise Fallback(f"no {name} in pmm.config") from None


def _stored_metrics(shared: Any) -> tuple[float, float] | None:
    """IAS and GAS of the newest `metrics_update`; None if there is none, or if they are old."""
    newest = shared.newest(_METRICS_UPDATE)
    if not newest:
        return None
    meta = newest[0]["meta"] or {}
    try:
        found = float(meta.get("IAS", 0.0)), float(meta.get("GAS", 0.0))
    except (TypeError, ValueError, OverflowError):
        return None
    is_old = any((later := shared.newest(kind)) and later[0]["id"] > newest[0]["id"] for kind in _AGEING)
    return None if is_old else found
