"""What our modules take from `typing`, which type checkers see as it is, without that module at run time.

With the modules that it needs, `typing` costs a new process 8 ms and 1 MB. It also compiles each annotation of a named
tuple, which takes as long as the rest of it. Modules of a first read import from here.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import Final as Final
    from typing import Literal as Literal
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import TypedDict as TypedDict
    from typing import TypeVar as TypeVar
    from typing import cast as cast
    from typing import overload as overload
else:
    # Of these, only annotations are made, which nobody evaluates, or which mean any value.
    Any = ClassVar = Final = NoReturn = object

    class Literal:
        def __class_getitem__(cls, values):
            return object

    def TypeVar(name, **_):
        return object

    def cast(kind, value):
        return value

    def overload(function):
        return function

    class Protocol:
        __slots__ = ()

    class TypedDict(dict):
        def __init_subclass__(cls, total=True):
            inherited = getattr(super(cls, cls), "__annotations__", {})
            cls.__annotations__ = {**inherited, **vars(cls).get("__annotations__", {})}

        def __new__(cls, *args, **kwargs):
            return dict(*args, **kwargs)

        @classmethod
        def __get_pydantic_core_schema__(cls, source, handler):
            # Any dict: those of events may have other keys, too.
            return handler.generate_schema(dict[str, Any])

    class _NamedTupleMaker(type):
        """Makes a named tuple of the annotations of a class."""

        def __new__(mcs, name, bases, namespace):
            if not bases:
                return super().__new__(mcs, name, bases, namespace)
            fields = namespace["__annotations__"]
            defaults = [namespace.pop(field) for field in fields if field in namespace]
            kind = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            for key, value in namespace.items():
                setattr(kind, key, value)
            kind.__new__.__annotations__ = fields
            return kind

    class NamedTuple(metaclass=_NamedTupleMaker):
        pass
