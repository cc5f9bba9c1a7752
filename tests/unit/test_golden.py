"""The golden ledgers, every answer at every prefix, to the last float bit, by full replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_shm_client import EventLog, build_self_model_cached, connect, get_or_compute_ias_gas
from tests.support.golden_cases import (
    CASES,
    Case,
    Warnings,
    answers_of,
    assert_golden,
    make_ledger,
    parametrised,
    steps,
)


def test_there_are_cases() -> None:
    assert len(CASES) >= 56
    assert sum(len(case.answers) for case in CASES) >= 383


@parametrised(CASES)
def test_full_replay(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags' `false`: a plain replay everywhere, and by the two drop-in functions."""
    monkeypatch.setenv("PMM_USE_PROJECTION_CACHE", "false")
    monkeypatch.setenv("PMM_USE_METRICS_CACHE", "false")
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with EventLog(path) as log, connect(path) as cache:
        for golden, _ in steps(case, path):
            warnings = Warnings()
            model = build_self_model_cached(log, on_warn=warnings)
            answers = answers_of(cache, warnings.cids)
            assert model == answers["self_model"] or "nan" in repr(model)
            assert get_or_compute_ias_gas(log) == (golden["ias"], golden["gas"])
            assert_golden(answers, golden, case.name)
    assert not Path(f"{path}-cache").exists()
