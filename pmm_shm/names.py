"""Which text may be the name of a model."""

from __future__ import annotations

from pmm_shm import limits
from pmm_shm.errors import ConfigError


def checked_model_name(name: object) -> str:
    """The name of a model. Raises `ConfigError`."""
    if not isinstance(name, str) or not 0 < len(name) <= limits.MODEL_NAME_CHARS_MAX or not name.isprintable():
        raise ConfigError(
            f"model: expected a name of 1 to {limits.MODEL_NAME_CHARS_MAX} printable characters, got {str(name)[:64]!r}"
        )
    return name
