"""Measure PMM on copies of a ledger, without and with `pmm-shm run`: `python -m pmm_shm_pmm.measure LEDGER`."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm_pmm.measured import DEFAULT_RUNTIME
from pmm_shm_terminal.exits import FAILURE, CommandFailed
from pmm_shm_terminal.options import CONTEXT, json_option, ledger_argument, the_ledger
from pmm_shm_terminal.output import cell, print_json, printable, show, table, titled
from pmm_shm_terminal.program import run_program

_START_S, _ANSWER_S, _STOP_S = 5.0, 2.0, 10.0
_LOOK_S = 0.05
_ROWS = (
    ("start, with both folds once", "start_ms"),
    ("metrics (compute_ias_gas)", "metrics_ms"),
    ("projection (build_self_model)", "projection_ms"),
    ("message (handle_user)", "message_ms"),
)


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option("--calls", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Calls of each fold.")
@click.option("--messages", type=click.IntRange(0), default=3, show_default=True, metavar="N", help="User messages.")
@click.option(
    "--runtime",
    default=DEFAULT_RUNTIME,
    show_default=True,
    metavar="MODULE:FUNCTION",
    help="Makes PMM's runtime of an EventLog; yours, where PMM's needs more than a log.",
)
@json_option
def measure(ledger: str | None, calls: int, messages: int, runtime: str, as_json: bool) -> None:
    """Measure PMM on copies of LEDGER, without and with pmm-shm run.

    Start it where PMM can be imported, from its checkout, say. LEDGER itself is only read. No model is asked: a fixed
    reply takes its place. Times are medians in milliseconds.
    """
    path = the_ledger(ledger)
    sys.path.insert(0, os.getcwd())
    if find_spec("pmm") is None:
        raise CommandFailed("no package pmm here: install PMM, or start this in its checkout", FAILURE)
    # The shared state of a copy is beside it: another place would be that of ledgers in use.
    os.environ.pop("PMM_SHM_DIR", None)
    with tempfile.TemporaryDirectory(prefix="pmm-measure-") as folder:
        words = [str(calls), str(messages), runtime]
        without = _run(path, folder, "without", words)
        with _daemon_of(_copy(folder, "with")):
            # This one starts the daemon, which then folds the ledger once for all.
            _run(path, folder, "with", ["0", "0", runtime])
            has_daemon = _is_caught_up(_copy(folder, "with"))
            shared = _run(path, folder, "with", words)
    found = _compared(path, without, shared, has_daemon)
    if as_json:
        print_json(found)
        return
    _show(found)
    if not found["is_equal"]:
        raise CommandFailed(f"{path}: PMM answers otherwise under pmm-shm run; please report it", FAILURE)


def _copy(folder: str, name: str) -> str:
    return str(Path(folder, name, "agent.db"))


def _run(ledger: str, folder: str, name: str, words: list[str]) -> dict[str, Any]:
    """Time PMM in a process of its own, on the copy of this name, which is made where there is none."""
    from pmm_shm.ledger.backup import backup

    copy, output = _copy(folder, name), Path(folder, f"{name}.json")
    if not os.path.exists(copy):
        os.mkdir(os.path.dirname(copy))
        backup(ledger, copy)
    environment = dict(os.environ)
    target = ["-m", "pmm_shm_pmm.measured", copy, *words, str(output)]
    if name == "with":
        target = ["-m", "pmm_shm_cli", "run", "--ledger", copy, *target]
    else:
        environment["PMM_SHM"] = "off"
    ended = subprocess.run([sys.executable, *target], env=environment, capture_output=True, check=False)
    if ended.returncode or not output.exists():
        last = (ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise CommandFailed(f"PMM does not run {name} pmm-shm run: {last}", FAILURE)
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    output.unlink()
    return result


@contextlib.contextmanager
def _daemon_of(copy: str) -> Iterator[None]:
    """Ends the daemon that serves the copy, whatever happens."""
    from pmm_shm_client.stopping import stop_daemon

    try:
        yield
    finally:
        with contextlib.suppress(DaemonError):
            stop_daemon(Instance.of(copy), _STOP_S)


def _is_caught_up(copy: str) -> bool:
    """Whether a daemon serves the copy, once it has published all of it."""
    from pmm_shm.wire import protocol
    from pmm_shm_client.commands import call

    instance, deadline_s = Instance.of(copy), time.monotonic() + _START_S
    while True:
        try:
            numbers = call(instance, protocol.STATS, {}, _ANSWER_S)
        except DaemonError:
            if time.monotonic() >= deadline_s:
                return False
        else:
            if numbers["is_current"]:
                return True
            deadline_s = time.monotonic() + _START_S
        time.sleep(_LOOK_S)


def _compared(ledger: str, without: Mapping[str, Any], shared: Mapping[str, Any], has_daemon: bool) -> dict[str, Any]:
    rows = {}
    for _, name in _ROWS:
        times = [_median(found[name]) for found in (without, shared)]
        if None not in times:
            rows[name] = dict(zip(("without", "with"), times, strict=True))
    return {
        "ledger": ledger,
        "events": without["events"],
        "has_daemon": has_daemon,
        **rows,
        "memory_kb": {"without": without["memory_kb"], "with": shared["memory_kb"]},
        # Of folds, and the kinds of what was appended.
        "is_equal": all(without[name] == shared[name] for name in ("events", "answers", "kinds")),
        "problem": without["problem"] or shared["problem"],
    }


def _median(times: float | list[float]) -> float | None:
    if isinstance(times, list):
        return statistics.median(times) if times else None
    return times


def _show(found: Mapping[str, Any]) -> None:
    made = table("ms", "without", "with run", "times")
    for label, name in _ROWS:
        if name in found:
            before, after = found[name]["without"], found[name]["with"]
            made.add_row(cell(label), *(cell(f"{one:,.3f}") for one in (before, after)), cell(f"{before / after:,.1f}"))
    before, after = (found["memory_kb"][name] / 1_000 for name in ("without", "with"))
    made.add_row(cell("memory, MB"), *(cell(f"{one:,.0f}") for one in (before, after)), cell(f"{before / after:,.1f}"))
    beside = "a daemon" if found["has_daemon"] else "no daemon"
    show(titled(f"{printable(found['ledger'])}: {found['events']:,} events, {beside}", made))
    if found["problem"] is not None:
        click.echo(f"pmm-shm: no messages: {printable(found['problem'])}; see --runtime", err=True)
    if found["is_equal"]:
        click.echo("answers and appended kinds: equal")


def main() -> None:
    """The program."""
    run_program(measure, "python -m pmm_shm_pmm.measure")


if __name__ == "__main__":
    main()
