"""The stand-in for PMM gives what PMM gave, so it can stand for PMM where a launched one is compared."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import run_golden, standin_package


@pytest.fixture(scope="module", autouse=True)
def _pmm() -> Iterator[None]:
    with standin_package.importable():
        yield


@pytest.mark.parametrize("name", run_golden.names())
def test_the_stand_in_gives_the_golden_answers(name: str, tmp_path: Path) -> None:
    assert list(map(str, run_golden.replay(name, tmp_path))) == []


def test_few_golden_calls_are_left_out() -> None:
    calls = [call for name in run_golden.names() for call in run_golden.case(name)["calls"]]
    assert len(calls) == 800
    assert sum(map(run_golden.is_undescribed, calls)) == 8


@pytest.mark.parametrize("name", standin_package.TIER_2)
def test_the_table_has_the_hashes_of_the_sources(name: str) -> None:
    module, _, qualified = name.partition(":")
    found = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    assert standin_package.hashes()[name] == hashlib.sha256(inspect.getsource(found).encode("utf-8")).hexdigest()


def test_the_other_package_differs_in_one_function(tmp_path: Path) -> None:
    name = "pmm.commitments.tracker:CommitmentTracker.find_evidence"
    before, after = standin_package.hashes(), standin_package.hashes(standin_package.other(tmp_path, name))
    assert [key for key in before if before[key] != after[key]] == [name]
    with standin_package.importable(tmp_path):
        tracker = importlib.import_module("pmm.commitments.tracker")
        assert tracker.CommitmentTracker(None).find_evidence([], [{"cid": "c", "text": "t"}])
