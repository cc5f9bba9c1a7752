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
        with late_imports:
            from dataclasses import dataclass

        names = owner.__annotations__
        space = {"__annotations__": names, **{name: vars(owner)[name] for name in names if name in vars(owner)}}
        fields: dict[str, Any] = vars(dataclass(frozen=True)(type(owner.__name__, (), space)))["__dataclass_fields__"]
        type.__setattr__(owner, "__dataclass_fields__", fields)
        return fields


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
    }
    for name, value in added.items():
        setattr(kind, name, value)
    return kind


def _initialiser(kind: type, names: tuple[str, ...]) -> Any:
    """`__init__`, compiled, so that its signature and its errors are Python's own."""
    defaults = {f"_default_{name}": vars(kind)[name] for name in names if name in vars(kind)}
    parameters = [f"{name}=_default_{name}" if f"_default_{name}" in defaults else name for name in names]
    lines = [f"    _set(self, {name!r}, {name})" for name in names]
    source = "\n".join([f"def __init__(self, {', '.join(parameters)}):", *lines])
    space: dict[str, Any] = {"_set": object.__setattr__, **defaults}
    exec(source, space)  # noqa: S102 - put together from the names of a class's own fields
    function = space["__init__"]
    function.__qualname__ = f"{kind.__qualname__}.__init__"
    function.__annotations__ = {**kind.__annotations__, "return": "None"}
    return function


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
