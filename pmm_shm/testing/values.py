"""Views compared by what they hold, and looked at for parts that can be changed."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, MutableSequence, MutableSet, Set
from types import MappingProxyType
from typing import Any

from pmm_shm.frozen import FrozenDict, FrozenList

_PLAIN = (str, int, float, bool, bytes, type(None))
_READ_ONLY = (FrozenDict, FrozenList, MappingProxyType)
_DEPTH_MAX = 50


def shape(value: Any, depth: int = 0) -> Any:
    """A copy of a view for comparison: objects by their public
    fields, mappings and sets without order, NaN equal to NaN."""
    if depth > _DEPTH_MAX:
        return "..."
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, _PLAIN):
        # 1, 1.0 and True are equal, but read differently.
        return type(value).__name__, value
    if isinstance(value, Mapping):
        return {_keyed(key, depth): shape(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape(item, depth + 1) for item in value]
    if isinstance(value, Set):
        return frozenset(repr(shape(item, depth + 1)) for item in value)
    if "__eq__" in {name for kind in type(value).__mro__[:-1] for name in vars(kind)}:
        return value
    return {"": type(value).__qualname__, **{name: shape(item, depth + 1) for name, item in _fields(value).items()}}


def _keyed(key: Any, depth: int) -> Any:
    return key if isinstance(key, str) else repr(shape(key, depth + 1))


def _fields(value: Any) -> dict[str, Any]:
    """The public ones: what begins with "_" may be a memo."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [name for name in (*slots, *getattr(value, "__dict__", ())) if not name.startswith("_")]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def first_difference(one: Any, other: Any, path: str = "view") -> tuple[str, Any, Any] | None:
    """(path, its value in one, in the other) of the first difference of two shapes; None where they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return f"{path}[{key!r:.60}]", one.get(key, "nothing"), other.get(key, "nothing")
            found = first_difference(one[key], other[key], f"{path}[{key!r:.60}]")
            if found is not None:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            found = first_difference(left, right, f"{path}[{number}]")
            if found is not None:
                return found
        return None
    return None if one == other else (path, one, other)


def shown(value: Any) -> str:
    """A value of a shape, short."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    return f"{value!r:.200}"


def changeable_part(value: Any, path: str = "view", depth: int = 0) -> str | None:
    """Where a view can be changed: path and type; None if nowhere."""
    if isinstance(value, _PLAIN) or depth > _DEPTH_MAX:
        return None
    is_read_only = isinstance(value, _READ_ONLY)
    if not is_read_only and isinstance(value, (MutableMapping, MutableSequence, MutableSet)):
        return f"{path} is a {type(value).__name__}"
    if isinstance(value, Mapping):
        parts = [(f"{path}[{key!r:.60}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    else:
        return None
    return next((found for where, item in parts if (found := changeable_part(item, where, depth + 1))), None)
