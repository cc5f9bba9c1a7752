"""The fold behind `sweep_for_expired`: commitments that were never closed or expired.

State:
    cells `ticks`, `count` (the next ordinal);
    tables `live` (text of a cid to the fields of `Life`), `ended` (text of a cid to True), `snoozed` (text of a cid
    that was not opened yet to the greatest tick of its snoozes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from pmm_shm.folds.fields import to_int
from pmm_shm.folds.state import State, Touched
from pmm_shm.ledger.rows import Event
from pmm_shm_pmm.handler_fold import META, Columns, Handler, HandlerFold, loaded, next_ordinal, patched_rows


class Life(NamedTuple):
    """A commitment never closed or expired; `snoozed_until` is the greatest tick of its snoozes, None without one."""

    ordinal: int
    opened_at_tick: int
    snoozed_until: int | None


class Lives(NamedTuple):
    """The number of ticks, and text of a cid to its life; `Life.ordinal` gives the order of first openings."""

    ticks: int
    live: Mapping[str, Life]


def _lives_tick(event: Event, state: State) -> None:
    state["ticks"] = state.get("ticks", 0) + 1


def _lives_open(event: Event, state: State) -> None:
    cid = event.meta.get("cid")
    key = str(cid)
    live = state.table("live")
    known = live.get(key)
    if known is None:
        if key not in state.table("ended"):
            live[key] = [next_ordinal(state), state.get("ticks", 0), state.table("snoozed").get(key)]
    elif type(cid) is not str:
        # Of a cid that is text the first opening counts, of any other the last.
        live[key] = [known[0], state.get("ticks", 0), known[2]]


def _lives_end(event: Event, state: State) -> None:
    cid = event.meta.get("cid")
    if cid:
        key = str(cid)
        state.table("ended")[key] = True
        if key in state.table("live"):
            del state.table("live")[key]


def _lives_snooze(event: Event, state: State) -> None:
    key = str(event.meta.get("cid"))
    until = to_int(event.meta.get("until_tick") or 0) or 0
    live, snoozed = state.table("live"), state.table("snoozed")
    known = live.get(key)
    if known is not None:
        live[key] = [known[0], known[1], until if known[2] is None else max(known[2], until)]
    elif key not in state.table("ended"):
        before = snoozed.get(key)
        snoozed[key] = until if before is None else max(before, until)


class LivesFold(HandlerFold):
    """Computes `Lives`."""

    name = "pmm_lives"
    kinds: Mapping[str, Columns] = {
        "autonomy_tick": (),
        "commitment_open": META,
        "commitment_close": META,
        "commitment_expire": META,
        "commitment_snooze": META,
    }
    handlers: ClassVar[Mapping[str, Handler]] = {
        "autonomy_tick": _lives_tick,
        "commitment_open": _lives_open,
        "commitment_close": _lives_end,
        "commitment_expire": _lives_end,
        "commitment_snooze": _lives_snooze,
    }

    def view(self, state: State) -> Lives:
        return Lives(state.get("ticks", 0), loaded(state.table("live"), Life._make))

    def patch(self, view: Lives, state: State, touched: Touched) -> Lives:
        live, keys = view.live, touched.tables.get("live")
        if keys:
            live = patched_rows(live, keys, state.table("live").get, Life._make)
        return Lives(state.get("ticks", 0), live)
