"""A run of the kill loops in processes of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import Any

from tests.support import daemons, ledgers

SEED_VARIABLE = "PMM_CHAOS_SEED"
LEAST = {"kill daemon": 2, "kill client": 1}
"""Of each act, what even a busy machine has time for."""


def run_chaos(journal: str, seconds: int, **counts: int) -> dict[str, Any]:
    """The report of a run in processes of its own; fails with what the run says, its seed included."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(1 << 32))
    options = {"seed": seed, "journal": journal, "seconds": seconds, "check-every": 5, **counts}
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    # Not `subprocess.run`, which on a time limit of the test would leave it running.
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", "--json", *arguments],
        cwd=ledgers.ROOT,
        env=daemons.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 0, f"{SEED_VARIABLE}={seed}\n{errors}"
    report: dict[str, Any] = json.loads(output)
    assert report["seed"] == seed
    for kind, number in LEAST.items():
        assert report["acts"].get(kind, 0) >= number, (report, errors)
    return report
