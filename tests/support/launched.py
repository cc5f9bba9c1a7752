"""The stand-in for PMM with its functions replaced in this process, as `pmm-shm run` would do it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module

from pmm_shm_pmm.installing import patch
from pmm_shm_pmm.patching import Patcher
from pmm_shm_pmm.seams import PARTS, SEAMS
from pmm_shm_pmm.settings import RunSettings
from tests.support import standin_package


@contextmanager
def launched(parts: Iterable[str] = PARTS, *, strict: bool = True) -> Iterator[Patcher]:
    """Inside, `import pmm` gives the stand-in with these parts replaced; `strict`: nothing falls back."""
    settings = RunSettings(parts=frozenset(parts), starts_daemon=False)
    patcher = Patcher(settings, standin_package.hashes(), strict=strict)
    with standin_package.importable():
        for name in dict.fromkeys(seam.module for seam in SEAMS):
            patch(patcher, import_module(name))
        yield patcher
