"""The names in PMM that are replaced: one table."""

from __future__ import annotations

from typing import NamedTuple


class Seam(NamedTuple):
    """One name in PMM.

    Attributes:
        module: where it is defined.
        name: within the module: "function", "Class" or "Class.method".
        part: the group by which a user switches it off.
        tier: 1, its behaviour is a contract that holds for every version of PMM; 2, it is replaced only where the
            source of the original is a known one.
        home: the module of this package whose `install(patcher, module)` replaces it.
        needs: further names in the module whose sources must be known, too.
    """

    module: str
    name: str
    part: str
    tier: int
    home: str
    needs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """`module:name`"""
        return f"{self.module}:{self.name}"


_EVENTLOG = "pmm.storage.eventlog"
_PROJECTION = "pmm.storage.projection"
_METRICS = "pmm.runtime.metrics"
_LOOP = "pmm.runtime.loop"
_TRACKER = "pmm.commitments.tracker"
_RESTRUCTURING = "pmm.commitments.restructuring"

SEAMS: tuple[Seam, ...] = (
    Seam(_EVENTLOG, "EventLog", "log", 1, "log"),
    Seam(_EVENTLOG, "EventLog.read_all", "lazy", 2, "log"),
    Seam(_EVENTLOG, "EventLog.verify_chain", "chain", 2, "chain"),
    Seam(_PROJECTION, "build_self_model", "projection", 1, "answers"),
    Seam(_PROJECTION, "build_self_model_cached", "projection", 1, "answers"),
    Seam(_PROJECTION, "build_identity", "projection", 1, "answers"),
    Seam(_PROJECTION, "build_directives", "directives", 1, "answers"),
    Seam(_PROJECTION, "build_directives_active_set", "directives", 1, "answers"),
    Seam(_METRICS, "compute_ias_gas", "metrics", 1, "answers"),
    Seam(_METRICS, "get_or_compute_ias_gas", "metrics", 1, "answers"),
    Seam("pmm.runtime.stage_tracker", "StageTracker.infer_stage", "stage", 1, "answers"),
    Seam(_LOOP, "Runtime._get_snapshot", "snapshot", 1, "runtime"),
    Seam(_LOOP, "Runtime.handle_user", "lazy", 2, "runtime"),
    Seam(_LOOP, "Runtime._ngram_repeat_telemetry_enabled", "flags", 2, "flags"),
    Seam(_LOOP, "AutonomyLoop.tick", "autonomy", 1, "runtime"),
    Seam(_TRACKER, "CommitmentTracker.find_evidence", "tracker", 2, "evidence"),
    Seam(_TRACKER, "CommitmentTracker.process_evidence", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker.close_with_evidence", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker.add_commitment", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker.close_reflection_on_next", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker.sweep_for_expired", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker._recent_open_cids", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker._is_duplicate_of_recent_open", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker._resolve_project_for_cid", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker._ensure_project_open", "tracker", 2, "tracker"),
    Seam(_TRACKER, "CommitmentTracker._assign_project_if_needed", "tracker", 2, "tracker"),
    Seam(
        _RESTRUCTURING,
        "CommitmentRestructurer.consolidate_similar",
        "restructuring",
        2,
        "restructuring",
        ("CommitmentRestructurer._get_open_commitments", "CommitmentRestructurer._text_similarity"),
    ),
    Seam("pmm.runtime.recall", "suggest_recall", "recall", 2, "recall"),
    Seam("pmm.runtime.scene_compactor", "maybe_compact", "compactor", 2, "compactor"),
    Seam("pmm.runtime.memegraph", "MemeGraphProjection", "graph", 2, "graph"),
)
PARTS: tuple[str, ...] = tuple(dict.fromkeys(seam.part for seam in SEAMS))
"""The names in `PMM_SHM_PATCHES`."""

MODULES: frozenset[str] = frozenset(seam.module for seam in SEAMS)


def seam_of(module: str, name: str) -> Seam:
    """The seam with this name. Raises KeyError."""
    return _BY_NAME[module, name]


_BY_NAME = {(seam.module, seam.name): seam for seam in SEAMS}
