"""What people see of a view: named numbers, texts and tables, made by `Fold.describe` and `Fold.explain_keys`."""

from __future__ import annotations

from typing import Any

from pmm_shm.errors import FoldError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.view_parts import key_text, plain


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


def _hooked(fold: Fold, hook: str, view: Any, only: str | None = None) -> dict[str, Any]:
    try:
        found = {key_text(name): value for name, value in getattr(fold, hook)(view).items()}
        return {name: plain(value) for name, value in found.items() if only is None or name == only}
    except Exception as error:
        raise FoldError(f"fold {fold.name!r}: `{hook}` fails: {type(error).__name__}: {error}"[:400]) from error
