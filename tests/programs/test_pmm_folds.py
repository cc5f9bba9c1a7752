"""The folds of `pmm_shm_pmm`: a patched view is that made anew, over whatever base, however the log is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm.folds.contract import BatchFold, checked_fold
from pmm_shm.folds.engine import apply_events
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event
from pmm_shm_pmm.folds import FOLDS, folds_of
from pmm_shm_pmm.seams import PARTS
from tests.support.pmm_events import event, odd_event


class _Stored:
    """A base in memory."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key, value) for key, value in self.values.items() if key.startswith(prefix)])

    def publish(self, state: State) -> None:
        for key, value in state.changes():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value


@pytest.mark.parametrize("fold", [kind() for kind in FOLDS], ids=lambda fold: fold.name)
@settings(max_examples=60, deadline=None)
@given(events=st.lists(st.one_of(event, odd_event), max_size=30), data=st.data())
def test_a_patched_view_is_one_made_anew(fold: BatchFold, events: list[Any], data: st.DataObject) -> None:
    base, at_once = _Stored(), State()
    state = State(base)
    view = fold.view(state)
    assert fold.kinds is not None
    made = [
        Event(number, "", kind, content, meta)
        for number, (kind, content, meta) in enumerate(events, 1)
        if kind in fold.kinds
    ]
    if made:
        apply_events(fold, made, at_once)
    while made:
        count = data.draw(st.integers(1, len(made)))
        apply_events(fold, made[:count], state)
        del made[:count]
        view = fold.patch(view, state, state.take_touched())
        assert view == fold.view(state)
        if data.draw(st.booleans()):
            base.publish(state)
            state = State(base)
    assert view == fold.view(at_once)
    assert not at_once.get("quarantine", 0)


def test_the_folds_keep_the_contract_and_belong_to_parts() -> None:
    for kind in FOLDS:
        checked_fold(kind())
    assert folds_of(PARTS) == list(FOLDS)
    assert folds_of(["log", "recall"]) == []
    assert [kind.name for kind in folds_of(["restructuring", "flags"])] == ["pmm_opens", "pmm_flags"]
