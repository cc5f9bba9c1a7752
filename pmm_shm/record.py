"""Frozen dataclasses that do not cost a reader the import of `dataclasses`.

That module imports `inspect`, and with it what takes source code apart: together more than all else that a first read
imports of the standard library. What is made here is the same to its users (`asdict`, `replace` and `fields` work) and
to type checkers; `dataclasses` is imported when somebody asks for the fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pmm_shm.late import late_imports

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as record

__all__ = ["record"]

_T = TypeVar("_T")


class _Fields:
    """What `dataclasses` knows a dataclass by, made on first use."""

    def __get__(self, _: object, owner: type) -> dict[str, Any]:
        fields: dict[str, Any] = vars(_as_dataclass(owner))["__dataclass_fields__"]
        type.__setattr__(owner, "__dataclass_fields__", fields)
        return fields


class _Signature:
    """What `help` and `inspect` show, made on first use."""

    def __get__(self, _: object, owner: type) -> Any:
        with late_imports:
            from inspect import signature

        return signature(_as_dataclass(owner))


def _as_dataclass(kind: type) -> type:
    with late_imports:
        from dataclasses import dataclass

    names = kind.__annotations__
    space = {"__annotations__": names, **{name: vars(kind)[name] for name in names if name in vars(kind)}}
    return dataclass(frozen=True)(type(kind.__name__, (), space))


if not TYPE_CHECKING:

    def record(*, frozen: bool) -> Callable[[type[_T]], type[_T]]:
        """As `dataclasses.dataclass` of the same argument, for classes without a base that is one."""
        assert frozen
        return _made


def _made(kind: type[_T]) -> type[_T]:
    names = tuple(kind.__annotations__)
    added = {
        "__init__": _initialiser(kind, names),
        "__repr__": _repr,
        "__eq__": _eq,
        "__hash__": _hash,
        "__setattr__": _refuse_set,
        "__delattr__": _refuse_delete,
        "__match_args__": names,
        "__dataclass_fields__": _Fields(),
        "__signature__": _Signature(),
    }
    for name, value in added.items():
        setattr(kind, name, value)
    return kind


def _initialiser(kind: type, names: tuple[str, ...]) -> Any:
    defaults = {name: vars(kind)[name] for name in names if name in vars(kind)}

    def __init__(self: Any, *values: Any, **named: Any) -> None:
        if named or len(values) != len(names):
            values = _completed(kind.__name__, names, defaults, values, named)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, value)

    __init__.__qualname__ = f"{kind.__qualname__}.__init__"
    return __init__


def _completed(
    kind: str, names: tuple[str, ...], defaults: dict[str, Any], values: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, ...]:
    """The values of all fields. Raises `TypeError`, as a call of any function does."""
    if len(values) > len(names):
        raise TypeError(f"{kind}() takes {len(names)} values, got {len(values)}")
    given = dict(zip(names, values, strict=False))
    for name in named:
        if name not in names:
            raise TypeError(f"{kind}() has no field {name!r}")
        if name in given:
            raise TypeError(f"{kind}() got two values for {name!r}")
    found = {**defaults, **given, **named}
    missing = [name for name in names if name not in found]
    if missing:
        raise TypeError(f"{kind}() lacks {', '.join(map(repr, missing))}")
    return tuple([found[name] for name in names])


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__match_args__])


def _repr(self: Any) -> str:
    shown = ", ".join([f"{name}={getattr(self, name)!r}" for name in self.__match_args__])
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse_set(self: Any, name: str, _: object) -> None:
    raise _frozen(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    raise _frozen(f"cannot delete field {name!r}")


def _frozen(reason: str) -> AttributeError:
    with late_imports:
        from dataclasses import FrozenInstanceError

    return FrozenInstanceError(reason)
