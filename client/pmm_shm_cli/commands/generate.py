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
@click.option(
    "--profile",
    type=click.Choice(["agent", "bench"]),
    default="agent",
    help="An agent's life, or the ledger of the benchmarks.",
)
@json_option
def generate(path: str, events: int, seed: int, journal: str, profile: str, as_json: bool) -> None:
    """Make a realistic synthetic ledger with a correct hash chain.

    The same seed gives the same events, and a longer ledger begins like a shorter one. An existing PATH is never
    overwritten.

    \b
    agent  One person's assistant: conversations, a heartbeat every 15 minutes,
           commitments, scores that rise and fall. 10,000 events are 8 weeks.
    bench  Self-models of one size: from 1,000 events on, 40 open commitments
           (never more than 100), 20 expired, at most 50 directives.
    """
    from pmm_shm_cli import synthetic

    start = time.monotonic()
    mode: synthetic.Journal = "wal" if journal == "wal" else "delete"
    kind: synthetic.Profile = "agent" if profile == "agent" else "bench"
    with progress("Generating", events) as advance:
        made = synthetic.generate(path, events, seed, mode, advance, kind)
    seconds = time.monotonic() - start
    if as_json:
        numbers = {"events": events, "seed": seed, "journal": journal, "profile": profile, "seconds": round(seconds, 3)}
        print_json({"path": made, **numbers})
    else:
        click.echo(f"{made}: {events:,} events, seed {seed}, in {seconds:.1f} s")
