"""The parts of a view by their names, as plain values: texts, numbers, lists and tables."""

from __future__ import annotations

from collections.abc import Mapping, Set
from math import isfinite
from typing import Any

_SCALARS = (str, int, float, bool, type(None))


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values that can be drawn."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
    }


def described_view(view: Any) -> dict[str, Any]:
    """The parts of a view by their names: the default of `Fold.describe`."""
    if isinstance(view, Mapping):
        return dict(view)
    if isinstance(view, tuple) and hasattr(view, "_fields"):
        return dict(zip(view._fields, view, strict=True))
    return {"value": view} if isinstance(view, (*_SCALARS, list, tuple)) else {}


def flattened(described: Mapping[str, Any]) -> dict[str, Any]:
    """Each number, text and list by its name, each entry of a table by `table.key`: the default of `explain_keys`."""
    found: dict[str, Any] = {}
    for name, value in described.items():
        if isinstance(value, Mapping):
            found.update((f"{name}.{key_text(key)}", entry) for key, entry in value.items())
        else:
            found[name] = value
    return found


def plain(value: Any) -> Any:
    """The value of plain ones: tables with text as keys, lists, texts and numbers."""
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, Mapping):
        return {key_text(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if repr(value) == object.__repr__(value) == str(value):
        # Its text would be its address.
        return f"({type(value).__name__})"
    return str(value)


def key_text(key: Any) -> str:
    """A key of a table as text."""
    return key if isinstance(key, str) else ", ".join(map(key_text, key)) if isinstance(key, tuple) else str(key)


def _is_finite(value: int | float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:
        return False
