"""`context` of the golden cases."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from pmm_shm_client import connect
from tests.support import answers
from tests.support.context import context_of
from tests.support.context_rules import spec_block
from tests.support.golden_cases import Case, cases, make_ledger, write_events


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_golden_cases(case: Case, tmp_path: Path) -> None:
    """Against blocks made of the reference answers alone; warm, cold, and by a full replay."""
    path = tmp_path / "l.db"
    make_ledger(path)
    done = compared = 0
    with connect(path) as warm:
        for answer in sorted(case.answers, key=lambda one: one["prefix"]):
            write_events(path, case.events[done : answer["prefix"]])
            done = answer["prefix"]
            context = warm.context("hello", messages=4)
            # In the JSON of the answers, 7 and "7" are one key.
            if len(answer["open_order"]) == len(set(map(str, answer["open_order"]))):
                assert str(context) == spec_block(answer, case.events[:done], 4)
                compared += 1
            with mock.patch.dict(os.environ, answers.FLAGS_OFF):
                assert repr(context_of(str(path), "hello", messages=4)) == repr(context)
            assert repr(context_of(str(path), messages=4)) == repr(context)
    assert compared > 0
