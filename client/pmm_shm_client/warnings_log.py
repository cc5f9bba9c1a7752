"""Which closes without evidence a cache has reported already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pmm_shm.folds.self_model import warnings_since
from pmm_shm.folds.state import State

OnWarn = Callable[[dict[str, Any]], object]


class Warning(NamedTuple):
    """One close without evidence: its place among all of them, and what it closed."""

    ordinal: int
    cid: str | int
    event_id: int


class WarningsLog:
    """Reports each close without evidence once; after the ledger was replaced, those of the new one."""

    def __init__(self) -> None:
        self._reported: list[tuple[str | int, int]] = []

    def unreported(self, state: State) -> list[Warning]:
        """What this log has not reported yet, in order; `state` is the self-model's, of any position."""
        known = min(len(self._reported), state.get("warnings", 0))
        if known and tuple(warnings_since(state, known - 1)[0]) != self._reported[known - 1]:
            # Another history. A state with fewer closes is only an older one.
            self._reported.clear()
        start = len(self._reported)
        return [Warning(start + index, row[0], row[1]) for index, row in enumerate(warnings_since(state, start))]

    def report(self, warnings: Iterable[Warning], on_warn: OnWarn) -> None:
        """Hand each warning that is new to `on_warn`; what it raises never reaches the reader."""
        for ordinal, cid, event_id in warnings:
            if ordinal == len(self._reported):
                self._reported.append((cid, event_id))
                warn(cid, event_id, on_warn)


def warn(cid: str | int, event_id: int, on_warn: OnWarn) -> None:
    """Report one close without evidence."""
    meta = {"cid": cid, "eid": event_id, "reason": "close_without_evidence"}
    content = f"commitment {cid!r} was closed by event {event_id} without prior evidence"
    try:
        on_warn({"kind": "projection_warn", "content": content, "meta": meta})
    except Exception:
        pass
