"""The name of the distribution, which text may be the name of a model, and the modes of a search."""

from __future__ import annotations

from pmm_shm import limits
from pmm_shm.errors import ConfigError

DISTRIBUTION = "pmm-shm"
SEARCH_MODES = ("meaning", "words", "hybrid", "auto")


def checked_search_mode(name: str, mode: object) -> str:
    """The mode that the argument `name` gives. Raises `ConfigError`."""
    if mode not in SEARCH_MODES:
        raise ConfigError(f"{name}: expected one of {', '.join(SEARCH_MODES)}, got {mode!r:.80}")
    return str(mode)


def checked_model_name(name: object) -> str:
    """The name of a model. Raises `ConfigError`."""
    if not isinstance(name, str) or not 0 < len(name) <= limits.MODEL_NAME_CHARS_MAX or not name.isprintable():
        raise ConfigError(
            f"model: expected a name of 1 to {limits.MODEL_NAME_CHARS_MAX} printable characters, got {str(name)[:64]!r}"
        )
    return name
