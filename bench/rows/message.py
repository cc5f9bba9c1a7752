"""Row 11: the state that a worker needs for one user message, against a full replay for each answer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from bench.context import Bench
from bench.oracle import replaying
from bench.peers import require
from bench.peers.naive import Naive
from bench.report import Row, at_least
from pmm_shm_cli.benchmark import assemble, require_equal, turn_events
from pmm_shm_cli.timing import RoundTimer, ratio
from pmm_shm_client import connect
from pmm_shm_client.cache import Cache

OURS, NAIVE, REPLAY = "pmm-shm", "naive replay", "pmm-shm without caches"


def message(bench: Bench) -> Row:
    row = Row(
        11,
        "State assembly for one user message: context with 3 reflections, 8 appends, self-model and metrics after each",
        "at 100,000 events at least 1,000 × faster than the naive replay",
    )
    for events in bench.scale.events:
        bench.say(f"row 11: {events:,} events")
        with bench.sites.site(events) as site:
            site.start()
            with (
                connect(site.ledger) as ours,
                replaying(site.ledger) as oracle,
                contextlib.closing(Naive(site.ledger)) as naive,
            ):
                require_equal(ours, oracle)
                others: dict[str, Cache | Naive] = {}
                if events <= bench.scale.naive_events_max:
                    others = {NAIVE: naive, REPLAY: oracle}
                for name, other in others.items():
                    for read in ("metrics", "self_model"):
                        require(f"{name}, {read}", getattr(other, read)(), getattr(ours, read)())
                    require(f"{name}, context", str(other.context(reflections=3)), str(ours.context(reflections=3)))
                _measure(bench, row, ours, others, events)
                require_equal(ours, oracle)
    return row


def _measure(bench: Bench, row: Row, ours: Cache, others: Mapping[str, Cache | Naive], events: int) -> None:
    watch, parts = RoundTimer(), RoundTimer()
    rounds = bench.scale.slow_rounds
    for number in range(rounds):
        for turn in range(max(1, bench.scale.turns // rounds)):
            watch.time(OURS, assemble, ours, number * 100 + turn)
        for name, other in others.items():
            watch.time(name, assemble, other, number)
        watch.end_round()
    for turn in range(bench.scale.turns):
        _in_parts(ours, turn, parts)
        parts.end_round()
    timings = watch.timings()
    row.time(f"{events:,} events", timings)
    row.time(f"{events:,} events, ours by part", parts.timings())
    for name, one in timings.items():
        row.point(name, events, one)
    for name in others:
        measured = ratio(timings[name], timings[OURS])
        goal = at_least(1_000.0) if name == NAIVE and events == 100_000 else None
        row.figure(f"{events:,} events: {name} / ours", measured.p50, goal=goal, p99=measured.p99)


def _in_parts(cache: Cache, number: int, watch: RoundTimer) -> None:
    watch.time("context, once", cache.context, None, 3)
    for event in turn_events(number):
        watch.time("append, 8 of them, each", cache.append, *event)
        watch.time("self_model, 8 of them, each", cache.self_model)
        watch.time("metrics, 8 of them, each", cache.metrics)
