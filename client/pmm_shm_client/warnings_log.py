"""Which closes without evidence a cache knows of, and which it has reported already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pmm_shm.folds.self_model import warning_count_in, warnings_since
from pmm_shm.folds.state import State

OnWarn = Callable[[dict[str, Any]], object]
Close = tuple[str | int, int]
"""(cid, event id) of a close without evidence."""


class Warnings(NamedTuple):
    """The closes without evidence up to some position: the first `total` of `closes`, which only ever grows."""

    closes: list[Close]
    total: int


class WarningsLog:
    """Reports each close without evidence once; after the ledger was replaced, those of the new one.

    What it knows is kept, so that a read looks at those alone that came since the last one.
    """

    def __init__(self) -> None:
        self._closes: list[Close] = []
        self._reported = 0

    def of(self, state: State) -> Warnings:
        """Those of `state`, the self-model's, of any position."""
        count = warning_count_in(state)
        known = min(len(self._closes), count)
        if known and tuple(state.table("warnings")[known - 1]) != self._closes[known - 1]:
            # Another history. A state with fewer closes is only an older one. Who has the old list keeps it.
            self._closes, self._reported = [], 0
        if len(self._closes) < count:
            self._closes += [(cid, event_id) for cid, event_id in warnings_since(state, len(self._closes))]
        return Warnings(self._closes, count)

    def report(self, warnings: Warnings, on_warn: OnWarn) -> None:
        """Hand each warning that is new to `on_warn`; what it raises never reaches the reader."""
        if warnings.closes is not self._closes:
            return
        fresh = warnings.closes[self._reported : warnings.total]
        self._reported += len(fresh)
        for cid, event_id in fresh:
            warn(cid, event_id, on_warn)


def warn(cid: str | int, event_id: int, on_warn: OnWarn) -> None:
    """Report one close without evidence."""
    meta = {"cid": cid, "eid": event_id, "reason": "close_without_evidence"}
    content = f"commitment {cid!r} was closed by event {event_id} without prior evidence"
    try:
        on_warn({"kind": "projection_warn", "content": content, "meta": meta})
    except Exception:
        pass
