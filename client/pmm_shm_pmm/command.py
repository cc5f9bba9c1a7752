"""`pmm-shm run`"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from pmm_shm import flags
from pmm_shm.errors import ConfigError, LedgerNotFoundError, LedgerUnreadableError, NotALedgerError
from pmm_shm.flags import Flag
from pmm_shm_terminal import completers
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import CONTEXT

NOT_FOUND = 127
NOT_EXECUTABLE = 126
"""Exit codes of `env` and `nohup` for a program that they cannot start."""

SITE = Path(__file__).with_name("site")
_SCRIPTS = (".py", ".pyc", ".pyw", ".pyz")
_WITH_VALUE = ("--ledger", "--report-to")


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
        at += 2 if args[at] in _WITH_VALUE else 1
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
@click.argument("target", nargs=-1, type=click.UNPROCESSED, metavar="[SCRIPT | PROGRAM] [ARGUMENTS]...")
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
    variables = dict(os.environ)
    if ledger is not None:
        variables["PMM_DB"] = checked_ledger(ledger)
    if _is_on():
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SITE), os.environ.get("PYTHONPATH"))))
        variables["PMM_SHM_RUN"] = str(os.getpid())
        if no_daemon:
            variables["PMM_SHM_DAEMON"] = "off"
        if elect_autonomy:
            variables["PMM_SHM_ELECT_AUTONOMY"] = "on"
        if report or report_to:
            variables["PMM_SHM_REPORT"] = os.path.abspath(report_to) if report_to else "stderr"
    _become([sys.executable, "-m", module, *target] if module is not None else command_line(target), variables)


def _is_on() -> bool:
    try:
        return flags.run_pmm() is not Flag.OFF
    except ConfigError:
        # The started process warns of the value.
        return True


def checked_ledger(path: str) -> str:
    """The absolute path of a ledger that PMM can open or create.

    Raises:
        ConfigError: the path is empty.
        LedgerError: no file can be there, or the one that is there is no SQLite database.
    """
    if not path:
        raise ConfigError("--ledger: expected the path of a file, got an empty text")
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise LedgerNotFoundError(f"{path}: no such folder: {folder}")
    if os.path.lexists(path):
        _check_database(path)
    return path


def _check_database(path: str) -> None:
    import contextlib
    import sqlite3

    from pmm_shm.ledger.files import check_file

    check_file(path, may_be_made=True)
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        # Otherwise it may be in use: PMM will see.
        if not os.access(path, os.R_OK):
            raise LedgerUnreadableError(f"{path}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise NotALedgerError(f"{path}: {error}") from None


def command_line(target: Sequence[str]) -> list[str]:
    """The words with which a SCRIPT or a PROGRAM is started.

    A program that PATH does not have is taken from the folder of this Python, where its environment has it.
    """
    name = target[0]
    if name.lower().endswith(_SCRIPTS) or os.path.isfile(os.path.join(name, "__main__.py")):
        return [sys.executable, *target]
    import shutil

    beside = os.path.join(os.path.dirname(sys.executable), name)
    if os.sep not in name and shutil.which(name) is None and os.access(beside, os.X_OK):
        return [beside, *target[1:]]
    return list(target)


def _become(words: list[str], variables: Mapping[str, str]) -> NoReturn:
    """Replace this process by the program, which gets the signals as it would from a shell."""
    import signal

    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores both, and an ignored signal stays so in the program.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, variables)  # noqa: S606 - what the user typed
    except FileNotFoundError:
        raise CommandFailed(f"{words[0]}: no such program", NOT_FOUND) from None
    except OSError as error:
        raise CommandFailed(f"{words[0]}: {error.strerror}", NOT_EXECUTABLE) from None
