"""What pydantic is told about results: objects with named fields, in both directions and in JSON Schema.

Imported only by programs that have pydantic: it calls this.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from pydantic_core import core_schema


def schema_of(kind: type[Any], handler: Any) -> Any:
    """The core schema of a named tuple. An instance passes as it is; a dict with its fields makes one."""
    hints = get_type_hints(kind)
    shape = core_schema.typed_dict_schema(
        {name: core_schema.typed_dict_field(handler.generate_schema(_open(hint))) for name, hint in hints.items()}
    )
    return core_schema.json_or_python_schema(
        json_schema=core_schema.no_info_after_validator_function(lambda fields: kind(**fields), shape),
        python_schema=core_schema.union_schema(
            [
                core_schema.is_instance_schema(kind),
                core_schema.no_info_after_validator_function(lambda fields: kind(**fields), shape),
            ]
        ),
        serialization=core_schema.plain_serializer_function_ser_schema(kind._asdict, return_schema=shape),
    )


def _open(hint: Any) -> Any:
    """The hint with any dict for a TypedDict: events may have other keys, too, and before Python 3.12 pydantic refuses
    those of the standard library.
    """
    if is_typeddict(hint):
        return dict[str, Any]
    origin, arguments = get_origin(hint), tuple(_open(one) for one in get_args(hint))
    if not arguments:
        return hint
    return Union[arguments] if origin in (Union, UnionType) else origin[arguments]  # noqa: UP007
