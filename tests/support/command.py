"""The command `pmm-shm` as a program."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support import daemons
from tests.support.forking import ForkedProgram

COMMAND = [sys.executable, "-m", "pmm_shm_cli"]
_DEADLINE_S = 60.0


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
    with tempfile.TemporaryDirectory(prefix="pmm-run-") as folder:
        streams = [Path(folder, name) for name in ("in", "out", "err")]
        for stream in streams:
            stream.write_text(input if stream.name == "in" else "", encoding="utf-8")
        stdin, stdout, stderr = map(str, streams)
        program = ForkedProgram(
            "pmm_shm_cli.main:main",
            ["pmm-shm", *arguments],
            (stdin, stdout, stderr),
            cwd,
            daemons.environment(**(env or {})),
        )
        code = program.wait(_DEADLINE_S)
        out, err = (stream.read_text(encoding="utf-8") for stream in streams[1:])
    return Ran(code, out, err)


def is_one_line(err: str) -> bool:
    """Whether this is the one line with which the command refuses."""
    return err.startswith("pmm-shm: ") and err.count("\n") == 1 and err.endswith("\n")
