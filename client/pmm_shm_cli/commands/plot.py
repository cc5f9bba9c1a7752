"""`pmm-shm plot`"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmm_shm_terminal import completers, exits
from pmm_shm_terminal.answer_names import WHY_NOT_APPLICABLE
from pmm_shm_terminal.answers import only_fold
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    did_you_mean,
    json_option,
    ledger_argument,
    ledger_timeout_option,
    shape_option,
    the_ledger,
)
from pmm_shm_terminal.output import print_json, printable, progress

if TYPE_CHECKING:
    from pmm_shm_cli.plotting import Format

_Drawn = tuple[bytes, dict[str, Any], str]
"""The figure, facts about it as JSON, and a line about it."""
_FORMATS: dict[str, Format] = {".svg": "svg", ".png": "png"}

_CREATOR = b"<dc:title>pmm-shm</dc:title>"
_HEAD_BYTES = 4_096
_ENTRIES_SHOWN = 5


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=completers.files,
    help="The file to write, ending in .svg or .png.  [default: beside LEDGER, as agent.svg beside agent.db]",
)
@click.option(
    "--fold",
    metavar="NAME",
    shell_complete=completers.folds,
    help="Draw the numbers of this fold instead; package.module:attribute names one that is not registered.",
)
@click.option("--key", "keys", multiple=True, metavar="KEY", help="With --fold: draw this key; may be given again.")
@click.option("--title", metavar="TEXT", help="Title above the figure; none by default.")
@click.option("--names", is_flag=True, help="Write the agent's names beside the changes of its name.")
@ledger_timeout_option
@shape_option
@json_option
def plot(
    ledger: str | None,
    output: str | None,
    fold: str | None,
    keys: tuple[str, ...],
    title: str | None,
    names: bool,
    timeout: Deadline,
    as_json: bool,
) -> None:
    """Draw IAS and GAS, or a fold's numbers.

    Stages and changes of the agent's name are marked. The numbers of a fold are those that explain --fold lists; of a
    long ledger they are taken at 600 positions.

    The same ledger gives the same file. It shows nothing personal unless told. Needs the extra `plot`.

    \b
    Example:
      pmm-shm plot agent.db -o agent.svg --title "Agent 7"
      pmm-shm plot agent.db -o calls.svg --fold tool_use --key calls.search
    """
    path = the_ledger(ledger)
    fold = fold or only_fold(path)
    if fold is None and keys:
        raise click.UsageError("--key needs --fold")
    if fold is not None and names:
        raise click.UsageError("--names means nothing with --fold")
    if output is None:
        output = str(Path(path).with_suffix(".svg"))
        _refuse_other(output)
    target = Path(output)
    file_format = _FORMATS.get(target.suffix.lower())
    if file_format is None:
        raise click.UsageError(f"--output: expected a name ending in {' or '.join(_FORMATS)}, got {output!r}")
    if target.exists() and os.path.exists(path) and target.samefile(path):
        raise click.UsageError(f"--output: {output!r} is the ledger")
    shown_title = None if title is None else printable(title)
    if fold is None:
        data, facts, line = _scores(path, file_format, shown_title, names, timeout)
    else:
        data, facts, line = _numbers(path, file_format, shown_title, fold, keys, timeout)
    target.write_bytes(data)
    if as_json:
        print_json({"path": output, **facts, "bytes": len(data)})
    else:
        click.echo(f"{printable(output)}: {line}")


def _scores(path: str, file_format: Format, title: str | None, names: bool, timeout: Deadline) -> _Drawn:
    from pmm_shm_cli.plotting import plotted
    from pmm_shm_client.cache import Cache

    with Cache(path, timeout=timeout.left_s()) as cache:
        if cache.not_applicable:
            raise CommandFailed(f"{cache.path}: nothing to draw: {WHY_NOT_APPLICABLE}", exits.FAILURE)
        history = cache.history()
    count = len(history.points)
    facts = {"points": count, "as_of": history.as_of}
    return plotted(history, file_format, title, names), facts, f"{count} points up to event {history.as_of}"


def _numbers(
    path: str, file_format: Format, title: str | None, name: str, keys: tuple[str, ...], timeout: Deadline
) -> _Drawn:
    from pmm_shm.ledger.recovery import open_recovered
    from pmm_shm.ledger.tail import head_of
    from pmm_shm.projection.courses import courses
    from pmm_shm_cli.course_plot import CURVES_MAX, plotted_courses
    from pmm_shm_terminal.answers import any_fold

    fold = any_fold(name, path)
    with (
        contextlib.closing(open_recovered(path, timeout.left_s())) as connection,
        progress("Replaying", head_of(connection)) as advance,
    ):
        found = courses(connection, fold, progress=lambda position: advance(position.as_of))
    for key in keys:
        if key not in found.curves:
            raise CommandFailed(
                f"{path}: the fold {name} has no number {printable(key)!r}{_entries(key, found.curves)}",
                exits.FAILURE,
            )
    drawn = list(dict.fromkeys(keys)) or list(found.curves)[:CURVES_MAX]
    if not drawn:
        raise CommandFailed(f"{path}: nothing to draw: the fold {name} has no numbers", exits.FAILURE)
    data = plotted_courses(found, drawn, fold.name, file_format, title)
    others = len(found.curves) - len(drawn)
    more = f"; {others} more: choose with --key" if others and not keys else ""
    line = f"{', '.join(map(printable, drawn))} up to event {found.as_of}{more}"
    return data, {"keys": drawn, "stride": found.stride, "as_of": found.as_of}, line


def _entries(key: str, curves: Collection[str]) -> str:
    """A hint: the entries of the table that the key names, or a key that looks like it."""
    entries = [name for name in curves if name.startswith(key + ".")]
    if not entries:
        return did_you_mean(key, curves)
    more = f" and {len(entries) - _ENTRIES_SHOWN} more" if len(entries) > _ENTRIES_SHOWN else ""
    return f"; it is a table: choose among {', '.join(map(printable, entries[:_ENTRIES_SHOWN]))}{more}"


def _refuse_other(path: str) -> None:
    """Raise if a file is there that this command has not written: nobody named it."""
    try:
        with open(path, "rb") as file:
            is_ours = _CREATOR in file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return
    if not is_ours:
        raise click.UsageError(f"{path}: exists and is no figure of pmm-shm plot; choose a file with -o")
