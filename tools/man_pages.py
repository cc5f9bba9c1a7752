"""Writes manual pages for `pmm-shm`, each of its commands, and `pmm-cached` into a directory.

The source is the same as that of `--help`: click's own structures. `make man` runs it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from pmm_cached.main import command as pmm_cached
from pmm_shm.versions import distribution_version
from pmm_shm_cli.main import cli as pmm_shm

_SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
_ENVIRONMENT = (
    ("PMM_DB", "The ledger, if none is named."),
    ("PMM_SHM_DIR", "Base of the instance directories, instead of beside the ledger; the same for daemon and workers."),
    ("PMM_EMBEDDER", "The embedder, if none is named."),
    ("PMM_USE_PROJECTION_CACHE, PMM_USE_METRICS_CACHE, PMM_USE_EMBEDDING_CACHE", "false: do not use the shared state."),
    ("NO_COLOR, FORCE_COLOR", "No colours; colours in files and pipes, too."),
)


def pages() -> Iterator[tuple[str, str]]:
    """(name, text) of each page."""
    names = ["pmm-shm", *(f"pmm-shm-{name}" for name in pmm_shm.commands), "pmm-cached"]
    context = _context(pmm_shm, "pmm-shm")
    yield "pmm-shm", _page("pmm-shm", pmm_shm, context, names)
    for name, command in pmm_shm.commands.items():
        below = _context(command, name, context)
        yield f"pmm-shm-{name}", _page(f"pmm-shm-{name}", command, below, names)
        for inner, one in getattr(command, "commands", {}).items():
            page = f"pmm-shm-{name}-{inner}"
            yield page, _page(page, one, _context(one, inner, below), names)
    yield "pmm-cached", _page("pmm-cached", pmm_cached, _context(pmm_cached, "pmm-cached"), names)


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def _page(name: str, command: click.Command, context: click.Context, names: Sequence[str]) -> str:
    about = _help_of(command)
    lines = [
        f'.TH "{_quoted(name.upper())}" 1 "{_date()}" "pmm\\-shm {_text(distribution_version())}" "pmm\\-shm"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(_summary(about))}",
        ".SH SYNOPSIS",
        rf"\fB{_text(context.command_path)}\fR {_text(' '.join(command.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION",
        *_paragraphs(about),
        ".SH OPTIONS",
    ]
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if isinstance(param, click.Option) and record is not None:
            lines += [".TP", rf"\fB{_text(record[0])}\fR", _text(record[1])]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for below, one in command.commands.items():
            lines += [".TP", rf"\fB{_text(f'{name}-{below}')}\fR(1)", _text(_summary(_help_of(one)))]
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    if examples:
        lines += [".SH EXAMPLES", ".nf", *map(_text, examples), ".fi"]
    lines.append(".SH ENVIRONMENT")
    for variable, meaning in _ENVIRONMENT:
        lines += [".TP", rf"\fB{_text(variable)}\fR", _text(meaning)]
    others = [other for other in names if other != name]
    lines += [".SH SEE ALSO", ",\n".join(rf"\fB{_text(other)}\fR(1)" for other in others)]
    return "\n".join(lines) + "\n"


def _help_of(command: click.Command) -> str:
    # Like click, cut at a form feed: the rest is not for users.
    return (command.help or "").partition("\f")[0].strip()


def _summary(about: str) -> str:
    """The first sentence, without its full stop."""
    first = " ".join(about.split("\n\n")[0].split())
    return re.split(r"(?<=[^.])\.(?:\s|$)", first)[0]


def _paragraphs(about: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", about)):
        rows = [line.strip() for line in paragraph.splitlines()]
        if number and rows[0] != "\b":
            yield ".PP"
        if rows[0] == "\b":
            # Lines that click does not wrap either.
            yield from (".PP", ".nf", *map(_text, rows[1:]), ".fi")
        else:
            yield _text(" ".join(rows))


def _text(text: str) -> str:
    """Text in roff: pure ASCII, without requests or escapes."""
    shown = "".join(
        _SPECIAL.get(char) or (char if char.isascii() else rf"\[u{ord(char):04X}]") for char in text.strip("\b")
    )
    return r"\&" + shown if shown[:1] in (".", "'") else shown


def _quoted(text: str) -> str:
    return _text(text).replace('"', r"\(dq")


def _date() -> str:
    """Today, or the day in SOURCE_DATE_EPOCH, for reproducible builds."""
    epoch_s = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(epoch_s))


def main() -> None:
    """`man_pages.py DIRECTORY`"""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (directory / f"{name}.1").write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
