"""Records are dataclasses to whoever uses them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest
from pmm_shm_client.results import History, Metrics

from pmm_shm.endpoints import Endpoints

METRICS = Metrics(0.5, 0.25, 7)


def test_it_is_made_by_place_and_by_name() -> None:
    assert Metrics(0.5, gas=0.25, as_of=7) == METRICS
    assert Endpoints("c", "a", "n", 1) == Endpoints("c", "a", "n", 1, reports="")
    with pytest.raises(TypeError, match="gas"):
        Metrics(0.5, as_of=7)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        Metrics(0.5, 0.25, 7, other=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="two values for 'ias'"):
        Metrics(0.5, 0.25, 7, ias=1.0)  # type: ignore[misc]
    with pytest.raises(TypeError, match="takes 3 values, got 4"):
        Metrics(0.5, 0.25, 7, 8)  # type: ignore[call-arg]


def test_it_is_shown_compared_and_hashed_as_a_dataclass() -> None:
    plain = dataclasses.make_dataclass("Metrics", ["ias", "gas", "as_of"], frozen=True)(0.5, 0.25, 7)
    assert repr(METRICS) == repr(plain) == "Metrics(ias=0.5, gas=0.25, as_of=7)"
    assert hash(METRICS) == hash(plain)
    for other in (plain, (0.5, 0.25, 7), Metrics(0.5, 0.25, 8)):
        assert other != METRICS
    match METRICS:
        case Metrics(ias, gas, as_of):
            assert (ias, gas, as_of) == (0.5, 0.25, 7)


def test_it_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'ias'"):
        METRICS.ias = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'ias'"):
        del METRICS.ias  # type: ignore[misc]
    assert METRICS.ias == 0.5


def test_the_functions_of_dataclasses_take_it() -> None:
    assert dataclasses.is_dataclass(Metrics)
    assert dataclasses.is_dataclass(METRICS)
    assert dataclasses.asdict(METRICS) == {"ias": 0.5, "gas": 0.25, "as_of": 7}
    assert dataclasses.replace(METRICS, as_of=8) == Metrics(0.5, 0.25, 8)
    assert [field.name for field in dataclasses.fields(History)] == list(History.__match_args__)
    assert [field.default for field in dataclasses.fields(Endpoints)][-1] == ""
    assert str(inspect.signature(Endpoints)).startswith("(commands: 'str', admin: 'str', ")


def test_it_is_copied_and_pickled() -> None:
    assert copy.deepcopy(METRICS) == METRICS
    assert pickle.loads(pickle.dumps(METRICS)) == METRICS
