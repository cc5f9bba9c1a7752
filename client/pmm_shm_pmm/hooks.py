"""A finder that lets modules be changed right after they were executed, before anybody can import from them.

It finds modules where the other finders do, in their order. It also sees a reload, and the second import after one that
failed. An error of the module itself leaves unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OnExecuted = Callable[[ModuleType], None]
"""Gets a module that was just executed; must not raise."""


class PmmModuleFinder:
    """The first entry of `sys.meta_path`.

    Parameters:
        names: of the modules to change.
        on_executed: changes one of them.
        package: its name, and `on_missing`: called when an import does not find it.
    """

    def __init__(
        self, names: Container[str], on_executed: OnExecuted, package: str, on_missing: Callable[[], None]
    ) -> None:
        self._names = names
        self._on_executed = on_executed
        self._package = package
        self._on_missing = on_missing

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names and fullname != self._package:
            return None
        spec = self._found_by_others(fullname, path, target)
        if fullname == self._package:
            if spec is None:
                self._on_missing()
        elif spec is not None and hasattr(spec.loader, "exec_module"):
            loader: Any = _Loader(spec.loader, self._on_executed)
            spec.loader = loader
        return spec

    def _found_by_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
            if spec is not None:
                return spec
        return None


class _Loader:
    """Loads as another loader does, whose place it takes only until the module is executed."""

    def __init__(self, loader: Any, on_executed: OnExecuted) -> None:
        self._loader = loader
        self._on_executed = on_executed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        # It may have put another object in its place.
        self._on_executed(sys.modules.get(module.__name__, module))

    def __getattr__(self, name: str) -> Any:
        # What else a loader can do: `runpy` asks for code, `inspect` for sources.
        return getattr(self._loader, name)
