"""`pmm-shm plot`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmm_shm_terminal import completers, exits
from pmm_shm_terminal.answers import WHY_NOT_APPLICABLE
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import CONTEXT, Deadline, json_option, ledger_argument, ledger_timeout_option, the_ledger
from pmm_shm_terminal.output import print_json, printable

if TYPE_CHECKING:
    from pmm_shm_cli.plotting import Format

_FORMATS: dict[str, Format] = {".svg": "svg", ".png": "png"}

_CREATOR = b"<dc:title>pmm-shm</dc:title>"
_HEAD_BYTES = 4_096


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=completers.files,
    help="The file to write, ending in .svg or .png.  [default: beside LEDGER, as agent.svg beside agent.db]",
)
@click.option("--title", metavar="TEXT", help="Title above the figure; none by default.")
@click.option("--names", is_flag=True, help="Write the agent's names beside the changes of its name.")
@ledger_timeout_option
@json_option
def plot(
    ledger: str | None, output: str | None, title: str | None, names: bool, timeout: Deadline, as_json: bool
) -> None:
    """Draw IAS and GAS over the whole ledger.

    Stages and changes of the agent's name are marked.

    The same ledger gives the same file. It shows nothing personal unless told. Needs the extra `plot`.

    \b
    Example:
      pmm-shm plot agent.db -o agent.svg --title "Agent 7"
    """
    path = the_ledger(ledger)
    if output is None:
        output = str(Path(path).with_suffix(".svg"))
        _refuse_other(output)
    target = Path(output)
    file_format = _FORMATS.get(target.suffix.lower())
    if file_format is None:
        raise click.UsageError(f"--output: expected a name ending in {' or '.join(_FORMATS)}, got {output!r}")
    if target.exists() and os.path.exists(path) and target.samefile(path):
        raise click.UsageError(f"--output: {output!r} is the ledger")
    from pmm_shm_cli.plotting import plotted
    from pmm_shm_client.cache import Cache

    with Cache(path, timeout=timeout.left_s()) as cache:
        if cache.not_applicable:
            raise CommandFailed(f"{cache.path}: nothing to draw: {WHY_NOT_APPLICABLE}", exits.FAILURE)
        history = cache.history()
    drawn = plotted(history, file_format, None if title is None else printable(title), names)
    target.write_bytes(drawn)
    if as_json:
        print_json({"path": output, "points": len(history.points), "bytes": len(drawn), "as_of": history.as_of})
    else:
        click.echo(f"{printable(output)}: {len(history.points)} points up to event {history.as_of}")


def _refuse_other(path: str) -> None:
    """Raise if a file is there that this command has not written: nobody named it."""
    try:
        with open(path, "rb") as file:
            is_ours = _CREATOR in file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return
    if not is_ours:
        raise click.UsageError(f"{path}: exists and is no figure of pmm-shm plot; choose a file with -o")
