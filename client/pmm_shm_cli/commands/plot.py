"""`pmm-shm plot`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmm_shm_terminal import completers
from pmm_shm_terminal.options import CONTEXT, Deadline, json_option, ledger_argument, ledger_timeout_option, the_ledger
from pmm_shm_terminal.output import print_json, printable

if TYPE_CHECKING:
    from pmm_shm_cli.plotting import Format

_FORMATS: dict[str, Format] = {".svg": "svg", ".png": "png"}


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    shell_complete=completers.files,
    help="The file to write, ending in .svg or .png.",
)
@click.option("--title", metavar="TEXT", help="Title above the figure; none by default.")
@click.option("--names", is_flag=True, help="Write the agent's names beside the changes of its name.")
@ledger_timeout_option
@json_option
def plot(ledger: str | None, output: str, title: str | None, names: bool, timeout: Deadline, as_json: bool) -> None:
    """Draw IAS and GAS over the whole ledger.

    Stages and changes of the agent's name are marked.

    The same ledger gives the same file. It shows nothing personal unless told. Needs the extra `plot`.

    \b
    Example:
      pmm-shm plot agent.db -o agent.svg --title "Agent 7"
    """
    path, target = the_ledger(ledger), Path(output)
    file_format = _FORMATS.get(target.suffix.lower())
    if file_format is None:
        raise click.UsageError(f"--output: expected a name ending in {' or '.join(_FORMATS)}, got {output!r}")
    if target.exists() and os.path.exists(path) and target.samefile(path):
        raise click.UsageError(f"--output: {output!r} is the ledger")
    from pmm_shm_cli.plotting import plotted
    from pmm_shm_client.cache import Cache

    with Cache(path, timeout=timeout.left_s()) as cache:
        history = cache.history()
    drawn = plotted(history, file_format, None if title is None else printable(title), names)
    target.write_bytes(drawn)
    if as_json:
        print_json({"path": output, "points": len(history.points), "bytes": len(drawn), "as_of": history.as_of})
    else:
        click.echo(f"{printable(output)}: {len(history.points)} points up to event {history.as_of}")
