"""Installs the replacements in this process: now for the modules of PMM that are loaded, and on import for the others.

Invariant: an error of ours leaves PMM's own functions in place, and is kept for the report.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from pmm_shm.errors import PmmShmError
from pmm_shm_pmm import patching, report
from pmm_shm_pmm.hooks import PmmModuleFinder
from pmm_shm_pmm.patching import Patcher
from pmm_shm_pmm.references import redirect
from pmm_shm_pmm.saying import is_main_process, say_once
from pmm_shm_pmm.seams import MODULES, SEAMS
from pmm_shm_pmm.settings import RunSettings, settings_of_environment

PACKAGE = "pmm"
_lock = threading.RLock()
_installed: tuple[Patcher, PmmModuleFinder] | None = None


class TooLateError(PmmShmError):
    """PMM was loaded before, and something keeps functions of it that cannot be replaced there. Nothing was."""


def install(
    settings: RunSettings | None = None, known: Mapping[str, str] | None = None, *, strict: bool = False
) -> Patcher | None:
    """Install once; later calls change nothing. Returns None where the settings say off.

    Parameters:
        known, strict: see `Patcher`.

    Raises:
        TooLateError: import this package before PMM.
    """
    global _installed
    with _lock:
        if _installed is not None:
            return _installed[0]
        settings = settings_of_environment() if settings is None else settings
        if not settings.is_on:
            return None
        patcher = Patcher(settings, known, strict=strict)
        finder = PmmModuleFinder(MODULES, lambda module: patch(patcher, module), PACKAGE, _say_missing)
        sys.meta_path.insert(0, finder)
        _installed = patcher, finder
        patching.make_current(patcher)
        report.begin(patcher)
        try:
            _patch_loaded(patcher)
        except BaseException:
            uninstall()
            raise
        return patcher


def uninstall() -> None:
    """Put back PMM's own functions."""
    global _installed
    with _lock:
        if _installed is not None:
            patcher, finder = _installed
            _installed = None
            sys.meta_path[:] = [one for one in sys.meta_path if one is not finder]
            patching.make_current(None)
            report.begin(None)
            patcher.undo()


def patch(patcher: Patcher, module: ModuleType) -> None:
    """Replace the names in one module of PMM that has just been executed. Never raises."""
    from pmm_shm.late import late_imports

    seams = [seam for seam in SEAMS if seam.module == module.__name__]
    for home in dict.fromkeys(seam.home for seam in seams if seam.part in patcher.settings.parts):
        try:
            with late_imports:
                loaded = import_module(f"pmm_shm_pmm.{home}")
            loaded.install(patcher, module)
        except Exception as error:
            for seam in seams:
                if seam.home == home and seam.label not in patcher.counts:
                    patcher.kept.setdefault(seam.label, f"{type(error).__name__}: {error}")
    try:
        # Modules that import each other in a circle have taken names before they were replaced.
        redirect(patcher.pairs(module), f"{PACKAGE}.")
    except Exception as error:
        patcher.kept[f"{module.__name__}:its importers"] = f"{type(error).__name__}: {error}"
    unknown = [seam.label for seam in seams if patcher.kept.get(seam.label, "").startswith("unknown source")]
    if unknown:
        say_once(
            "unknown",
            f"another version of PMM: tier 1 alone where sources differ, such as {unknown[0]}; the report names them",
        )


def _patch_loaded(patcher: Patcher) -> None:
    loaded = [sys.modules[name] for name in dict.fromkeys(seam.module for seam in SEAMS) if name in sys.modules]
    for module in loaded:
        # Another thread may be executing it, without our finder.
        import_module(module.__name__)
        if getattr(module.__spec__, "_initializing", False):
            raise TooLateError(f"{module.__name__} is being imported: import pmm_shm_pmm.auto before it")
        patch(patcher, module)
    if loaded:
        redirect(patcher.pairs())
        held = patcher.holder()
        if held is not None:
            raise TooLateError(f"PMM is in use already: {held}; import pmm_shm_pmm.auto before PMM")


def _say_missing() -> None:
    if is_main_process():
        say_once("missing", f"PMM is not installed: {sys.executable} finds no package {PACKAGE}")
