"""The results of the read methods: immutable, each with `as_of`, the newest event it includes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pmm_shm.folds.history import NameChange, Point, StageChange
from pmm_shm.folds.recent import Entry, Telemetry
from pmm_shm.folds.self_model import Cid, SelfModel
from pmm_shm.frozen import thawed


class Identity(NamedTuple):
    """The adopted name (None if there is none) and the five traits (name to float, in the order O C E A N)."""

    name: Any
    traits: Mapping[str, float]
    as_of: int


class Commitments(NamedTuple):
    """Open commitments (cid to meta) and expired ones (cid to {"text", "expired_at", "reason"}), in order."""

    open: Mapping[Cid, Mapping[str, Any]]
    expired: Mapping[Cid, Mapping[str, Any]]
    as_of: int


class Metrics(NamedTuple):
    """IAS and GAS, 0.0 to 1.0."""

    ias: float
    gas: float
    as_of: int


class Stage(NamedTuple):
    """The stage, "S0" to "S4", and the snapshot {"IAS_mean", "GAS_mean", "count", "window"}."""

    stage: str
    snapshot: Mapping[str, Any]
    as_of: int


class Recent(NamedTuple):
    """The newest 32 reflections and 64 messages, oldest first, and the newest tick with telemetry, or None."""

    reflections: tuple[Entry, ...]
    messages: tuple[Entry, ...]
    telemetry: Telemetry | None
    as_of: int


class History(NamedTuple):
    """IAS and GAS over the life of the ledger, in bounded space: oldest first.

    A sample is taken after each event that changes IAS or GAS; between two samples the scores are constant. A point
    summarises the samples of `stride` event ids. `stages` and `names` are the newest 256 changes, `stage_changes` and
    `name_changes` count all.
    """

    points: tuple[Point, ...]
    stride: int
    stages: tuple[StageChange, ...]
    stage_changes: int
    names: tuple[NameChange, ...]
    name_changes: int
    as_of: int


def self_model_dict(model: SelfModel, *, strict: bool) -> dict[str, Any]:
    """The self-model as a new dict that shares nothing with the view.

    Raises:
        ProjectionInvariantError: with `strict`, if the state violates an invariant.
    """
    if strict and model.violation is not None:
        violation = model.violation
        # A new one: a raised exception keeps the traceback of its reader.
        raise type(violation)(violation.violation, violation.cid, violation.event_id)
    return {
        "identity": {
            "name": thawed(model.name),
            "traits": dict(model.strict_traits if strict else model.traits),
        },
        "commitments": {
            "open": {cid: thawed(entry) for cid, entry in model.open.items()},
            "expired": {cid: thawed(entry) for cid, entry in model.expired.items()},
        },
    }
