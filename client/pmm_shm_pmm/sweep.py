"""`CommitmentTracker.sweep_for_expired`: the ticks are counted once, in a fold, not anew for each commitment."""

from __future__ import annotations

from typing import Any

from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event
from pmm_shm_pmm import lists
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.lives import Lives, LivesFold


def lives_of(events: Any) -> Lives:
    """The lives of commitments in a list of events: from the frame at its end where it is the log, otherwise folded.

    Raises:
        Fallback: not a list of events whose ids rise.
    """
    if not isinstance(events, list):
        raise Fallback("no list")
    try:
        if events:
            view: Lives = lists.frame_of(events).fold("pmm_lives")
            return view
    except Fallback:
        pass
    fold, state = LivesFold(), State()
    before: Any = None
    for event in events:
        if type(event["id"]) is not int or (before is not None and event["id"] <= before):
            raise Fallback("ids that do not rise")
        before = event["id"]
        if event["kind"] in fold.kinds:
            fold.apply(Event(before, "", event["kind"], "", event.get("meta") or {}), state)
    return fold.view(state)


def sweep_for_expired(self: Any, events: Any, ttl_ticks: int = 10) -> list[dict[str, str]]:
    lives, ttl = lives_of(events), int(ttl_ticks)
    now = lives.ticks
    kept = [
        (life.ordinal, cid)
        for cid, life in lives.live.items()
        if now - life.opened_at_tick >= ttl and (life.snoozed_until is None or now > life.snoozed_until)
    ]
    return [{"cid": cid, "reason": "timeout"} for _, cid in sorted(kept)]
