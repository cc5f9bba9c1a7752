"""PMM's loop on the shared cache: its snapshot, and the autonomy in one process alone where that is asked for."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm_pmm.autonomy import holds_role
from pmm_shm_pmm.fallback import passing_errors
from pmm_shm_pmm.log import log_of
from pmm_shm_pmm.sparse import current_turn, turn

if TYPE_CHECKING:
    from pmm_shm_pmm.loaded import PmmEvent
    from pmm_shm_pmm.patching import Patcher
    from pmm_shm_pmm.shared_log import SharedLog

LOOP = "pmm.runtime.loop"
_TAKE_LISTS = (
    "pmm.storage.projection:build_self_model",
    "pmm.storage.projection:build_identity",
    "pmm.storage.projection:build_directives",
    "pmm.storage.projection:build_directives_active_set",
    "pmm.runtime.metrics:compute_ias_gas",
    "pmm.runtime.stage_tracker:StageTracker.infer_stage",
    "pmm.runtime.recall:suggest_recall",
    "pmm.runtime.scene_compactor:maybe_compact",
)
_NAMES = [label.rpartition(":")[2] for label in _TAKE_LISTS if "." not in label.rpartition(":")[2]]


def install(patcher: Patcher, module: ModuleType) -> None:
    """Replace names in `pmm.runtime.loop`, which has just been executed."""
    folds = _folds_of(module)

    def _get_snapshot(self: Any) -> Any:
        shared = log_of(self.eventlog)
        made = whole_snapshot(self, shared)
        current = current_turn()
        # The caller: this function, its wrapper, and then PMM.
        if current is None or not current.gives_to(self, sys._getframe(2).f_code):
            return made
        if made is not shared.snapshot[0] or _folds_of(module) != folds:
            return made
        try:
            return current.snapshot(made, shared.ledger.loaded)
        except Exception:
            return made

    def whole_snapshot(self: Any, shared: SharedLog) -> Any:
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
        if not holds_role(shared.path, shared.cache):
            return None
        original = patcher.original(LOOP, "AutonomyLoop.tick")
        with passing_errors():
            return original(self)

    def handle_user(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = patcher.original(LOOP, "Runtime.handle_user")
        with turn(self, original, log_of(self.eventlog).sync()), passing_errors():
            return original(self, *args, **kwargs)

    patcher.replace(module, "Runtime._get_snapshot", _get_snapshot)
    # What takes a list in `handle_user` must know what a short one stands for.
    if patcher.is_known(module, "Runtime._get_snapshot") and all(label in patcher.counts for label in _TAKE_LISTS):
        patcher.replace(module, "Runtime.handle_user", handle_user)
    if patcher.settings.elects_autonomy:
        patcher.replace(module, "AutonomyLoop.tick", tick)


def _folds_of(module: Any) -> list[Any]:
    """The functions by the names that `handle_user` calls them by: a test may have put others there."""
    return [module.StageTracker.infer_stage, *(getattr(module, name, None) for name in _NAMES)]


def _made(module: Any, events: list[PmmEvent]) -> Any:
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
