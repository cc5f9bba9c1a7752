"""The command `pmm-shm` as a program."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from tests.support import daemons, forking

COMMAND = [sys.executable, "-m", "pmm_shm_cli"]


class Ran(NamedTuple):
    """What a program left: its exit code, and the text on both streams."""

    code: int
    out: str
    err: str


def run(
    *arguments: str,
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] = os.curdir,
    input: str = "",
) -> Ran:
    """`pmm-shm` with these arguments, to its end, in a forked process; a variable in `env` that is None is removed."""
    ran = forking.run("pmm_shm_cli.main:main", ["pmm-shm", *arguments], daemons.environment(**(env or {})), cwd, input)
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def is_one_line(err: str) -> bool:
    """Whether this is the one line with which the command refuses."""
    return err.startswith("pmm-shm: ") and err.count("\n") == 1 and err.endswith("\n")
