"""`pmm-shm export` and `pmm-shm import`"""

from __future__ import annotations

import contextlib
import sys

import click

from pmm_shm_terminal import completers
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    checked_name,
    json_option,
    ledger_argument,
    ledger_timeout_option,
    shape_option,
    the_ledger,
)
from pmm_shm_terminal.output import json_value, print_json, progress
from pmm_shm_terminal.program import standard_input


@click.command(context_settings=CONTEXT)
@ledger_argument
@ledger_timeout_option
@shape_option
def export(ledger: str | None, timeout: Deadline) -> None:
    """Print every event as a JSON line, for `import`.

    A line has the value of every column: id, ts, kind, content, the text of meta, prev_hash and hash. Text that is not
    UTF-8 is {"text": HEX}, and a blob is {"blob": HEX}. Events that are appended meanwhile are left out.
    """
    path = the_ledger(ledger)
    from pmm_shm.ledger.json_lines import exported
    from pmm_shm.ledger.recovery import open_recovered

    with (
        contextlib.closing(open_recovered(path, timeout.left_s())) as connection,
        progress("Exporting", None, enabled=not sys.stdout.isatty()) as advance,
    ):
        for line in exported(connection, advance):
            sys.stdout.write(line)


@click.command("import", context_settings=CONTEXT)
@click.argument("file", shell_complete=completers.files)
@click.argument("ledger", metavar="NEW_LEDGER", shell_complete=completers.files)
@click.option("--chain/--no-chain", default=True, help="Verify the hash chain.")
@json_option
def import_(file: str, ledger: str, chain: bool, as_json: bool) -> None:
    """Make a new ledger of the lines of `export`.

    FILE "-" is stdin. Ids, times, hashes and the text of meta are kept. An existing NEW_LEDGER is refused. Exit code 5
    if the hash chain is broken; after any failure NEW_LEDGER does not exist.
    """
    from pmm_shm.ledger.json_lines import import_lines

    is_stdin = checked_name(file, "FILE") == "-"
    with (
        contextlib.nullcontext(standard_input().buffer) if is_stdin else open(file, "rb") as lines,
        progress("Importing", None) as advance,
    ):
        name = "stdin" if is_stdin else file
        done = import_lines(lines, ledger, source=name, chain=chain, progress=advance)
    if as_json:
        print_json(json_value(done))
    else:
        click.echo(f"{done.ledger}: {done.events:,} events from {name}, as of event {done.head_id:,}")
