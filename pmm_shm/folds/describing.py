"""What people see of a view: named numbers, texts and tables, made by `Fold.describe` and `Fold.explain_keys`."""

from __future__ import annotations

from collections.abc import Mapping, Set
from math import isfinite
from typing import Any

from pmm_shm.errors import FoldError
from pmm_shm.folds.contract import Fold

_SCALARS = (str, int, float, bool, type(None))


def description(fold: Fold, view: Any) -> dict[str, Any]:
    """Name to a number, a text, a list, or a table: a dict of these. All of it plain values.

    Raises:
        FoldError: `describe` fails.
    """
    return _hooked(fold, "describe", view)


def explainable(fold: Fold, view: Any) -> dict[str, Any]:
    """Key to value of all that `explain` can explain. All of it plain values.

    Raises:
        FoldError: `explain_keys` fails.
    """
    return _hooked(fold, "explain_keys", view)


def explained_value(fold: Fold, view: Any, key: str) -> Any:
    """The value at one key of `explainable`; None where there is none.

    Raises:
        FoldError: `explain_keys` fails.
    """
    return _hooked(fold, "explain_keys", view, key).get(key)


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
            found.update((f"{name}.{_text(key)}", entry) for key, entry in value.items())
        else:
            found[name] = value
    return found


def _hooked(fold: Fold, hook: str, view: Any, only: str | None = None) -> dict[str, Any]:
    try:
        found = {_text(name): value for name, value in getattr(fold, hook)(view).items()}
        return {name: _plain(value) for name, value in found.items() if only is None or name == only}
    except Exception as error:
        raise FoldError(f"fold {fold.name!r}: `{hook}` fails: {type(error).__name__}: {error}"[:400]) from error


def _plain(value: Any) -> Any:
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, Mapping):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, Set):
        return sorted((_plain(item) for item in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if repr(value) == object.__repr__(value) == str(value):
        # Its text would be its address.
        return f"({type(value).__name__})"
    return str(value)


def _text(key: Any) -> str:
    return key if isinstance(key, str) else ", ".join(map(_text, key)) if isinstance(key, tuple) else str(key)


def _is_finite(value: int | float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:
        return False
