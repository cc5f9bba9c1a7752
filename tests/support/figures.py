"""Figures of `pmm-shm plot`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pmm_shm_cli.main import cli


def drawn(ledger: str, target: Path, *options: str) -> bytes:
    ran = CliRunner().invoke(cli, ["plot", ledger, "-o", str(target), *options])
    assert ran.exit_code == 0, ran.output
    return target.read_bytes()


@pytest.fixture
def _with_matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
