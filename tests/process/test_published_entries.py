"""What a verification keeps of the published state: all of it, in little memory, with a digest that tells changes."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from pmm_shm.folds.state import State
from pmm_shm.projection.verification import PublishedEntries, entries_digest

_ENTRIES = st.dictionaries(st.binary(max_size=12), st.binary(max_size=12), max_size=12)


@given(_ENTRIES, st.randoms())
def test_entries_come_back_and_their_order_does_not_matter(entries: dict[bytes, bytes], random: random.Random) -> None:
    copy = PublishedEntries(entries.items())
    assert copy.as_dict() == entries
    items = list(entries.items())
    random.shuffle(items)
    assert entries_digest(items) == copy.digest == PublishedEntries(items).digest


@given(_ENTRIES, _ENTRIES)
def test_digests_are_equal_for_equal_entries_alone(one: dict[bytes, bytes], other: dict[bytes, bytes]) -> None:
    assert (entries_digest(one.items()) == entries_digest(other.items())) == (one == other)


@given(st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=4))
def test_a_byte_that_moves_from_key_to_value_is_a_difference(begin: bytes, middle: bytes, end: bytes) -> None:
    digests = {entries_digest([(begin + middle, end)]), entries_digest([(begin, middle + end)])}
    assert len(digests) == (2 if middle else 1)


def test_a_copy_takes_less_than_a_third_of_a_dict() -> None:
    state = State()
    for number in range(20_000):
        state.table("evidence")[f"commitment-{number:06}"] = number
    entries = [(key, value) for key, value in state.changes() if value is not None]
    tracemalloc.start()
    try:
        copy = PublishedEntries(iter(entries))
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        as_dict = copy.as_dict()
        of_dict = tracemalloc.get_traced_memory()[0] - taken
    finally:
        tracemalloc.stop()
    assert as_dict == dict(entries)
    assert taken < of_dict / 3
