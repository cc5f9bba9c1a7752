"""The functions that stand for PMM's, alone: each golden call, and nothing falls back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_pmm.patching import Patcher
from pmm_shm_pmm.seams import SEAMS
from tests.support import run_golden
from tests.support.launched import launched


@pytest.fixture(scope="module", autouse=True)
def patcher() -> Iterator[Patcher]:
    with launched() as patcher:
        yield patcher


def _is_left_to_pmm(call: dict[str, Any]) -> bool:
    """Calls of other replacements, and the slices of the whole graph."""
    owner, _, name = call["call"].partition(".")
    is_whole = name == "graph_slice" and call["kwargs"].get("min_confidence", 1.0) <= 0.5
    return is_whole or owner in ("fold", "metrics") or (owner == "eventlog" and name != "verify_chain")


def _is_not_compared(call: dict[str, Any]) -> bool:
    """From Python 3.12 on, sums of floats are more exact, in PMM as in the replacement: the golden scores are of 3.11.
    There `test_pmm_against_standin` compares both.
    """
    has_scores = call["call"] in ("tracker.find_evidence", "tracker.process_evidence")
    return _is_left_to_pmm(call) or (has_scores and sys.version_info >= (3, 12))


@pytest.mark.parametrize("name", run_golden.names())
def test_the_replacements_give_the_golden_answers(name: str, tmp_path: Path) -> None:
    assert list(map(str, run_golden.replay(name, tmp_path, skip=_is_not_compared))) == []


# All calls of all cases once more.
@pytest.mark.timeout(300)
def test_every_function_has_answered_and_none_fell_back(patcher: Patcher, tmp_path: Path) -> None:
    for name in run_golden.names():
        folder = tmp_path / name
        folder.mkdir()
        run_golden.replay(name, folder, skip=_is_left_to_pmm)
    calls = [call for name in run_golden.names() for call in run_golden.case(name)["calls"]]
    slices = [call for call in calls if call["call"] == "memegraph.graph_slice"]
    assert sum(map(_is_left_to_pmm, slices)) == 8
    labels = {seam.label for seam in SEAMS if seam.tier == 2 and seam.part not in ("lazy", "graph")}
    labels |= {f"pmm.runtime.memegraph:MemeGraphProjection.{name}" for name in ("graph_slice", "stage_history")}
    counts = {label: patcher.counts[label] for label in labels}
    assert {label for label, one in counts.items() if not one.answered or one.fallbacks} == set()
