"""`pmm-shm bench`"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmm_shm.finite import Finite
from pmm_shm_cli.environment import changed_environment
from pmm_shm_terminal import exits
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import CONTEXT, json_option, ledger_argument, refuse_foreign, the_ledger
from pmm_shm_terminal.output import console, pairs, print_json, show, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pmm_shm_cli.benchmark import BenchmarkReport


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option(
    "--seconds",
    type=Finite(min=0, max=3_600),
    default=3.0,
    metavar="S",
    help="Approximate duration of each comparison.",
)
@json_option
def bench(ledger: str | None, seconds: float, as_json: bool) -> None:
    """Time the same answers with caches on and off.

    Works on a copy in a temporary directory, with its own daemon; LEDGER is only read. Answers are compared before they
    are timed; exit code 5 if one differs. TMPDIR needs free space of twice the size of LEDGER.
    """
    path = the_ledger(ledger)
    refuse_foreign(path, "bench")
    from pmm_shm_cli import benchmark

    facts = benchmark.machine()
    # Without PMM_SHM_DIR, the copy's instance directory is in the temporary one, and is removed with it.
    here = changed_environment({"PMM_SHM_DIR": None})
    with (
        here,
        tempfile.TemporaryDirectory(prefix="pmm-shm-bench-", ignore_cleanup_errors=True) as name,
        _saying() as say,
    ):
        try:
            report = benchmark.run(path, Path(name), seconds, say)
        except benchmark.WrongAnswerError as error:
            raise CommandFailed(str(error), exits.INTEGRITY) from None
        except OSError as error:
            raise CommandFailed(str(error), exits.FAILURE) from None
    if as_json:
        print_json(as_dict(report, facts))
    else:
        show(*shown(report, facts))


def as_dict(report: BenchmarkReport, facts: dict[str, Any]) -> dict[str, Any]:
    """The report as one JSON value; times in microseconds."""
    return {
        "machine": facts,
        "events": report.events,
        "open_commitments": report.open_commitments,
        "comparisons": [
            {
                "what": one.what,
                "caches_on": one.on.as_dict(),
                "caches_off": one.off.as_dict(),
                "times_faster": one.times_faster._asdict(),
            }
            for one in report.comparisons
        ],
        "full_replay": report.replay.as_dict(),
    }


def shown(report: BenchmarkReport, facts: dict[str, Any]) -> list[RenderableType]:
    """The report for people."""
    made = table("what", "on, p50", "on, p99", "off, p50", "off, p99", "times faster")
    for column in made.columns[1:]:
        column.justify = "right"
    for one in report.comparisons:
        times = [one.on.p50_us, one.on.p99_us, one.off.p50_us, one.off.p99_us]
        made.add_row(one.what, *map(duration, times), f"{one.times_faster.p50:,.0f}")
    replay = {
        "a full replay of all folds": f"{duration(report.replay.p50_us)}, p99 {duration(report.replay.p99_us)}",
        "open commitments": report.open_commitments,
        "machine": f"{facts['cores']} cores, {facts['cpu']}; load {', '.join(map(str, facts['load']))}",
        "versions": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
    }
    return [titled(f"caches on and off, {report.events:,} events", made), pairs("beside them", replay)]


def duration(microseconds: float) -> str:
    """`0.31 µs`, `4.2 ms`, `1.3 s`"""
    for unit, factor in (("µs", 1.0), ("ms", 1e3), ("s", 1e6)):
        value = microseconds / factor
        if value < 999.5 or unit == "s":
            return f"{value:.3g} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    raise AssertionError


@contextlib.contextmanager
def _saying() -> Iterator[Any]:
    """Report each step on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with console(stderr=True).status("starting") as status:
        yield lambda text: status.update(text)
