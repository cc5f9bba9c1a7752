"""Replaces names in PMM's modules, and remembers how it was.

Invariant: a name is replaced as a whole or stays; the reason why one stays is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cached_property, update_wrapper
from types import FunctionType, ModuleType
from typing import Any

from pmm_shm_pmm.fallback import Counts, with_fallback
from pmm_shm_pmm.known_sources import has_source, known_sources
from pmm_shm_pmm.references import holder, redirect
from pmm_shm_pmm.saying import say_once
from pmm_shm_pmm.seams import Seam, seam_of
from pmm_shm_pmm.settings import RunSettings

_MISSING: Any = object()
_METHOD_KINDS = (staticmethod, classmethod)


class Patcher:
    """The replacements of this process.

    Parameters:
        known: by `module:name`, the SHA-256 of the source that a replacement of tier 2 is right for; None for the
            table of this package.
        strict: replacements raise in place of falling back; for tests.

    Attributes:
        is_strict: the same.
        counts: by `module:name`, of the names that are replaced.
        kept: by `module:name`, why a name is PMM's own.
    """

    def __init__(self, settings: RunSettings, known: Mapping[str, str] | None = None, *, strict: bool = False) -> None:
        self.settings = settings
        self.counts: dict[str, Counts] = {}
        self.kept: dict[str, str] = {}
        self._given = known
        self.is_strict = strict
        self._originals: dict[tuple[str, str], Any] = {}
        # By the id of a replacement: it and its original.
        self._ours: dict[int, tuple[Any, Any]] = {}
        self._before: list[tuple[Any, str, Any]] = []

    def allows(self, module: ModuleType, name: str) -> bool:
        """Whether a name may be replaced: its part is on, and for tier 2 its source is known. Keeps why not."""
        seam = seam_of(module.__name__, name)
        if seam.part not in self.settings.parts:
            return False
        reason = self._reason_against(module, seam)
        if reason is None:
            self.kept.pop(seam.label, None)
        else:
            self.kept[seam.label] = reason
        return reason is None

    def replace(self, module: ModuleType, name: str, replacement: Callable[..., Any]) -> None:
        """Replace a function or method by one of the same signature, which may raise `Fallback`.

        A static method or class method stays one; `replacement` is a plain function either way.
        """
        if not self.allows(module, name):
            return
        owner, attribute = _owner_of(module, name)
        held = _held(owner, attribute)
        original = _function_of(held)
        if id(original) not in self._ours:
            counts = self.counts_of(seam_of(module.__name__, name).label)
            made = with_fallback(original, replacement, counts, strict=self.is_strict)
            self._set(module, name, type(held)(made) if isinstance(held, _METHOD_KINDS) else made)

    def replace_class(self, module: ModuleType, name: str, make_subclass: Callable[[Any], type]) -> None:
        """Replace a class by the subclass that `make_subclass(original)` returns; it gets the original's names."""
        if not self.allows(module, name):
            return
        original = getattr(module, name)
        if id(original) not in self._ours:
            made = make_subclass(original)
            _dress(made, original)
            self.counts_of(seam_of(module.__name__, name).label)
            self._set(module, name, made)

    def original(self, module_name: str, name: str) -> Any:
        """PMM's own function or class; for a name that is not replaced, its value."""
        try:
            return self._originals[module_name, name]
        except KeyError:
            return getattr(*_owner_of(sys.modules[module_name], name))

    def counts_of(self, label: str) -> Counts:
        """The counts of `module:name`; methods of a replaced class use them with `with_fallback`."""
        return self.counts.setdefault(label, Counts())

    def is_known(self, module: ModuleType, name: str) -> bool:
        """Whether the source of a name is that of the table; of a replacement, that of its original."""
        known = self._known.get(f"{module.__name__}:{name}")
        try:
            value = _function_of(_held(*_owner_of(module, name)))
        except AttributeError:
            return False
        return known is not None and has_source(value, known)

    def pairs(self, module: ModuleType | None = None) -> list[tuple[Any, Any]]:
        """The originals and their replacements, all or those of one module."""
        pairs = [(original, made) for made, original in self._ours.values()]
        return pairs if module is None else [pair for pair in pairs if pair[0].__module__ == module.__name__]

    def holder(self) -> str | None:
        """Something that still uses an original, in words; None for nothing."""
        before = [value for *_, value in self._before]
        return holder(self.pairs(), [self._originals, *self._ours.values(), *self._before, *before, before])

    def undo(self) -> None:
        """Put back all originals."""
        # In this order: after a reload, the later original is that of the module.
        for owner, attribute, before in self._before:
            if before is _MISSING:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, before)
        redirect([(made, original) for original, made in self.pairs()])
        self._before.clear()
        self._originals.clear()
        self._ours.clear()
        self.counts.clear()

    @cached_property
    def _known(self) -> Mapping[str, str]:
        if self._given is not None:
            return self._given
        further = self.settings.sources
        try:
            return known_sources(further)
        except (OSError, ValueError) as error:
            say_once("sources", f"PMM_SHM_SOURCES: {further}: {error}; it is not used")
            return known_sources()

    def _reason_against(self, module: ModuleType, seam: Seam) -> str | None:
        try:
            value = getattr(*_owner_of(module, seam.name))
        except AttributeError:
            return "this PMM has no such name"
        package = module.__name__.partition(".")[0]
        if str(getattr(value, "__module__", "")).partition(".")[0] != package:
            return "something else is in its place"
        if seam.tier == 2:
            for name in (seam.name, *seam.needs):
                if not self.is_known(module, name):
                    return "unknown source" if name == seam.name else f"unknown source of {name}"
        return None

    def _set(self, module: ModuleType, name: str, made: Any) -> None:
        owner, attribute = _owner_of(module, name)
        original, replacement = _function_of(_held(owner, attribute)), _function_of(made)
        self._before.append((owner, attribute, vars(owner).get(attribute, _MISSING)))
        self._originals[module.__name__, name] = original
        self._ours[id(replacement)] = (replacement, original)
        setattr(owner, attribute, made)


def _dress(made: Any, original: Any) -> None:
    """Give a subclass and its methods the names, texts and signatures of the original."""
    for attribute in ("__module__", "__qualname__", "__name__", "__doc__"):
        setattr(made, attribute, getattr(original, attribute))
    for name, value in list(vars(made).items()):
        theirs = getattr(original, name, None)
        if name == "__new__":
            # By which `inspect` tells what a class takes.
            value.__func__.__wrapped__ = original.__init__
        elif isinstance(value, FunctionType) and isinstance(theirs, FunctionType) and not hasattr(value, "__wrapped__"):
            update_wrapper(value, theirs)


def _owner_of(module: ModuleType, name: str) -> tuple[Any, str]:
    """The module or class that has a name, and the last part of the name."""
    class_name, dot, attribute = name.partition(".")
    return (getattr(module, class_name), attribute) if dot else (module, name)


def _held(owner: Any, attribute: str) -> Any:
    """The value as a module, a class or one of its bases holds it, not bound."""
    for one in owner.__mro__ if isinstance(owner, type) else (owner,):
        if attribute in vars(one):
            return vars(one)[attribute]
    raise AttributeError(attribute)


def _function_of(held: Any) -> Any:
    return held.__func__ if isinstance(held, _METHOD_KINDS) else held


_current: Patcher | None = None


def current() -> Patcher:
    """The patcher of this process. Raises RuntimeError where none is installed."""
    if _current is None:
        raise RuntimeError("nothing is replaced in this process")
    return _current


def make_current(patcher: Patcher | None) -> None:
    """Make it the one of this process."""
    global _current
    _current = patcher
