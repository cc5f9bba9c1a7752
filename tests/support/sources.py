"""The modules of the shipped packages as text and syntax trees, for tests that read the code."""

from __future__ import annotations

import ast
import functools
import gc
from typing import NamedTuple

from tests.support import ledgers


class Source(NamedTuple):
    """A module: its path below the repository, its text and its syntax tree, which tests only read."""

    path: str
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@functools.cache
def sources() -> tuple[Source, ...]:
    """All modules of all packages, parsed once per process; no package is empty."""
    found = []
    for folder in ledgers.PACKAGES.values():
        paths = sorted((ledgers.ROOT / folder).rglob("*.py"))
        assert paths, f"no modules in {folder}"
        for path in paths:
            text = path.read_text(encoding="utf-8")
            found.append(Source(path.relative_to(ledgers.ROOT).as_posix(), text, ast.parse(text)))
    # They stay, and a collection of garbage need not visit a million nodes.
    gc.freeze()
    return tuple(found)
