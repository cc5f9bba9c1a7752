"""A cache within one process: folds what is new, but reads its event list again to find it, and gives out deep copies.

What an agent does that keeps its state in memory and protects it from its readers.
"""

from __future__ import annotations

import copy
import sqlite3
from pathlib import Path

from pmm_shm.folds.engine import Engine
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.self_model import SelfModelFold
from pmm_shm.folds.state import State
from pmm_shm_client.results import Metrics, SelfModelDict, self_model_dict


class InProcess:
    """Self-model and metrics of one ledger."""

    def __init__(self, ledger: Path) -> None:
        self._connection = sqlite3.connect(ledger, isolation_level=None)
        self._folds = {"self_model": SelfModelFold(), "metrics": MetricsFold()}
        self._engine = Engine(list(self._folds.values()))
        self._states = {name: State() for name in self._folds}
        self._as_of = 0

    def metrics(self) -> Metrics:
        self._catch_up()
        scores = self._folds["metrics"].view(self._states["metrics"])
        return copy.deepcopy(Metrics(scores.ias, scores.gas, self._as_of))

    def self_model(self) -> SelfModelDict:
        self._catch_up()
        model = self._folds["self_model"].view(self._states["self_model"])
        return copy.deepcopy(self_model_dict(model, strict=False))

    def close(self) -> None:
        self._connection.close()

    def _catch_up(self) -> None:
        rows = self._connection.execute("SELECT id, ts, kind, content, meta FROM events ORDER BY id").fetchall()
        new = [row for row in rows if row[0] > self._as_of]
        if new:
            self._engine.apply(new, self._states)
            self._as_of = new[-1][0]
