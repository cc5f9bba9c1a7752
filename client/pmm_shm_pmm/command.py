"""`pmm-shm run`"""

from __future__ import annotations

import click

from pmm_shm.errors import PmmShmError
from pmm_shm_pmm.launching import WITH_VALUE, become
from pmm_shm_terminal import completers
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import CONTEXT

NOT_FOUND = 127
NOT_EXECUTABLE = 126
"""Exit codes of `env` and `nohup` for a program that they cannot start."""


class _Run(click.Command):
    """Leaves all words from the target on alone: they belong to the program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _ended(args))


def _ended(args: list[str]) -> list[str]:
    """The words with `--` where our options end: click would go on to read options after `-m MODULE`."""
    at = 0
    while at < len(args) and args[at].startswith("-") and args[at] != "--":
        if args[at].startswith("-m"):
            at += 2 if args[at] == "-m" else 1
            return args if at > len(args) else [*args[:at], "--", *args[at:]]
        at += 2 if args[at] in WITH_VALUE else 1
    return args


@click.command(
    cls=_Run,
    context_settings={**CONTEXT, "allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@click.option(
    "--ledger",
    metavar="PATH",
    help="The ledger that PMM opens: sets PMM_DB.",
    shell_complete=completers.files,
)
@click.option("--no-daemon", is_flag=True, help="Start no daemon where none serves the ledger.")
@click.option("--report", is_flag=True, help="At the end of each process, print what was answered, and what by PMM.")
@click.option("--report-to", metavar="FILE", help="Append these reports to a file instead.")
@click.option("--elect-autonomy", is_flag=True, help="Of several processes, only one runs PMM's autonomy.")
@click.option("-m", "module", metavar="MODULE", help="Run this module, as python -m does.")
@click.argument(
    "target",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[SCRIPT | PROGRAM] [ARGUMENTS]...",
    shell_complete=completers.files,
)
def run(
    ledger: str | None,
    no_daemon: bool,
    report: bool,
    report_to: str | None,
    elect_autonomy: bool,
    module: str | None,
    target: tuple[str, ...],
) -> None:
    """Run an unmodified PMM on the shared cache.

    A module or SCRIPT (*.py) runs with this Python, a PROGRAM such as uvicorn or gunicorn with its own. All words after
    it belong to it, and so does the exit code. Whatever cannot be answered exactly, PMM's own functions answer.

    PMM_SHM=off runs PMM as it is. PMM_SHM_PATCHES=log,projection replaces only these parts.

    \b
    Exit codes: 127 no such program, 126 it cannot be executed, otherwise the program's.
    """
    if module is None and not target:
        raise click.UsageError("missing -m MODULE, SCRIPT or PROGRAM")
    try:
        become(list(target), module, ledger, no_daemon, report, report_to, elect_autonomy)
    except PmmShmError:
        raise
    except FileNotFoundError:
        raise CommandFailed(f"{target[0]}: no such program", NOT_FOUND) from None
    except OSError as error:
        raise CommandFailed(f"{target[0]}: {error.strerror}", NOT_EXECUTABLE) from None
