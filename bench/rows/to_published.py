"""Row 9: how long until the daemon has published a commit, and what it takes while nothing happens."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from pathlib import Path
from statistics import median

from bench.children import Child
from bench.context import Bench
from bench.oracle import replaying
from bench.report import Row, at_most
from bench.sites import Site
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.wire import protocol
from pmm_shm_cli.benchmark import TICK, require_equal
from pmm_shm_cli.timing import timing
from pmm_shm_client import connect

_EVENTS = 10_000
_PERIOD_S = 0.01
_BATCHES = 10
_QUIET_S = 2.0
_IDLE_PARTS = 3


def to_published(bench: Bench) -> Row:
    row = Row(
        9,
        "From commit to published, and the idle daemon",
        "100 appends per second: p50 under 1 ms, p99 under 5 ms; flat out: p50 under 5 ms; idle: under 0.2 % CPU, at "
        "most 21 MB of private memory without an embedder",
    )
    events = min(bench.largest, _EVENTS)
    with bench.sites.site(events, fresh=True) as site:
        site.start()
        bench.say("row 9: 100 appends per second")
        paced = _paced(site, bench.scale.paced)
        _add(row, "100 appends per second", paced, 1.0, 5.0)
        bench.say("row 9: one writer flat out")
        flat_out = _flat_out(site, bench.scale.flat_out_s)
        _add(row, "one writer flat out", flat_out, 5.0, None)
        with connect(site.ledger) as cache, replaying(site.ledger) as oracle:
            require_equal(cache, oracle)
        bench.say("row 9: idle")
        idle = _idle_percent(site, bench.scale.idle_s)
        row.figure("idle daemon, CPU", median(idle), "%", at_most(0.2), max(idle))
    bench.say("row 9: memory")
    row.figure("daemon on a small ledger, private memory", _private_mb(bench), "MB", at_most(21.0))
    row.note(f"Idle is measured in {_IDLE_PARTS} parts; in its line p99 is the largest of them.")
    return row


def _add(row: Row, what: str, samples_us: list[float], p50_ms: float, p99_ms: float | None) -> None:
    size = max(1, len(samples_us) // _BATCHES)
    rounds = [
        sorted(samples_us[start : start + size])[size // 2] for start in range(0, len(samples_us) - size + 1, size)
    ]
    one = timing(what, rounds, samples_us)
    row.time("commit to published", {what: one})
    row.figure(f"{what}: p50", one.p50_us / 1e3, "ms", at_most(p50_ms))
    row.figure(f"{what}: p99", one.p99_us / 1e3, "ms", None if p99_ms is None else at_most(p99_ms))


def _paced(site: Site, appends: int) -> list[float]:
    """Seen by the writer itself, which looks again and again until its event is published."""
    samples = []
    with EventLog(site.ledger, create=False) as log, connect(site.ledger, consistency="snapshot") as cache:
        cache.metrics()
        next_s = time.monotonic()
        for _ in range(appends):
            next_s += _PERIOD_S
            time.sleep(max(0.0, next_s - time.monotonic()))
            event_id = log.append(*TICK)
            committed = time.perf_counter()
            while cache.metrics().as_of < event_id:
                os.sched_yield()
            samples.append((time.perf_counter() - committed) * 1e6)
    return samples


def _flat_out(site: Site, seconds: float) -> list[float]:
    """Seen by a third process, which looks every 0.2 ms: what that adds is in the numbers."""
    ledger = str(site.ledger)
    with Child("observer", ledger) as observer, Child("writer", ledger, "flat out") as writer:
        observer.tell()
        committed = writer.ask(str(seconds))
        observer.tell(str(committed[-1][0]))
        seen = observer.listen()
    ids = [as_of for as_of, _ in seen]
    return [(seen[bisect_left(ids, event_id)][1] - at_ns) / 1e3 for event_id, at_ns in committed]


def _idle_percent(site: Site, seconds: float) -> list[float]:
    """Of successive parts of the time: what the machine takes away from its guests for a moment counts as used, too."""
    daemon = site.start()
    site.wait_published()
    daemon.call(protocol.INDEX, {}, 600.0)
    time.sleep(min(_QUIET_S, seconds))
    part_s, percents = seconds / _IDLE_PARTS, []
    for _ in range(_IDLE_PARTS):
        before = _cpu_s(daemon.pid)
        time.sleep(part_s)
        percents.append(100 * (_cpu_s(daemon.pid) - before) / part_s)
    return percents


def _private_mb(bench: Bench) -> float:
    """Of a daemon without an embedder, on a ledger without vectors: others load numpy."""
    site = Site(bench.sites.empty() / "small.db", 1)
    with EventLog(site.ledger) as log:
        log.append("user", "hello")
    try:
        pid = site.start().pid
        site.start().call(protocol.INDEX, {}, 600.0)
        libraries = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    finally:
        site.kill()
    assert "numpy" not in libraries, "a daemon without an embedder has loaded numpy"
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3


def _cpu_s(pid: int) -> float:
    """Time on a processor so far, of all threads: by the scheduler, for the other count goes in steps of 10 ms."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text(encoding="utf-8").split()[0]) for one in threads) / 1e9
