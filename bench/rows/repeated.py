"""Row 1: an exact read with nothing new, against a bare look-up and against stores that others keep their state in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import bare
from bench.context import Bench
from bench.oracle import replaying
from bench.peers import Store, as_plain, get_answer, open_stores, put_answer, require
from bench.peers.in_process import InProcess
from bench.peers.naive import Naive
from bench.report import Row, at_least, at_most
from pmm_shm.codec import pack
from pmm_shm_cli.timing import Timing, interleaved, ratio
from pmm_shm_client import Cache, connect

VIEWS = ("metrics", "identity", "commitments")
OURS, LMDB, VERSION = "pmm-shm", "py-lmdb begin, get, abort", "PRAGMA data_version"
FASTER_THAN = {"diskcache": 8.0, "memcached": 15.0, "redis": 60.0}


def repeated(bench: Bench) -> Row:
    row = Row(
        1,
        "Repeated exact read, nothing appended",
        "at most 1 × a bare py-lmdb look-up; 8 × faster than diskcache, 15 × than memcached, 60 × than Redis; "
        "rollback-journal ledger: at most 1.5 × a bare PRAGMA data_version",
    )
    with open_stores(bench.sites.empty()) as (stores, missing):
        for line in missing:
            row.note(line)
        for events in bench.scale.events:
            bench.say(f"row 1: {events:,} events, WAL")
            with bench.sites.site(events) as site:
                site.start()
                with connect(site.ledger) as cache:
                    _beside_stores(bench, row, cache, events, stores)
                    _beside_own_caches(bench, row, cache, events)
    for events in sorted({min(bench.scale.events), bench.naive_largest}):
        bench.say(f"row 1: {events:,} events, rollback journal")
        with bench.sites.site(events, fresh=True, journal="delete") as site, connect(site.ledger) as cache:
            _beside_data_version(bench, row, cache, events)
    return row


def _beside_stores(bench: Bench, row: Row, cache: Cache, events: int, stores: list[Store]) -> None:
    for view in VIEWS:
        ours: Callable[[], Any] = getattr(cache, view)
        answer = ours()
        sides: dict[str, Callable[[], Any]] = {OURS: ours}
        for store in stores:
            put_answer(store, view, answer)
            sides[store.name] = partial(get_answer, store, view)
        with bare.lmdb_lookup(bench.sites.empty(), pack(as_plain(answer))) as look_up:
            sides[LMDB] = look_up
            timings = _hits(bench, cache, sides)
        row.time(f"{view}, {events:,} events", timings)
        row.point(f"{view}: {OURS}", events, timings[OURS])
        if view == "metrics":
            for name in sides:
                row.point(name, events, timings[name])
        for name, goal in ((LMDB, None), *FASTER_THAN.items()):
            if name in timings:
                what = f"{view}, {events:,} events: ours / bare look-up" if goal is None else ""
                if goal is None:
                    measured = ratio(timings[OURS], timings[LMDB])
                    row.figure(what, measured.p50, goal=at_most(1.0), p99=measured.p99)
                else:
                    measured = ratio(timings[name], timings[OURS])
                    what = f"{view}, {events:,} events: {name} / ours"
                    row.figure(what, measured.p50, goal=at_least(goal), p99=measured.p99)


def _hits(bench: Bench, cache: Cache, sides: dict[str, Callable[[], Any]]) -> dict[str, Timing]:
    """Timed, and seen to have been repeated reads."""
    before = _count(cache)
    timings = interleaved(sides, bench.scale.rounds, bench.scale.calls)
    hits, misses = (now - then for now, then in zip(_count(cache), before, strict=True))
    assert hits == 2 * bench.scale.rounds * bench.scale.calls - misses, "not every read was counted"
    assert misses <= hits // 100 + 1, "the reads were not repeated reads"
    return timings


def _count(cache: Cache) -> tuple[int, int]:
    numbers = cache.stats()
    groups = [numbers[name] for name in ("projection", "metrics")]
    return sum(one["cache_hits"] for one in groups), sum(one["cache_misses"] for one in groups)


def _beside_own_caches(bench: Bench, row: Row, cache: Cache, events: int) -> None:
    """Metrics, of an agent that caches in its process, and of one that does not."""
    ledger = Path(cache.path)
    peer = InProcess(ledger)
    try:
        with replaying(ledger) as oracle, contextlib.closing(Naive(ledger)) as naive:
            sides: dict[str, Callable[[], Any]] = {OURS: cache.metrics, "in-process cache": peer.metrics}
            if events <= bench.scale.naive_events_max:
                sides["naive replay"] = naive.metrics
                sides["pmm-shm without caches"] = oracle.metrics
            for name, read in sides.items():
                require(f"{name}, metrics", read(), cache.metrics())
            calls = {name: bench.scale.calls if name == OURS else 1 for name in sides}
            timings = interleaved(sides, bench.scale.slow_rounds, calls)
    finally:
        peer.close()
    row.time(f"metrics, {events:,} events, beside an agent's own", timings)
    for name in sides:
        if name != OURS:
            row.point(name, events, timings[name])
            measured = ratio(timings[name], timings[OURS])
            row.figure(f"metrics, {events:,} events: {name} / ours", measured.p50, p99=measured.p99)


def _beside_data_version(bench: Bench, row: Row, cache: Cache, events: int) -> None:
    with bare.connection(Path(cache.path)) as handle, replaying(Path(cache.path)) as oracle:
        require("rollback journal, metrics", cache.metrics(), oracle.metrics())
        sides = {OURS: cache.metrics, VERSION: bare.data_version(handle)}
        timings = _hits(bench, cache, sides)
    row.time(f"metrics, {events:,} events, rollback journal", timings)
    measured = ratio(timings[OURS], timings[VERSION])
    what = f"metrics, {events:,} events, rollback journal: ours / data_version"
    row.figure(what, measured.p50, goal=at_most(1.5), p99=measured.p99)
