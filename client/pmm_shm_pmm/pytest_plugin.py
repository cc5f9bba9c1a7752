"""Runs the tests of a PMM on the shared cache: `pytest --pmm-shm`, `pmm_shm = true` in pytest's settings, or
`pytest -p pmm_shm_pmm.pytest_plugin`. Otherwise it does nothing.

Tests make many ledgers that soon end, so no daemon is started unless `PMM_SHM_DAEMON` is true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

# The package is imported only when it is asked for: pytest loads this module in every run.

_patcher: Patcher | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pmm-shm", action="store_true", help="run PMM on the shared cache of pmm-shm")
    parser.addini("pmm_shm", "run PMM on the shared cache of pmm-shm", type="bool", default=False)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before the first conftest.py, which may import PMM."""
    _begin(early_config, early_config.known_args_namespace)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Where the plugin was loaded late."""
    _begin(config, config.option)


def pytest_report_header() -> str | None:
    if _patcher is None:
        return None
    from pmm_shm_pmm.starting import described

    return f"pmm-shm: {described(_patcher.settings)}"


def _begin(config: pytest.Config, options: Any) -> None:
    global _patcher
    named = __name__ in (getattr(options, "plugins", None) or ())
    if not (named or getattr(options, "pmm_shm", False) or config.getini("pmm_shm")):
        return
    from pmm_shm import flags
    from pmm_shm.flags import Flag
    from pmm_shm_pmm.installing import install
    from pmm_shm_pmm.settings import settings_of_environment

    settings = settings_of_environment()
    starts_daemon = settings.starts_daemon and flags.run_daemon() is Flag.ON
    _patcher = install(settings._replace(starts_daemon=starts_daemon))
