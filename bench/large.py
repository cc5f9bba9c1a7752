"""`make bench-large`: a ledger of ten million events beside one of a million, in one run.

The larger one is generated once, which takes some minutes and about 3 GB. Start, verification and search by words are
stated; the others must not depend on the length of the log.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from bench.__main__ import ROOT, as_text, say
from bench.children import READING_PROCESS, compile_packages, run_python
from bench.oracle import replaying
from bench.report import Row, at_most, shown
from bench.sites import Ledgers, Site, Sites
from pmm_shm.wire import protocol
from pmm_shm_cli.benchmark import machine, require_equal, turn_event
from pmm_shm_cli.timing import RoundTimer, Timing, interleaved, ratio
from pmm_shm_client import connect

_MEMORY_MB_MAX = 400.0
_QUERIES = ("review the garden plan", "train timetable", "figures changed before Friday", "a letter to Ana")
_DEADLINE_S = 3_600.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.large", description=__doc__)
    parser.add_argument("--events", type=_two, default=(1_000_000, 10_000_000), help="two sizes: 1000000,10000000")
    parser.add_argument("--directory", type=Path, default=ROOT / ".bench", help="for ledgers and data")
    options = parser.parse_args()
    compile_packages()
    options.directory.mkdir(parents=True, exist_ok=True)
    facts, began = machine(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="work-", dir=options.directory) as work:
        sites = Sites(Ledgers(options.directory / "ledgers", say), Path(work), options.events[0])
        try:
            row = large(sites, *options.events)
        finally:
            sites.close()
    report = {"machine": facts, "minutes": round((time.monotonic() - began) / 60, 1), "rows": [row.as_dict()]}
    (options.directory / "large.json").write_text(as_text(report), encoding="utf-8")
    shown(report, Console(width=None if sys.stdout.isatty() else 160))


def large(sites: Sites, fewer: int, more: int) -> Row:
    row = Row(
        15,
        f"{more:,} events beside {fewer:,}",
        f"reads and a worker's memory at most 1.3 × those at {fewer:,}; memory of the daemon at its highest under "
        f"{_MEMORY_MB_MAX:g} MB; a verification ends",
    )
    with sites.site(fewer) as small, sites.site(more) as big:
        stated = [{"events": site.events, **_served(site)} for site in (small, big)]
        _reads(row, small, big)
        highest = [_highest_mb(site) for site in (small, big)]
    for line, megabytes in zip(stated, highest, strict=True):
        line["memory of the daemon at its highest, MB"] = megabytes
    row.tables["by size"] = stated
    row.figure("memory of the daemon at its highest", highest[1], "MB", at_most(_MEMORY_MB_MAX))
    workers = [line["private memory of a worker, MB"] for line in stated]
    row.figure("private memory of a worker", workers[1] / workers[0], goal=at_most(1.3))
    return row


def _served(site: Site) -> dict[str, Any]:
    """What is measured once for each size; the daemon stays."""
    say(f"{site.events:,} events: start")
    start_s = _seconds(site.start)
    daemon = site.start()
    words_s = _seconds(lambda: daemon.call(protocol.INDEX, {}, _DEADLINE_S))
    say(f"{site.events:,} events: verification")
    verify_s = _seconds(lambda: daemon.call(protocol.VERIFY, {"fold": None}, _DEADLINE_S))
    with connect(site.ledger) as cache, replaying(site.ledger) as oracle:
        require_equal(cache, oracle)
        searches = [_seconds(lambda query=query: cache.search(query, mode="words")) for query in _QUERIES * 5]  # type: ignore[misc]
    data = site.ledger.with_name(f"{site.ledger.name}-cache") / "data.mdb"
    return {
        "start, s": start_s,
        "all words indexed, s later": words_s,
        "verification, s": verify_s,
        "search by words, p50, ms": 1e3 * median(searches),
        "private memory of a worker, MB": int(run_python(READING_PROCESS, str(site.ledger)).split()[0]) / 1e6,
        "data.mdb, MB": data.stat().st_blocks * 512 / 1e6,
    }


def _reads(row: Row, small: Site, big: Site) -> None:
    with connect(small.ledger) as fewer, connect(big.ledger) as more:
        caches = {f"{site.events:,} events": cache for site, cache in ((small, fewer), (big, more))}
        for read in ("metrics", "self_model"):
            actions: dict[str, Callable[[], Any]] = {name: getattr(cache, read) for name, cache in caches.items()}
            _compare(row, f"repeated {read}()", interleaved(actions, 20, 200), list(caches))
        watch = RoundTimer()
        for number in range(200):
            for name, cache in caches.items():
                event_id = cache.append(*turn_event(number))
                assert watch.time(name, cache.metrics).as_of == event_id
            watch.end_round()
        _compare(row, "metrics() behind an append", watch.timings(), list(caches))


def _compare(row: Row, what: str, timings: dict[str, Timing], names: list[str]) -> None:
    row.time(what, timings)
    measured = ratio(timings[names[1]], timings[names[0]])
    row.figure(what, measured.p50, goal=at_most(1.3), p99=measured.p99)


def _seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _highest_mb(site: Site) -> float:
    lines = Path(f"/proc/{site.start().pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1e3


def _two(text: str) -> tuple[int, int]:
    fewer, more = (int(part.replace("_", "")) for part in text.split(","))
    return fewer, more


if __name__ == "__main__":
    main()
