"""Views that a reader makes anew behind every event: a read gives what a replay gives, in type and value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.state import State
from pmm_shm.frozen import FrozenDict, FrozenList
from pmm_shm.ledger.rows import Event
from pmm_shm_client import connect
from pmm_shm_client.cache import Cache
from tests.support.answers import everything, replayed
from tests.support.profiles import examples
from tests.support.publishing import Publisher, foreign


class Pair(NamedTuple):
    one: Any
    other: Any


scalars = st.sampled_from([0, 0.0, -0.0, False, 1, 1.0, True, float("nan"), None, "", "1", b"", b"1", bytearray(b"1")])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.lists(inner, max_size=2).map(tuple),
        st.lists(inner, max_size=2).map(FrozenList),
        st.builds(Pair, inner, inner),
        st.dictionaries(st.sampled_from([1, True, "a", "b"]), inner, max_size=2),
        st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2).map(FrozenDict),
    ),
    max_leaves=4,
)
_VALUES: list[Any] = []


class Anew(Fold):
    """A small view: the value that the newest tick names."""

    name = "anew"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"tick": ("meta",)}
    has_small_view = True

    def apply(self, event: Event, state: State) -> None:
        state["number"] = event.meta["number"]

    def view(self, state: State) -> Any:
        return _VALUES[state.get("number", 0)]


class Incomparable(Anew):
    name = "incomparable"

    def view(self, state: State) -> Any:
        class View:
            number = state.get("number", 0)

            def __eq__(self, other: object) -> bool:
                raise ValueError("ambiguous")

            __hash__ = None  # type: ignore[assignment]

        return View()


def exactly(value: Any) -> Any:
    """A value as text, with the types of all its parts, in their order."""
    if isinstance(value, dict):
        return type(value).__name__, [(exactly(key), exactly(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [exactly(item) for item in value]
    return type(value).__name__, repr(value)


@pytest.fixture(scope="module")
def anew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    path: Path = tmp_path_factory.mktemp("anew") / "ledger.db"
    with connect(path, folds=[Anew], create=True) as cache:
        yield cache


@given(read=st.lists(values, min_size=2, max_size=6))
@example(
    read=[(0,), (0.0,), (-0.0,), (False,), (1,), (1.0,), (True,), b"1", bytearray(b"1"), [1], (1,), Pair(1, 1), (1, 1)]
)
@settings(max_examples=examples(100))
def test_a_read_gives_the_value_of_now_after_an_equal_one(anew: Cache, read: list[Any]) -> None:
    for value in read:
        _VALUES.append(value)
        anew.append("tick", meta={"number": len(_VALUES) - 1})
        assert exactly(anew.fold("anew")) == exactly(value)
        assert exactly(anew.frame().fold("anew")) == exactly(value)


def test_views_that_cannot_be_compared(ledger: str) -> None:
    with connect(ledger, folds=[Incomparable]) as cache:
        for number in range(3):
            cache.append("tick", meta={"number": number})
            assert cache.fold("incomparable").number == number
            assert cache.frame().fold("incomparable").number == number


@pytest.mark.parametrize("is_published", [True, False])
def test_a_mean_that_becomes_a_negative_zero(ledger: str, is_published: bool) -> None:
    """-0.0 equals the mean before, 0.0. It is the least negative number, of which the tenth part is rounded."""
    publisher = Publisher(ledger)
    try:
        with connect(ledger) as cache:
            for ias in (*["0.0"] * 10, "-5e-324"):
                foreign(ledger, "autonomy_tick", "", f'{{"telemetry": {{"IAS": {ias}, "GAS": 0.0}}}}')
                if is_published:
                    publisher.publish()
                assert everything(cache) == everything(cache.frame()) == replayed(ledger)
            assert repr(cache.stage().snapshot["IAS_mean"]) == "-0.0"
    finally:
        publisher.close()
