"""A fixture for tiers whose tests start programs: the packages are compiled before."""

from __future__ import annotations

import compileall

import pytest

from tests.support import ledgers


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compile the packages, as an installation does: with PYTHONDONTWRITEBYTECODE each process would do it anew."""
    for folder in ledgers.PACKAGES.values():
        assert compileall.compile_dir(ledgers.ROOT / folder, quiet=1)
