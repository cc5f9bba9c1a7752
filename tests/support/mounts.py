"""Real mounts, in a namespace of their own that ends with the process that made them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.support.daemons import DEADLINE_S, environment


def in_mount_namespace(code: str, *arguments: str) -> dict[str, Any]:
    """What the code prints as JSON; it may mount. Skips where this user or this machine cannot."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and unshare(1)")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"no such mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
