"""Checks of the names that users give to folds and models."""

from __future__ import annotations

from pmm_shm import limits
from pmm_shm.errors import ConfigError, UnknownFoldError


def checked_fold_name(name: object) -> None:
    """Check that a fold can have this name.

    Raises:
        UnknownFoldError: it cannot.
    """
    try:
        is_name = isinstance(name, str) and 0 < len(name.encode()) <= 64
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise UnknownFoldError(f"no fold {name!r:.80}: a name is text of 1 to 64 bytes")


def checked_model_name(name: object) -> str:
    """The name of a model. Raises `ConfigError`."""
    if not isinstance(name, str) or not 0 < len(name) <= limits.MODEL_NAME_CHARS_MAX or not name.isprintable():
        raise ConfigError(
            f"model: expected a name of 1 to {limits.MODEL_NAME_CHARS_MAX} printable characters, got {str(name)[:64]!r}"
        )
    return name
