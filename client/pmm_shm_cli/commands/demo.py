"""`pmm-shm demo`"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmm_shm.finite import Finite
from pmm_shm_cli.environment import changed_environment
from pmm_shm_terminal import exits
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import CONTEXT, json_option
from pmm_shm_terminal.output import console, json_value, print_json, show

if TYPE_CHECKING:
    from pmm_shm_cli.demo_run import DemoOutcome, Picture

_LINE_EVERY_S = 1.0


@click.command(context_settings=CONTEXT)
@click.option("--workers", type=click.IntRange(1, 64), default=4, metavar="N", help="Number of workers.")
@click.option("--seconds", type=Finite(min=1, max=3_600), default=6.0, metavar="S", help="Duration of the run.")
@click.option(
    "--keep", type=click.Path(file_okay=False), metavar="DIR", help="Work in this new or empty directory, and keep it."
)
@json_option
def demo(workers: int, seconds: float, keep: str | None, as_json: bool) -> None:
    """Show pmm-shm at work in a temporary directory.

    Workers append and read while the daemon is killed and started again.

    Ends with a comparison of every answer with a full replay; exit code 5 where they differ.
    """
    # The demo shows the product as it is, not as this shell has set it up, and keeps to its own directory.
    ours = dict.fromkeys(name for name in os.environ if name.startswith("PMM_"))
    with changed_environment(ours), _directory(keep) as name:
        directory = Path(name)
        if sys.stdout.isatty() and not as_json:
            outcome = _run_live(directory, workers, seconds)
        else:
            outcome = _run_with_lines(directory, workers, seconds, to_stderr=as_json)
    if as_json:
        checks = [json_value(check) for check in outcome.checks]
        print_json({"ok": outcome.ok, **outcome.numbers, "checks": checks})
    else:
        from pmm_shm_cli.demo_view import verdict

        show(*verdict(outcome))
    if keep is not None:
        click.echo(f"pmm-shm: kept in {directory}", err=True)
    if not outcome.ok:
        broken = "; ".join(f"{check.name}: {check.detail}" for check in outcome.checks if not check.ok)
        raise CommandFailed(f"a promise was broken: {broken}", exits.INTEGRITY)


def _run_live(directory: Path, workers: int, seconds: float) -> DemoOutcome:
    from rich.live import Live

    from pmm_shm_cli.demo_run import Run
    from pmm_shm_cli.demo_view import live_view

    with Live(console=console(), auto_refresh=False, vertical_overflow="crop") as live:

        def draw(picture: Picture) -> None:
            live.update(live_view(picture), refresh=True)

        return Run(directory, workers, seconds, lambda at_s, text: None, draw).run()


def _run_with_lines(directory: Path, workers: int, seconds: float, to_stderr: bool) -> DemoOutcome:
    from pmm_shm_cli.demo_run import Run
    from pmm_shm_cli.demo_view import status_line

    next_line_s = time.monotonic() + _LINE_EVERY_S

    def say(at_s: float, text: str) -> None:
        click.echo(f"{at_s:5.1f} s  {text}", err=to_stderr)

    def tick(picture: Picture) -> None:
        nonlocal next_line_s
        if picture.workers and time.monotonic() >= next_line_s:
            next_line_s = time.monotonic() + _LINE_EVERY_S
            say(picture.elapsed_s, status_line(picture))

    return Run(directory, workers, seconds, say, tick).run()


def _directory(keep: str | None) -> AbstractContextManager[str]:
    """The directory of the demo: a temporary one, removed at the end, or the one to keep."""
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="pmm-shm-demo-", ignore_cleanup_errors=True)
    path = Path(os.path.realpath(keep))
    try:
        path.mkdir(exist_ok=True)
        occupied = any(path.iterdir())
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}", exits.FAILURE) from None
    if occupied:
        raise CommandFailed(f"{path}: not empty; name a new directory", exits.FAILURE)
    return contextlib.nullcontext(str(path))
