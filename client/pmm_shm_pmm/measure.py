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

from pmm_shm.errors import DaemonAbsentError, DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm_pmm.measured import DEFAULT_RUNTIME, WAITING
from pmm_shm_pmm.settings import settings_of_environment
from pmm_shm_terminal.exits import FAILURE, CommandFailed
from pmm_shm_terminal.options import CONTEXT, json_option, ledger_argument, refuse_foreign, the_ledger
from pmm_shm_terminal.output import cell, print_json, printable, show, table, titled
from pmm_shm_terminal.program import run_program

_START_S, _ANSWER_S, _STOP_S, _LATE_S = 10.0, 2.0, 10.0, 3.0
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
    refuse_foreign(path, "measure")
    sys.path.insert(0, os.getcwd())
    if find_spec("pmm") is None:
        raise CommandFailed("no package pmm here: install PMM, or start this in its checkout", FAILURE)
    # The shared state of a copy is beside it: another place would be that of ledgers in use.
    os.environ.pop("PMM_SHM_DIR", None)
    with tempfile.TemporaryDirectory(prefix="pmm-measure-") as folder:
        numbers = [str(calls), str(messages), runtime]
        copies = [_copied(path, folder, name) for name in ("without", "with")]
        without = _measured(copies[0], numbers)
        with _daemon_of(copies[1]) as has_daemon:
            shared = _measured(copies[1], numbers)
    found = _compared(path, without, shared, has_daemon)
    if as_json:
        print_json(found)
        return
    _show(found)
    if not found["is_equal"]:
        raise CommandFailed(f"{path}: PMM answers otherwise under pmm-shm run; please report it", FAILURE)


def _copied(ledger: str, folder: str, name: str) -> str:
    """A copy of the ledger, in a folder of this name: it says how PMM runs on it."""
    from pmm_shm.ledger.backup import backup

    copy = Path(folder, name, "agent.db")
    copy.parent.mkdir()
    backup(ledger, copy)
    return str(copy)


def _process(copy: str, numbers: list[str], output: int, stdin: int, stderr: int) -> subprocess.Popen[bytes]:
    """PMM at work on a copy; its results go to an open file."""
    target = ["-m", "pmm_shm_pmm.measured", copy, *numbers, str(output)]
    environment = dict(os.environ)
    if _way(copy) == "with":
        target = ["-m", "pmm_shm_cli", "run", "--ledger", copy, *target]
    else:
        environment["PMM_SHM"] = "off"
    words = [sys.executable, *target]
    return subprocess.Popen(
        words, env=environment, pass_fds=[output], stdin=stdin, stdout=subprocess.DEVNULL, stderr=stderr
    )


def _way(copy: str) -> str:
    return Path(copy).parent.name


def _measured(copy: str, numbers: list[str]) -> dict[str, Any]:
    """The results of one process.

    Raises:
        CommandFailed: PMM does not run.
    """
    with tempfile.TemporaryFile() as output:
        with _process(copy, numbers, output.fileno(), subprocess.DEVNULL, subprocess.PIPE) as process:
            said = process.communicate()[1]
        output.seek(0)
        found = output.read()
    if process.returncode or not found:
        last = (said.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise CommandFailed(f"PMM does not run {_way(copy)} pmm-shm run: {last}", FAILURE)
    result: dict[str, Any] = json.loads(found)
    return result


@contextlib.contextmanager
def _daemon_of(copy: str) -> Iterator[bool]:
    """Let PMM under `run` start its daemon, as its first process does, and end it in the end. Whether there is one."""
    has_daemon = False
    try:
        with (
            tempfile.TemporaryFile() as output,
            _process(copy, WAITING, output.fileno(), subprocess.PIPE, subprocess.DEVNULL) as process,
        ):
            has_daemon = _is_caught_up(copy, process)
            # It waits for the end of its input.
            process.communicate()
        yield has_daemon
    finally:
        _end_daemon(copy, 0.0 if has_daemon else _LATE_S)


def _end_daemon(copy: str, late_s: float) -> None:
    """End the daemon of a copy, also one that comes up within `late_s` seconds."""
    from pmm_shm_client.stopping import stop_daemon

    deadline_s = time.monotonic() + (late_s if settings_of_environment().starts_daemon else 0.0)
    while True:
        try:
            stop_daemon(Instance.of(copy), _STOP_S)
        except DaemonAbsentError:
            if time.monotonic() < deadline_s:
                time.sleep(_LOOK_S)
                continue
        except DaemonError:
            pass
        return


def _is_caught_up(copy: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether a daemon serves the copy, once it has published all of it; False where PMM has ended."""
    from pmm_shm.wire import protocol
    from pmm_shm_client.commands import call

    instance, deadline_s = Instance.of(copy), time.monotonic() + _START_S
    if settings_of_environment().starts_daemon:
        while process.poll() is None and time.monotonic() < deadline_s:
            with contextlib.suppress(DaemonError):
                if call(instance, protocol.STATS, {}, _ANSWER_S)["is_current"]:
                    return True
                # It is at work.
                deadline_s = time.monotonic() + _START_S
            time.sleep(_LOOK_S)
    return False


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
