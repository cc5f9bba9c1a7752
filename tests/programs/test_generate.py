"""The synthetic ledger: deterministic, chained, bounded, and complete or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import until


@pytest.mark.parametrize(("number", "code", "size_bytes"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0)])
def test_interruption_leaves_nothing(tmp_path: Path, number: int, code: int, size_bytes: int) -> None:
    """Neither at the begin, nor later."""
    command = [sys.executable, "-m", "pmm_shm_cli", "generate", str(tmp_path / "l.db"), "--events", "5000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            # The first 64 MB are kept in memory.
            until(lambda: any(path.stat().st_size >= size_bytes for path in tmp_path.iterdir()), "it grows", 100.0)
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (code, b"", b"")
    assert os.listdir(tmp_path) == []
