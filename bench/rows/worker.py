"""Rows 7 and 8: what a new worker process costs: its first read, and its own memory."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from statistics import median

from bench.children import (
    BARE_IMPORTS,
    BARE_PROCESS,
    CHAT_IMPORTS,
    CHAT_PROCESS,
    MEMORY_PARTS,
    MEMORY_PROCESS,
    READING_PROCESS,
    run_python,
)
from bench.context import Bench
from bench.oracle import replaying
from bench.peers import require
from bench.report import Row, at_most
from pmm_shm_cli.timing import Action, interleaved, ratio
from pmm_shm_client import connect

OURS, BARE = "import, connect, metrics()", f'python -c "{BARE_IMPORTS}"'
_FIRST_READ = """
import sys
from pmm_shm_client import connect
metrics = connect(sys.argv[1]).metrics()
print((metrics.ias, metrics.gas, metrics.as_of))
"""
_MODULES = _FIRST_READ + "\nprint(sorted({'numpy', 'zmq'} & set(sys.modules)))\n"


def first_read(bench: Bench) -> Row:
    row = Row(
        7,
        "First read of a new worker process, import included",
        f"at most 3 × {BARE}; neither numpy nor zmq imported",
    )
    for events in bench.scale.events:
        bench.say(f"row 7: {events:,} events")
        with bench.sites.site(events) as site:
            site.start()
            with connect(site.ledger) as cache, replaying(site.ledger) as oracle:
                metrics = cache.metrics()
                require("metrics", metrics, oracle.metrics())
            wanted = f"{(metrics.ias, metrics.gas, metrics.as_of)}\n"
            require("modules of a first read", run_python(_MODULES, str(site.ledger)), wanted + "[]\n")
            sides: dict[str, Action] = {
                OURS: partial(_read, site.ledger, wanted),
                BARE: partial(run_python, BARE_IMPORTS),
            }
            timings = interleaved(sides, bench.scale.workers, 1)
        row.time(f"{events:,} events", timings)
        row.point(OURS, events, timings[OURS])
        row.point(BARE, events, timings[BARE])
        measured = ratio(timings[OURS], timings[BARE])
        row.figure(f"{events:,} events: ours / bare imports", measured.p50, goal=at_most(3.0), p99=measured.p99)
    return row


def _read(ledger: Path, wanted: str) -> None:
    require("metrics of a new process", run_python(_FIRST_READ, str(ledger)), wanted)


def private_memory(bench: Bench) -> Row:
    row = Row(
        8,
        "Private memory (USS) of a worker beside a running daemon, every view read once",
        f"at most 2 MB in a process that has done `{CHAT_IMPORTS}`, as any chat worker has",
    )
    for events in bench.scale.events:
        bench.say(f"row 8: {events:,} events")
        above, views, bare_mb, added = [], [], [], []
        with bench.sites.site(events) as site:
            site.start()
            # Pages that two processes map are private to neither: so it is measured beside another worker.
            with connect(site.ledger) as cache:
                as_of = cache.frame().as_of
                for _ in range(bench.scale.uss_workers):
                    bare = int(run_python(BARE_PROCESS))
                    used, deep, seen = map(int, run_python(READING_PROCESS, str(site.ledger)).split())
                    assert seen == as_of
                    bare_mb.append(bare / 1e6)
                    views.append(deep / 1e6)
                    above.append((used - bare - deep) / 1e6)
                    if importlib.util.find_spec("httpx") is not None:
                        added.append(int(run_python(CHAT_PROCESS, str(site.ledger)).split()[1]) / 1e6)
        if added:
            row.figure(f"{events:,} events: added to a chat worker", median(added), "MB", at_most(2.0), max(added))
        else:
            row.note("httpx is not installed: what a chat worker adds is left out.")
        row.figure(f"{events:,} events: above bare imports and views", median(above), "MB", p99=max(above))
        row.figure(f"{events:,} events: bare imports", median(bare_mb), "MB")
        row.figure(f"{events:,} events: the views", median(views), "MB")
    _memory_by_part(bench, row)
    row.note("In this row p99 is the largest of the processes.")
    return row


def _memory_by_part(bench: Bench, row: Row) -> None:
    """The memory that each step adds, beside another worker; a part has only imports that no earlier part had."""
    events = bench.largest
    bench.say("row 8: by part")
    with bench.sites.site(events) as site:
        site.start()
        with connect(site.ledger) as cache:
            cache.frame()
            runs = [
                [int(word) for word in run_python(MEMORY_PROCESS, str(site.ledger)).split()]
                for _ in range(bench.scale.uss_workers)
            ]
    modules = runs[0][-1]
    parts = (*MEMORY_PARTS, f"our own modules and what is left: {modules}", "connecting, reading every view")
    row.tables[f"what a worker adds at {events:,} events, by part, in this order"] = [
        {"part": part, "MB": median([run[number + 1] - run[number] for run in runs]) / 1e6}
        for number, part in enumerate(parts)
    ]
