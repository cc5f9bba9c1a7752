"""`make bench-run`: the stand-in for PMM without and with `pmm-shm run`, message by message in turns, on ledgers like
PMM's; and what the launcher itself costs.

Both sides append to copies of the same ledger, with a warm daemon for the launched one. Once the ledger's head differs
between the sides, the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench import pmm_ledger
from bench.daemons import environment, execute, until
from bench.run_worker import STANDIN, Process
from pmm_shm.instance.paths import Instance
from pmm_shm.wire import protocol
from pmm_shm_cli.commands.bench import duration
from pmm_shm_client import commands
from pmm_shm_client.autostart import is_running
from tests.support import standin_package

PLAIN, LAUNCHED = "PMM", "pmm-shm run"
_SMALL_EVENTS = 500
_CPU = "its processor time, lower quartile"
_WORDS = re.findall(
    r"\w+", "review the garden plan my identity the budget a letter the report and its tests what is next"
)


class Figure(NamedTuple):
    """One row of the table; times in microseconds, sizes in bytes, as text."""

    what: str
    events: int
    plain: str
    launched: str
    ratio: str = ""
    goal: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__)
    parser.add_argument("--events", default="1000,10000,100000", help="sizes of the ledgers")
    parser.add_argument("--messages", type=int, default=500, help=f"messages at {_SMALL_EVENTS} events")
    parser.add_argument("--quick", action="store_true", help="tiny: whether it runs, not how fast")
    options = parser.parse_args()
    sizes = [200] if options.quick else [int(size) for size in options.events.split(",")]
    table = Table("what", "events", PLAIN, LAUNCHED, "ratio", "goal")
    for figure in figures(sizes, 4 if options.quick else options.messages):
        table.add_row(*map(str, figure[:1]), f"{figure.events:,}", *figure[2:])
        print(f"{figure.what}, {figure.events:,}: {figure.plain} | {figure.launched} {figure.ratio}", file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def figures(sizes: Sequence[int], messages: int) -> Iterator[Figure]:
    """All figures, the quick ones first."""
    with tempfile.TemporaryDirectory(prefix="pmm-bench-") as made:
        directory = Path(made)
        sources = directory / "sources.json"
        sources.write_text(json.dumps(standin_package.hashes()), encoding="utf-8")
        variables = {name: value for name, value in environment().items() if not name.startswith("PMM_")}
        variables |= {"PMM_SHM_SOURCES": str(sources)}
        small = pmm_ledger.make(directory / "small.db", _SMALL_EVENTS)
        yield from _small_messages(directory, small, messages, variables)
        yield from _start(directory, small, 3 if messages < 100 else 20, variables)
        for size in sizes:
            original = pmm_ledger.make(directory / f"{size}.db", size)
            yield from _one_size(directory, original, size, variables)


def _small_messages(directory: Path, original: Path, messages: int, variables: dict[str, str]) -> Iterator[Figure]:
    """Messages on fresh copies, ten on each, so that the size stays; without a daemon, which each would start."""
    texts = _texts()
    samples: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    with _workers({**variables, "PMM_SHM_DAEMON": "off"}) as workers:
        for start in range(0, messages, 10):
            for name, worker in zip(("plain", "launched"), workers, strict=True):
                worker.do("open", str(_copy(original, directory / name)))
            for number in range(start, min(start + 10, messages)):
                text = next(texts)
                for side in (0, 1) if number % 2 else (1, 0):
                    workers[side].do("message", text)
                    samples[side].append(workers[side].last_us)
                    cpu[side].append(workers[side].last_cpu_us)
            _assert_equal(workers)
            for worker in workers:
                worker.do("close")
    # On a machine that has other work, the times of the processor say more, and the lower quartile most.
    quartiles = [statistics.quantiles(one)[0] for one in cpu]
    for what, (plain, launched) in (
        (f"message, median of {messages}", map(statistics.median, samples)),
        (_CPU, quartiles),
    ):
        ratio = f"{launched / plain:.2f}"
        yield Figure(what, _SMALL_EVENTS, duration(plain), duration(launched), ratio, "<= 1.05")


def _one_size(directory: Path, original: Path, size: int, variables: dict[str, str]) -> Iterator[Figure]:
    """Everything on one ledger with a warm daemon."""
    paths = [_copy(original, directory / f"{side}-{size}") for side in ("plain", "launched")]
    with _daemon(paths[1], variables), _workers(variables) as workers:
        for worker, path in zip(workers, paths, strict=True):
            worker.do("open", str(path))
        yield _compared("open PMM", size, [worker.last_us for worker in workers])
        texts = _texts()
        text = next(texts)
        for worker in workers:
            worker.do("message", text)
        yield _compared("first message", size, [worker.last_us for worker in workers])
        for worker in workers:
            worker.do("looked_at")
        samples: list[list[float]] = [[], []]
        rounds = 20 if size <= 10_000 else 4
        for number in range(rounds):
            text = next(texts)
            for side in (0, 1) if number % 2 else (1, 0):
                workers[side].do("message", text)
                samples[side].append(workers[side].last_us)
        _assert_equal(workers)
        yield _compared("message", size, [statistics.median(one) for one in samples])
        looked_at = [worker.do("looked_at") // rounds for worker in workers]
        yield Figure("events looked at in a message", size, f"{looked_at[0]:,}", f"{looked_at[1]:,}")
        for worker in workers:
            worker.do("tick")
        yield _compared("first tick", size, [worker.last_us for worker in workers])
        workers[1].do("tick")
        yield Figure("tick", size, "", duration(workers[1].last_us))
        yield _compared("append with listeners", size, [worker.do("appends", 200) for worker in workers])
        for name, us in workers[1].do("recognition", 50).items():
            goal = "<= 0.4 ms at 100,000" if name == "a new list" else "<= 2 µs"
            yield Figure(f"recognising {name}", size, "", duration(us), "", goal)
        memory = [worker.do("memory") / 1e6 for worker in workers]
        yield Figure("memory of a worker", size, *(f"{value:.0f} MB" for value in memory))


def _start(directory: Path, original: Path, rounds: int, variables: dict[str, str]) -> Iterator[Figure]:
    """From the command to its end: the chat, with nobody to talk to."""
    path = _copy(original, directory / "start")
    sides = {
        PLAIN: [sys.executable, "-m", "pmm.cli.chat"],
        LAUNCHED: [sys.executable, "-m", "pmm_shm_cli", "run", "-m", "pmm.cli.chat"],
    }
    samples: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    variables = {**variables, "PMM_DB": str(path)}
    variables["PYTHONPATH"] = os.pathsep.join([str(STANDIN), variables["PYTHONPATH"]])
    with _daemon(path, variables):
        for _ in range(rounds):
            for side, command in sides.items():
                began, used = time.perf_counter(), _used_by_children_s()
                subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, check=True)
                samples[side].append((time.perf_counter() - began) * 1e6)
                cpu[side].append((_used_by_children_s() - used) * 1e6)
    for what, (plain, launched) in (
        ("start and end", map(statistics.median, samples.values())),
        (_CPU, [statistics.quantiles(one)[0] for one in cpu.values()]),
    ):
        more = duration(launched - plain) if launched > plain else "none"
        yield Figure(what, _SMALL_EVENTS, duration(plain), duration(launched), f"+{more}", "<= +150 ms")


def _used_by_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _workers(variables: dict[str, str]) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Process(variables, is_launched=launched)) for launched in (False, True)]


@contextmanager
def _daemon(path: Path, variables: dict[str, str]) -> Iterator[None]:
    """A daemon as the launcher starts it, with everything published."""
    instance = Instance.of(str(path))
    with Process(variables, is_launched=True) as worker:
        worker.do("open", str(path))
        worker.do("start_daemon", str(path))
        until(lambda: is_running(instance), "the launcher starts a daemon")
    head = execute(path, "SELECT max(id) FROM events")[0][0]
    commands.call(instance, protocol.WAIT, {"event_id": head, "timeout_ms": 600_000}, 600.0)
    try:
        yield
    finally:
        command = [sys.executable, "-m", "pmm_shm_cli", "stop", str(path)]
        subprocess.run(command, env=variables, capture_output=True, check=False, timeout=60)


def _copy(original: Path, directory: Path) -> Path:
    """A copy in a folder of its own, which replaces the last one."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return Path(shutil.copyfile(original, directory / "pmm.db"))


def _compared(what: str, events: int, us: Sequence[float]) -> Figure:
    plain, launched = us
    return Figure(what, events, duration(plain), duration(launched), f"{launched / plain:.3g}")


def _texts() -> Iterator[str]:
    chance = random.Random(7)
    while True:
        yield " ".join(chance.choices(_WORDS, k=12))


def _assert_equal(workers: Sequence[Process]) -> None:
    heads = {worker.do("head") for worker in workers}
    assert len(heads) == 1, f"the sides have appended differently: {heads}"


if __name__ == "__main__":
    main()
