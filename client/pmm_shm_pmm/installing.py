"""Installs the replacements in this process: now for the modules of PMM that are loaded, and on import for the others.

Invariant: an error of ours leaves PMM's own functions in place, and is kept for the report.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from pmm_shm_pmm import patching
from pmm_shm_pmm.hooks import Finder
from pmm_shm_pmm.patching import Patcher
from pmm_shm_pmm.seams import MODULES, SEAMS
from pmm_shm_pmm.settings import Settings, settings_of_environment

_lock = threading.RLock()
_installed: tuple[Patcher, Finder] | None = None


def install(
    settings: Settings | None = None, known: Mapping[str, str] | None = None, *, strict: bool = False
) -> Patcher | None:
    """Install once; later calls change nothing. Returns None where the settings say off.

    Parameters:
        known, strict: see `Patcher`.
    """
    global _installed
    with _lock:
        if _installed is not None:
            return _installed[0]
        settings = settings_of_environment() if settings is None else settings
        if not settings.is_on:
            return None
        patcher = Patcher(settings, known, strict=strict)
        patching.make_current(patcher)
        finder = Finder(MODULES, lambda module: patch(patcher, module), "pmm", lambda: None)
        sys.meta_path.insert(0, finder)
        _installed = patcher, finder
        for name in dict.fromkeys(seam.module for seam in SEAMS):
            module = sys.modules.get(name)
            if module is not None:
                patch(patcher, module)
        return patcher


def uninstall() -> None:
    """Put back PMM's own functions; for tests."""
    global _installed
    with _lock:
        if _installed is not None:
            patcher, finder = _installed
            sys.meta_path.remove(finder)
            patcher.undo()
            patching.make_current(None)
            _installed = None


def patch(patcher: Patcher, module: ModuleType) -> None:
    """Replace the names in one module of PMM that has just been executed. Never raises."""
    seams = [seam for seam in SEAMS if seam.module == module.__name__]
    for home in dict.fromkeys(seam.home for seam in seams if seam.part in patcher.settings.parts):
        try:
            import_module(f"pmm_shm_pmm.{home}").install(patcher, module)
        except Exception as error:
            for seam in seams:
                if seam.home == home and seam.label not in patcher.counts:
                    patcher.kept.setdefault(seam.label, f"{type(error).__name__}: {error}")
