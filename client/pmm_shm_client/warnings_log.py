"""Reports each close of a commitment without evidence once, to the `on_warn` of a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pmm_shm.folds.self_model import Cid, warning_count_in, warnings_since
from pmm_shm.folds.state import State

OnWarn = Callable[[dict[str, Any]], object]
CloseWithoutEvidence = tuple[Cid, int]
"""(cid, event id)"""


class Warnings(NamedTuple):
    """The closes without evidence up to some position: the first `total` of `closes`, a list that only grows."""

    closes: list[CloseWithoutEvidence]
    total: int


class WarningsLog:
    """The closes without evidence that were seen and reported; starts again when the ledger is replaced.

    It keeps what it has seen, so that each read decodes only newer ones.
    """

    def __init__(self) -> None:
        self._closes: list[CloseWithoutEvidence] = []
        self._reported = 0

    def of(self, state: State) -> Warnings:
        """The closes without evidence in a state of the self-model, at any position."""
        count = warning_count_in(state)
        known = min(len(self._closes), count)
        if known and tuple(state.table("warnings")[known - 1]) != self._closes[known - 1]:
            # Another history. (A state with fewer closes is only an older one.) Holders of the old list keep it.
            self._closes, self._reported = [], 0
        if len(self._closes) < count:
            self._closes += [(cid, event_id) for cid, event_id in warnings_since(state, len(self._closes))]
        return Warnings(self._closes, count)

    def report(self, warnings: Warnings, on_warn: OnWarn) -> None:
        """Pass each new warning to `on_warn`; its exceptions never reach the reader."""
        if warnings.closes is not self._closes:
            return
        fresh = warnings.closes[self._reported : warnings.total]
        self._reported += len(fresh)
        for cid, event_id in fresh:
            warn(cid, event_id, on_warn)


def warn(cid: Cid, event_id: int, on_warn: OnWarn) -> None:
    """Report one close without evidence."""
    meta = {"cid": cid, "eid": event_id, "reason": "close_without_evidence"}
    content = f"commitment {cid!r} was closed by event {event_id} without prior evidence"
    try:
        on_warn({"kind": "projection_warn", "content": content, "meta": meta})
    except Exception:
        pass
