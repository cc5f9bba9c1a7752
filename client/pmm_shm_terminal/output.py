"""The output of commands: data on stdout, as JSON or for people; messages and progress on stderr."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pmm_shm.colours import wants_colour

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_PIPE_COLUMNS = 160
Advance = Callable[[int], None]
"""Called with the amount done."""


def json_value(value: Any) -> Any:
    """Any view as what JSON knows: dicts with text keys, lists, numbers, text."""
    if isinstance(value, Mapping):
        return {_key(key): json_value(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return json_value(value._asdict())
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [json_value(item) for item in sorted(value, key=repr)]
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if value is None or isinstance(value, (str, int, float)):
        return value
    return repr(value)


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(key)


def print_json(value: Any) -> None:
    """Print a JSON value on one line, in ASCII, so that every terminal and encoding can show it."""
    click.echo(json.dumps(value))


def console(stderr: bool = False) -> Console:
    """The console for tables. No colours with NO_COLOR, or without a terminal (unless FORCE_COLOR is set)."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        # A pipe has no width: wide enough that few cells wrap. A shell exports COLUMNS only where it is told to.
        width=None if stream.isatty() or os.environ.get("COLUMNS", "").isdecimal() else _PIPE_COLUMNS,
        color_system="auto" if wants_colour(stream) else None,
        highlight=False,
        emoji=False,
    )


def show(*renderables: RenderableType, wraps: bool = True) -> None:
    """Print for people, on stdout; `wraps=False` keeps long lines."""
    out = console()
    with out.capture() as capture:
        for one in renderables:
            out.print(one, soft_wrap=not wraps)
    # The console has decided about colours; click would remove those that FORCE_COLOR asked for.
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()), color=True)


def table(*columns: str, optional: Sequence[str] = ()) -> Table:
    """An empty table with a header, which fits the terminal; `optional` columns are dropped first, in this order."""
    from pmm_shm_terminal.tables import FittedTable

    return FittedTable(*columns, optional=optional)


def titled(title: str, body: RenderableType) -> RenderableType:
    """A table below its title, which is literal text of any width."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title, style="bold"), body)


def pairs(title: str, rows: Mapping[str, Any]) -> RenderableType:
    """Names and values below a title."""
    from rich.table import Table
    from rich.text import Text

    made = Table(show_header=False)
    made.add_column(style="cyan", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows.items():
        made.add_row(Text(printable(name)), cell(value))
    return titled(title, made)


def cell(value: Any, chars_max: int | None = None) -> Any:
    """A value as the text of a cell; control sequences are escaped. A text is cut to `chars_max` characters."""
    from rich.text import Text

    if value is None:
        return Text("–")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(f"{value:.6g}")
    if isinstance(value, str):
        if chars_max is not None and len(value) > chars_max:
            value = value[: chars_max - 1] + "…"
        return Text(printable(value))
    if isinstance(value, (dict, list)):
        return Text(printable(json.dumps(value, ensure_ascii=False)) if value else "–")
    return Text(str(value))


def styled(text: str, **style: Any) -> str:
    """The text with the styles of `click.style`, where stdout takes them; `click.echo` it with `color=True`."""
    return click.style(text, **style) if wants_colour(sys.stdout) else text


_JOINERS = "\u200c\u200d"
"""Within emoji, and within words of Persian, Hindi and others."""


def printable(text: str) -> str:
    """The text with control characters, and those that cannot be shown, as escapes. Spaces of any width stay."""
    if text.isprintable():
        return text
    return "".join(char if _is_shown(char) else ascii(char)[1:-1] for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


@contextmanager
def progress(what: str, total: int | None, enabled: bool = True) -> Iterator[Advance]:
    """A progress bar on stderr, if that is a terminal; without `total` it only shows activity."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn()]
    if total is not None:
        columns += [MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
