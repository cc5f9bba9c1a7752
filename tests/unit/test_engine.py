"""The engine's short cuts change nothing: one event for several folds, batches, and rows that no fold needs to see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.engine import DecodeFold, Engine
from pmm_shm.folds.recent import MESSAGE_KINDS, MESSAGES_MAX, RecentFold
from pmm_shm.folds.registry import built_in_folds
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event, InvalidText, RawRow
from pmm_shm_cli.synthetic import synthetic_rows

ROWS: list[RawRow] = list(islice(synthetic_rows(4), 1_500))
HOSTILE: list[Any] = [None, 7, 0.5, b"bytes", InvalidText(b"\xff"), "", "{", "[]", '{"cid": "a"}']


@st.composite
def logs(draw: st.DrawFn) -> list[RawRow]:
    """A part of a talkative agent's log, in which some content, meta, kinds and time stamps are others."""
    first = draw(st.integers(0, len(ROWS) - 1))
    rows = [list(row[:5]) for row in ROWS[first : first + draw(st.integers(1, 400))]]
    for _ in range(draw(st.integers(0, 8))):
        draw(st.sampled_from(rows))[draw(st.integers(1, 4))] = draw(st.sampled_from(HOSTILE))
    return [tuple(row) for row in rows]


def cut(rows: list[RawRow], sizes: list[int]) -> list[list[RawRow]]:
    """In batches of these sizes, the last one over and over."""
    batches, start = [], 0
    while start < len(rows):
        size = sizes[min(len(batches), len(sizes) - 1)]
        batches.append(rows[start : start + size])
        start += size
    return batches


def folded(folds: list[Fold], batches: list[list[RawRow]]) -> dict[str, dict[bytes, Any]]:
    """Fold name to what its state would be in a store."""
    engine, states = Engine(folds), {fold.name: State() for fold in folds}
    for rows in batches:
        engine.apply(rows, states)
    return {name: {key: value for key, value in state.changes() if value is not None} for name, state in states.items()}


def all_folds() -> list[Fold]:
    built_in = list(built_in_folds())
    return [*built_in, DecodeFold(built_in)]


@given(log=logs(), sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4))
def test_batches_and_shared_events_leave_the_state_of_single_ones(log: list[RawRow], sizes: list[int]) -> None:
    # As the contract has it: one event at a time, and nothing of it but the declared columns.
    plain: list[Fold] = [
        type("OneByOne", (type(fold),), {"takes_batches": False, "shares_events": False})() for fold in built_in_folds()
    ]
    plain.append(DecodeFold(plain))
    assert folded(all_folds(), cut(log, sizes)) == folded(plain, cut(log, [1]))


class Seen(Fold):
    """Keeps every event that it is given."""

    name = "seen"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"user": ("content",), "reflection": ("meta",), "autonomy_tick": ()}

    def apply(self, event: Event, state: State) -> None:
        state.table("seen")[event.id] = [event.kind, event.content, dict(event.meta)]

    def view(self, state: State) -> Any:
        return dict(state.table("seen").items())


def test_a_users_fold_sees_every_event_and_only_what_it_declares() -> None:
    folds = [*built_in_folds(), Seen()]
    states = {fold.name: State() for fold in folds}
    Engine(folds).apply(ROWS, states)
    assert Seen().view(states["seen"]) == {
        row[0]: [
            row[2],
            row[3] if row[2] == "user" else "",
            json.loads(row[4]) if row[2] == "reflection" else {},
        ]
        for row in ROWS
        if row[2] in Seen.kinds
    }


def test_of_a_long_batch_of_messages_only_the_newest_become_events() -> None:
    given_ids: list[int] = []

    class Watched(RecentFold):
        def apply_batch(self, events: Any, state: State) -> None:
            given_ids.extend(event.id for event in events)
            super().apply_batch(events, state)

    kinds = ("user", "response", "reflection")
    rows: list[RawRow] = [(number, "", kinds[number % 3], "text", "{}") for number in range(1, 3_001)]
    state = State()
    Engine([Watched()]).apply(rows, {"recent": state})
    of_kind = {kind: [one for one in given_ids if rows[one - 1][2] == kind] for kind in kinds}
    assert given_ids == sorted(given_ids)
    assert {kind: len(ids) for kind, ids in of_kind.items()} == {
        "user": MESSAGES_MAX,
        "response": MESSAGES_MAX,
        "reflection": 1_000,
    }
    newest = [row[0] for row in rows if row[2] in MESSAGE_KINDS][-MESSAGES_MAX:]
    assert [entry.id for entry in RecentFold().view(state).messages] == newest
