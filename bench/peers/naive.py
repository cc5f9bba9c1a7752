"""An agent without caches, as PMM is without its own: for every answer it reads its whole event log, and folds it.

Reading is `EventLog.read_all()`: every event a dict, with its meta parsed. Folding is one pass of the fold that the
answer needs, over the events that it needs, as one batch: the least that such an agent can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pmm_shm.folds.contract import BatchFold
from pmm_shm.folds.directives import DirectivesFold
from pmm_shm.folds.history import HistoryFold
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.recent import RecentFold
from pmm_shm.folds.self_model import SelfModelFold
from pmm_shm.folds.stage import StageFold
from pmm_shm.folds.state import State
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.rows import Event
from pmm_shm.ledger.tail import Position
from pmm_shm_client.context import Context, ContextRequest, make_context
from pmm_shm_client.frame import Frame, Replays, Warnings
from pmm_shm_client.results import Metrics, SelfModelDict, self_model_dict

_ALL = (SelfModelFold, MetricsFold, StageFold, DirectivesFold, RecentFold, HistoryFold)


class Naive:
    """The answers that the benchmarks ask for, each by a separate replay; a context is one replay."""

    def __init__(self, ledger: str | Path) -> None:
        self._log = EventLog(ledger, create=False)

    def append(self, kind: str, content: str, meta: dict[str, Any]) -> int:
        return self._log.append(kind, content, meta)

    def self_model(self) -> SelfModelDict:
        (model,), _ = self._views([SelfModelFold()])
        return self_model_dict(model, strict=False)

    def metrics(self) -> Metrics:
        (scores,), as_of = self._views([MetricsFold()])
        return Metrics(scores.ias, scores.gas, as_of)

    def context(self, user_text: str | None = None, reflections: int = 3) -> Context:
        folds = [make() for make in _ALL]
        views, as_of = self._views(folds)
        named = {fold.name: view for fold, view in zip(folds, views, strict=True)}
        frame = Frame(Replays(_never, _never, _never), named, Warnings([], 0), Position(as_of, b""))
        return make_context(frame, ContextRequest.of(user_text, reflections, 0, 0), _never, _never)

    def close(self) -> None:
        self._log.close()

    def _views(self, folds: Sequence[BatchFold]) -> tuple[list[Any], int]:
        events = self._log.read_all()
        views = []
        for fold in folds:
            assert fold.kinds is not None
            state = State()
            fold.apply_batch([Event(**event) for event in events if event["kind"] in fold.kinds], state)
            views.append(fold.view(state))
        return views, events[-1]["id"] if events else 0


def _never(*_: object) -> Any:
    raise AssertionError("nothing is recalled")
