"""Embedders by name: the built-in ones, those of a provider, and a user's own.

A name is `local-bow`, `wordllama`, `openai:MODEL`, `openai:MODEL/DIMENSION`, or `package.module:attribute`. `auto` is
the best one that works offline and is installed. Each name has one instance in a process.

Names are configuration: a name from a ledger or a message must not be looked up here, because importing a module runs
it.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from pmm_shm.errors import ConfigError, EmbedderError, PmmShmError, UnknownModelError
from pmm_shm.late import late_imports
from pmm_shm.names import checked_model_name
from pmm_shm.user_objects import in_one_line, load_object
from pmm_shm.vectors import wordllama
from pmm_shm.vectors.embedder import Embedder, checked_embedder
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.openai import OpenAIEmbedder
from pmm_shm.vectors.wordllama import WordLlama

AUTO = "auto"
_BUILT_IN: dict[str, type[Embedder]] = {LocalBow.name: LocalBow, WordLlama.name: WordLlama}

_instances: dict[str, Embedder] = {}
# Reentrant: a user's factory may call `find_embedder`.
_lock = threading.RLock()


def resolved(name: str) -> str:
    """The name itself; for `auto`, that of the best embedder that works offline and is installed."""
    if name != AUTO:
        return name
    return WordLlama.name if wordllama.is_installed() else LocalBow.name


def advice_on(model: str) -> str | None:
    """One line about a model that `auto` would replace by a better one; None for any other model."""
    if model != LocalBow.name:
        return None
    found = f"{LocalBow.name} finds words, not meanings; PMM_EMBEDDER={AUTO} takes {WordLlama.name}"
    if wordllama.is_installed():
        return f"{found}, which is installed"
    with late_imports:
        from pmm_shm.installation import extra_command

    return f"{found}, when it is installed: {extra_command(WordLlama.name)}"


def find_embedder(name: str) -> Embedder:
    """The embedder of a name; the same object for the same name. Loads no model and sends no request.

    Raises:
        UnknownModelError: no embedder has this name.
        ConfigError: the object that the name refers to does not exist, or is not a usable embedder.
        EmbedderError: a user's module or factory failed.
    """
    name = resolved(checked_model_name(name))
    found = _instances.get(name)
    if found is not None:
        return found
    # Outside the lock: another thread may be importing the same module, and need the lock in it.
    target = load_object(name, "embedder", EmbedderError) if _is_users(name) else None
    with _lock:
        if name not in _instances:
            _instances[name] = _made(name, target)
        return _instances[name]


def _is_users(name: str) -> bool:
    return ":" in name and not name.startswith(OpenAIEmbedder.PREFIX)


def _made(name: str, target: object) -> Embedder:
    if name in _BUILT_IN:
        return checked_embedder(_BUILT_IN[name]())
    if name.startswith(OpenAIEmbedder.PREFIX):
        return checked_embedder(OpenAIEmbedder(name))
    if _is_users(name):
        return _users_embedder(name, target)
    known = ", ".join([AUTO, *_BUILT_IN, f"{OpenAIEmbedder.PREFIX}MODEL[/DIMENSION]", "package.module:attribute"])
    raise UnknownModelError(f"model {name!r}: there is no such embedder; there are {known}")


def _users_embedder(name: str, target: Any) -> Embedder:
    """A user's object, or the result of calling it, as an embedder."""
    made: Any = target
    if not isinstance(target, Embedder):
        if not callable(target):
            kind = type(target).__name__
            raise ConfigError(f"embedder {name!r}: expected an Embedder, a subclass of it or a factory, got {kind}")
        try:
            made = target()
        except (PmmShmError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise EmbedderError(f"embedder {name!r}: calling it failed: {in_one_line(error)}") from error
        if not isinstance(made, Embedder):
            raise ConfigError(f"embedder {name!r}: calling it gave no Embedder but {type(made).__name__}")
    try:
        embedder = checked_embedder(made)
    except AttributeError as error:
        raise ConfigError(f"embedder {name!r}: {error}") from None
    # All workers share the vectors of one name: those of another model must not be stored under it.
    if embedder.name in _BUILT_IN and not isinstance(embedder, _BUILT_IN[embedder.name]):
        raise ConfigError(f"embedder {name!r}: calls itself {embedder.name!r}, which is another embedder's name")
    return embedder


def _renew_lock() -> None:
    """In a forked child, which lacks the thread that may hold the lock. The instances handle forks themselves."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)
