"""Objects of users' modules, by `package.module:attribute`.

Such names are configuration: one from a ledger or a message must not be looked up, because importing a module runs it.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from pmm_shm.errors import ConfigError, PmmShmError


def load_object(name: str, what: str, broken: type[PmmShmError]) -> Any:
    """The object that `package.module:attribute` names.

    Parameters:
        what: names the object in messages.
        broken: the error for a module that does not import.

    Raises:
        ConfigError: the name has another form, or there is no such module or attribute.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ConfigError(f"{what} {name!r}: expected package.module:attribute")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # The missing module is this one or a package above it, rather than one that it imports.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{what} {name!r}: there is no module {error.name!r}") from None
        raise broken(f"{what} {name!r}: module {module_name!r} does not import: {in_one_line(error)}") from error
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise ConfigError(f"{what} {name!r}: module {module_name!r} has no {attribute!r}") from None


def in_one_line(error: BaseException) -> str:
    """Class and message of an error."""
    return " ".join(f"{type(error).__name__}: {error}".split())
