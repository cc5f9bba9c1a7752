"""`pmm-shm generate`"""

from __future__ import annotations

import time

import click

from pmm_shm_terminal import completers
from pmm_shm_terminal.options import CONTEXT, json_option
from pmm_shm_terminal.output import print_json, progress


@click.command(context_settings=CONTEXT)
@click.argument("path", shell_complete=completers.files)
@click.option("--events", type=click.IntRange(min=0), default=10_000, metavar="N", help="Number of events.")
@click.option("--seed", type=click.IntRange(min=0), default=1, metavar="S", help="Seed of the random content.")
@click.option(
    "--journal", type=click.Choice(["wal", "delete"]), default="wal", help="SQLite's journal mode of the ledger."
)
@json_option
def generate(path: str, events: int, seed: int, journal: str, as_json: bool) -> None:
    """Make a realistic synthetic ledger with a correct hash chain.

    The same seed gives the same events, and a longer ledger begins like a shorter one. From about 1,000 events on, at
    any size: about 40 commitments are open at a time and never more than 100, 20 expire in all, and there are at most
    50 different directives. An existing PATH is never overwritten.
    """
    from pmm_shm_cli import synthetic

    start = time.monotonic()
    mode: synthetic.Journal = "wal" if journal == "wal" else "delete"
    with progress("Generating", events) as advance:
        made = synthetic.generate(path, events, seed, mode, advance)
    seconds = time.monotonic() - start
    if as_json:
        print_json({"path": made, "events": events, "seed": seed, "journal": journal, "seconds": round(seconds, 3)})
    else:
        click.echo(f"{made}: {events:,} events, seed {seed}, in {seconds:.1f} s")
