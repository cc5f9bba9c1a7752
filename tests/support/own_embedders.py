"""A module of embedders that users write, called by any of its kinds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.vectors import registry

USERS = """
import asyncio
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.registry import find_embedder
from pmm_shm.errors import ConfigError

def ones(texts):
    return [[1.0, 1.0]] * len(texts)

instance = FunctionEmbedder("of-module", 2, ones)
made = []

def factory():
    made.append(1)
    return FunctionEmbedder("of-factory", 2, ones)

def nested():
    find_embedder("users_embedders:factory")
    return FunctionEmbedder("of-nested", 2, ones)

class Subclass(Embedder):
    name = "of-class"
    dimension = 2
    def embed(self, texts):
        return ones(texts)

class Space:
    inner = instance

class Nameless(Embedder):
    def embed(self, texts):
        return []

class Abstract(Embedder):
    name, dimension = "abstract", 2

class Wide(Subclass):
    dimension = 10**9

class Impostor(Subclass):
    name = "local-bow"

local = LocalBow()
number = 7

def needs_arguments(a):
    return instance

def makes_nothing():
    return None

def raises():
    raise RuntimeError("two\\nlines")

def exits():
    raise SystemExit("no key")

def is_cancelled():
    raise asyncio.CancelledError

def is_interrupted():
    raise KeyboardInterrupt

def refuses():
    raise ConfigError("no such file")
"""


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "users_embedders.py").write_text(USERS, encoding="utf-8")
    (tmp_path / "users_broken.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "users_exits.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    (tmp_path / "users_interrupted.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    (tmp_path / "users_needy.py").write_text("import no_such_package_at_all\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_instances", {})
    yield
    for name in ("users_embedders", "users_broken", "users_exits", "users_interrupted", "users_needy"):
        sys.modules.pop(name, None)


def run_all(works: Sequence[Callable[[], Any]]) -> None:
    """Run all at once, each in a thread."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
