"""The JSON that an event's hash covers is that of what readers will parse, however it was found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmm_shm.errors import InvalidEventError
from pmm_shm.frozen import frozen
from pmm_shm.ledger.new_events import canonical_json, new_event
from pmm_shm.ledger.rows import parse_meta

KEYS = st.one_of(st.text(max_size=4), st.integers(), st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(KEYS, inner), st.tuples(inner)),
    max_leaves=20,
)


def nested(levels: int) -> Any:
    return {"in": nested(levels - 1)} if levels else {1: "a", "1": "b"}


@given(st.dictionaries(st.text(max_size=4), VALUES), st.booleans())
def test_the_hash_covers_what_is_read(meta: dict[str, Any], is_frozen: bool) -> None:
    event = new_event("kind", "", frozen(meta) if is_frozen else meta)
    assert event[6] == canonical_json(parse_meta(event[3]))


@pytest.mark.parametrize("levels", [0, 1, 7, 8, 9, 12])
def test_keys_that_become_one_at_any_depth(levels: int) -> None:
    event = new_event("kind", "", {"in": nested(levels)})
    assert event[6] == canonical_json(parse_meta(event[3]))
    assert event[6].endswith('{"1":"b"}' + "}" * (levels + 1))


def test_nested_too_deep() -> None:
    meta: dict[str, Any] = {}
    for _ in range(2_000):
        meta = {"in": meta}
    with pytest.raises(InvalidEventError):
        new_event("kind", "", meta)
