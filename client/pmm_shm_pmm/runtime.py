"""PMM's loop on the shared cache: its snapshot, and the autonomy in one process alone where that is asked for."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm_pmm.autonomy import holds_role
from pmm_shm_pmm.fallback import passing_errors
from pmm_shm_pmm.log import log_of

if TYPE_CHECKING:
    from pmm_shm_pmm.loaded import EventDict
    from pmm_shm_pmm.patching import Patcher

LOOP = "pmm.runtime.loop"


def install(patcher: Patcher, module: ModuleType) -> None:
    """Replace names in `pmm.runtime.loop`, which has just been executed."""

    def _get_snapshot(self: Any) -> Any:
        shared = log_of(self.eventlog)
        loaded = shared.tell()
        newest_id = loaded.newest_id
        cached = self._snapshot_cache
        # One that others have put there (the original, a test) counts, too.
        is_current = cached is not None and getattr(cached, "last_event_id", newest_id) == newest_id
        if is_current and (cached is not shared.snapshot[0] or shared.snapshot[1] is loaded):
            return cached
        events = shared.listing()
        with passing_errors():
            made = _made(module, events)
        with self._snapshot_lock:
            # Another thread may have appended: then the listener was there before this snapshot.
            if shared.sync() == made.last_event_id:
                self._snapshot_cache, shared.snapshot = made, (made, shared.ledger.loaded)
        return made

    def tick(self: Any) -> Any:
        shared = log_of(self.eventlog)
        if not holds_role(shared.path):
            return None
        original = patcher.original(LOOP, "AutonomyLoop.tick")
        with passing_errors():
            return original(self)

    patcher.replace(module, "Runtime._get_snapshot", _get_snapshot)
    if patcher.settings.elects_autonomy:
        patcher.replace(module, "AutonomyLoop.tick", tick)


def _made(module: Any, events: list[EventDict]) -> Any:
    """A snapshot over a list of the log, by the functions that the module has by now."""
    ias, gas = module.compute_ias_gas(events)
    stage, stage_snapshot = module.StageTracker.infer_stage(events)
    return module.LedgerSnapshot(
        events=events,
        identity=module.build_identity(events),
        self_model=module.build_self_model(events),
        ias=ias,
        gas=gas,
        stage=stage,
        stage_snapshot=stage_snapshot,
        last_event_id=events[-1]["id"] if events else 0,
    )
