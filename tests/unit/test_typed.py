"""The stand-ins for `typing`: named tuples and typed dicts behave as those of the standard library."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing
from typing import Any

import pytest

from pmm_shm import typed
from pmm_shm.flags import Flag
from pmm_shm.folds.self_model import OpenCommitment
from pmm_shm_client.results import Metrics, SelfModelDict


class Own(typed.NamedTuple):
    """A point."""

    x: int
    y: str = "b"

    @property
    def both(self) -> str:
        """Its parts."""
        return f"{self.x}{self.y}"


class Standard(typing.NamedTuple):
    """A point."""

    x: int
    y: str = "b"

    @property
    def both(self) -> str:
        """Its parts."""
        return f"{self.x}{self.y}"


class Wider(Own):
    z = 3


@pytest.mark.parametrize("kind", [Own, Standard])
def test_a_named_tuple(kind: Any) -> None:
    point = kind(1)
    assert point == (1, "b")
    assert (point.x, point.y, point.both) == (1, "b", "1b")
    assert point._replace(x=2) == kind(2, y="b") == kind._make((2, "b"))
    assert point._asdict() == {"x": 1, "y": "b"}
    assert repr(point) == f"{kind.__name__}(x=1, y='b')"
    assert kind._fields == kind.__match_args__ == ("x", "y")
    assert kind._field_defaults == {"y": "b"}
    assert (kind.__name__, kind.__module__, kind.__bases__) == (kind.__name__, __name__, (tuple,))
    assert inspect.getdoc(kind) == "A point."
    assert list(inspect.signature(kind).parameters) == ["x", "y"]
    assert typing.get_type_hints(kind) == {"x": int, "y": str}
    for copied in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert copied == point
        assert type(copied) is kind
    with pytest.raises(TypeError):
        kind()
    with pytest.raises(AttributeError):
        point.x = 2


def test_a_subclass_of_a_named_tuple() -> None:
    wider = Wider(1)
    assert (wider.x, wider.z, wider) == (1, 3, (1, "b"))
    assert isinstance(wider, Own)


def test_types_of_results_can_be_evaluated() -> None:
    assert typing.get_type_hints(Metrics) == {"ias": float, "gas": float, "as_of": int}


def test_a_typed_dict_is_a_plain_dict_with_all_its_annotations() -> None:
    made = SelfModelDict(identity={"name": "Echo", "traits": {}}, commitments={"open": {}, "expired": {}})
    assert type(made) is dict
    assert list(OpenCommitment.__annotations__) == ["cid", "text", "source", "snoozed_until"]


@pytest.mark.parametrize("flag", [Flag.ON, Flag.OFF, Flag.UNSET])
def test_a_copy_of_a_flag_is_the_flag(flag: Flag) -> None:
    copies = [copy.copy(flag), copy.deepcopy(flag)]
    copies += [pickle.loads(pickle.dumps(flag, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    assert all(one is flag for one in copies)
