"""Immutable copies of JSON values: still dicts and lists, comparable, serialisable, and read-only at every depth.

And the way back: results as plain values.
"""

from __future__ import annotations

from pmm_shm.late import late_imports
from pmm_shm.typed import Any, NoReturn, TypeVar

_T = TypeVar("_T")

_SCALARS = frozenset({str, int, float, bool, type(None)})


def _refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise TypeError("this view is read-only; copy it with pmm_shm.frozen.thawed or copy.deepcopy")


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed; `copy.deepcopy` gives a plain one."""

    __slots__ = ()
    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {key: thawed(value) for key, value in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class FrozenList(list[Any]):
    """A list that cannot be changed; `copy.deepcopy` gives a plain one."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [thawed(value) for value in self]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def frozen(value: Any) -> Any:
    """An immutable value equal to `value`."""
    if isinstance(value, dict):
        return FrozenDict({key: frozen(item) for key, item in value.items()})
    if isinstance(value, list):
        return FrozenList([frozen(item) for item in value])
    return value


def thawed(value: Any) -> Any:
    """A fresh plain copy of `value` that shares nothing mutable with it."""
    if isinstance(value, dict):
        for item in value.values():
            if item.__class__ not in _SCALARS:
                return {key: thawed(item) for key, item in value.items()}
        # Nearly every entry is flat, and a read of the self-model thaws hundreds: `dict.copy` is four times as fast.
        return dict.copy(value)
    if isinstance(value, list):
        return [thawed(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """A fresh copy of a result: named tuples as dicts by field names, mappings as dicts, sequences as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def plain_dict(value: Any) -> dict[str, Any]:
    """`plain` of a result with fields: a new dict by field names."""
    fields: dict[str, Any] = plain(value)
    return fields


def json_text(value: Any) -> str:
    """A plain value as JSON in ASCII. A number that JSON does not know (NaN, infinity) becomes null."""
    with late_imports:
        import json

    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def result(kind: type[_T]) -> type[_T]:
    """Class decorator: pydantic, and so FastAPI, takes a named tuple for an object with its fields, not for a list."""

    def schema(cls: type[_T], source: Any, handler: Any) -> Any:
        with late_imports:
            from pmm_shm.pydantic_schema import schema_of

        return schema_of(cls, handler)

    kind.__get_pydantic_core_schema__ = classmethod(schema)  # type: ignore[attr-defined]
    return kind
