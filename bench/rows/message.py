"""Row 11: the state that a worker needs for one user message, against a full replay for each answer."""

from __future__ import annotations

from pmm_shm_client import connect
from pmm_shm_client.benchmark import assemble, require_equal, turn_events
from pmm_shm_client.cache import Cache
from pmm_shm_client.timing import Stopwatch, ratio

from bench.context import Bench
from bench.peers import require
from bench.peers.naive import naive
from bench.report import Row, at_least

OURS, NAIVE = "pmm-shm", "full replay for each answer"


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
            with connect(site.ledger) as ours, naive(site.ledger) as replaying:
                require_equal(ours, replaying)
                require("context", str(ours.context(reflections=3)), str(replaying.context(reflections=3)))
                _measure(bench, row, ours, replaying if events <= bench.scale.naive_events_max else None, events)
                require_equal(ours, replaying)
    return row


def _measure(bench: Bench, row: Row, ours: Cache, replaying: Cache | None, events: int) -> None:
    watch, parts = Stopwatch(), Stopwatch()
    rounds = bench.scale.slow_rounds
    for number in range(rounds):
        for turn in range(max(1, bench.scale.turns // rounds)):
            watch.time(OURS, assemble, ours, number * 100 + turn)
        if replaying is not None:
            watch.time(NAIVE, assemble, replaying, number)
        watch.end_round()
    for turn in range(bench.scale.turns):
        _in_parts(ours, turn, parts)
        parts.end_round()
    timings = watch.timings()
    row.time(f"{events:,} events", timings)
    row.time(f"{events:,} events, ours by part", parts.timings())
    for name, one in timings.items():
        row.point(name, events, one)
    if replaying is not None:
        measured = ratio(timings[NAIVE], timings[OURS])
        goal = at_least(1_000.0) if events == 100_000 else None
        row.figure(f"{events:,} events: full replay / ours", measured.p50, goal=goal, p99=measured.p99)


def _in_parts(cache: Cache, number: int, watch: Stopwatch) -> None:
    watch.time("context, once", cache.context, None, 3)
    for event in turn_events(number):
        watch.time("append, 8 of them, each", cache.append, *event)
        watch.time("self_model, 8 of them, each", cache.self_model)
        watch.time("metrics, 8 of them, each", cache.metrics)
