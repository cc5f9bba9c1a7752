"""Folds that only PMM's functions need: registered by this package, so that nobody else pays for them.

Their views hold what is open: a patch costs as much as that, not as the log.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from pmm_shm.folds.contract import BatchFold
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event
from pmm_shm_pmm.graph_fold import GraphFold
from pmm_shm_pmm.handler_fold import BOTH, Columns, Handler, HandlerFold
from pmm_shm_pmm.lives import LivesFold
from pmm_shm_pmm.opens import OpensFold, ProjectsFold

_FLAG_NAME = "ngram_repeat_telemetry"
_ON = frozenset({"on", "true", "1", "enable", "enabled", "yes"})
_OFF = frozenset({"off", "false", "0", "disable", "disabled", "no"})


def _flag(event: Event, state: State) -> None:
    meta = event.meta
    if str(meta.get("name") or "").strip().lower() == _FLAG_NAME:
        value = str(meta.get("value") or meta.get("state") or event.content).strip().lower()
        if value in _ON or value in _OFF:
            state["ngram_repeat"] = value in _ON


class FlagsFold(HandlerFold):
    """Computes whether the telemetry of repeated n-grams is on."""

    name = "pmm_flags"
    kinds: Mapping[str, Columns] = {"directive": BOTH}
    handlers: ClassVar[Mapping[str, Handler]] = {"directive": _flag}

    def view(self, state: State) -> bool:
        return state.get("ngram_repeat", False)  # type: ignore[no-any-return]


_NEEDS: Mapping[str, tuple[type[BatchFold], ...]] = {
    "tracker": (LivesFold, OpensFold, ProjectsFold),
    "restructuring": (OpensFold,),
    "graph": (GraphFold,),
    "flags": (FlagsFold,),
}
"""By the parts in `seams.PARTS`."""

FOLDS: tuple[type[BatchFold], ...] = (LivesFold, OpensFold, ProjectsFold, GraphFold, FlagsFold)


def folds_of(parts: Collection[str]) -> list[type[BatchFold]]:
    """The folds that replacements of these parts read; a cache and its daemon must know them."""
    needed = {fold for part in parts for fold in _NEEDS.get(part, ())}
    return [fold for fold in FOLDS if fold in needed]
