"""The command `pmm-shm` as a program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.support import daemons

COMMAND = [sys.executable, "-m", "pmm_shm_cli"]
_DEADLINE_S = 60.0


class Ran(NamedTuple):
    """What a program left: its exit code, and the text on both streams."""

    code: int
    out: str
    err: str


def run(*arguments: str, env: Mapping[str, str | None] | None = None, **options: Any) -> Ran:
    """`pmm-shm` with these arguments, to its end; a variable in `env` that is None is removed."""
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=daemons.environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
        **options,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def is_one_line(err: str) -> bool:
    """Whether this is the one line with which the command refuses."""
    return err.startswith("pmm-shm: ") and err.count("\n") == 1 and err.endswith("\n")
