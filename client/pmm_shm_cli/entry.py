"""Entry point of `pmm-shm`: `run`, which starts another program, does not wait for the imports of other commands."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `pmm-shm` with the arguments of this process."""
    if sys.argv[1:2] == ["run"]:
        from pmm_shm_pmm.command import run
        from pmm_shm_terminal.program import run_program

        run_program(run, "pmm-shm run", sys.argv[2:])
    from pmm_shm_cli.main import main as main_of_all

    main_of_all()
