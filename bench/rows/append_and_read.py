"""Row 4: append one event, and read self-model and metrics back; against the size of the log, and that of the state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.context import Bench
from bench.oracle import replaying
from bench.peers import require
from bench.peers.in_process import InProcess
from bench.peers.naive import Naive
from bench.report import Row, at_least, at_most
from bench.sites import Site
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_cli.benchmark import TURN_EVENTS, require_equal, turn_event, turn_events
from pmm_shm_cli.timing import RoundTimer, Timing, ratio
from pmm_shm_client import Cache, connect

OURS, NAIVE, REPLAY, IN_PROCESS = "pmm-shm", "naive replay", "pmm-shm without caches", "in-process cache"
_PER_ROUND = 50
_ENTRY = {"source": "user", "text": "review the garden plan before lunch"}


def append_and_read(bench: Bench) -> Row:
    row = Row(
        4,
        "Append one event, read self-model and metrics back, one worker",
        "at 1,000,000 events at most 1.5 × the cost at 1,000; at 100,000 at least 1,000 × faster than the naive replay",
    )
    _against_log_size(bench, row)
    _against_replay(bench, row)
    _against_open_commitments(bench, row)
    return row


def append_and_read_back(cache: Cache | Naive, number: int) -> None:
    """Append the event of this number, and read what must include it."""
    event_id = cache.append(*turn_event(number))
    cache.self_model()
    assert cache.metrics().as_of == event_id


def _against_log_size(bench: Bench, row: Row) -> None:
    sizes = bench.scale.events
    for is_served in (True, False):
        how = "beside a daemon" if is_served else "without a daemon, over what it left"
        bench.say(f"row 4: {how}")
        with contextlib.ExitStack() as stack:
            caches = {}
            for events in sizes:
                site = stack.enter_context(bench.sites.site(events))
                site.start()
                if not is_served:
                    site.stop()
                caches[events] = stack.enter_context(connect(site.ledger))
                with replaying(site.ledger) as oracle:
                    require_equal(caches[events], oracle)
            timings = _in_turns(bench, {f"{events:,} events": cache for events, cache in caches.items()})
            for cache in caches.values():
                with replaying(cache.path) as oracle:
                    require_equal(cache, oracle)
            for events in sizes:
                row.point(f"{OURS}, {how}", events, timings[f"{events:,} events"])
        row.time(f"append and read, {how}", timings)
        smallest, largest = min(sizes), max(sizes)
        if largest > smallest:
            measured = ratio(timings[f"{largest:,} events"], timings[f"{smallest:,} events"])
            goal = at_most(1.5) if is_served else None
            row.figure(f"{how}: {largest:,} / {smallest:,} events", measured.p50, goal=goal, p99=measured.p99)


def _in_turns(bench: Bench, caches: dict[str, Cache]) -> dict[str, Timing]:
    watch, number = RoundTimer(), 0
    for cache in caches.values():
        for warm in range(8):
            append_and_read_back(cache, warm)
    for _ in range(max(1, bench.scale.appends // _PER_ROUND)):
        for name, cache in caches.items():
            for place in range(min(_PER_ROUND, bench.scale.appends)):
                watch.time(name, append_and_read_back, cache, number + place)
        number += _PER_ROUND
        watch.end_round()
    return watch.timings()


def _against_replay(bench: Bench, row: Row) -> None:
    for events in bench.scale.events:
        if events > bench.scale.naive_events_max:
            continue
        bench.say(f"row 4: {events:,} events, beside a full replay")
        with bench.sites.site(events) as site, _peers(site) as (ours, naive, oracle, in_process):
            for name, other in ((NAIVE, naive), (REPLAY, oracle)):
                require(f"self-model, {name}", other.self_model(), ours.self_model())
                require(f"metrics, {name}", other.metrics(), ours.metrics())
            watch = RoundTimer()
            for number in range(bench.scale.slow_rounds):
                for place in range(min(_PER_ROUND, bench.scale.appends)):
                    watch.time(OURS, append_and_read_back, ours, number * TURN_EVENTS + place)
                watch.time(NAIVE, append_and_read_back, naive, number)
                watch.time(REPLAY, append_and_read_back, oracle, number)
                watch.time(IN_PROCESS, _append_and_read_in_process, oracle, in_process, number)
                require("self-model, in-process cache", in_process.self_model(), ours.self_model())
                require("metrics, in-process cache", in_process.metrics(), ours.metrics())
                watch.end_round()
            timings = watch.timings()
        row.time(f"append and read, {events:,} events, beside an agent's own", timings)
        for name in (NAIVE, REPLAY, IN_PROCESS):
            row.point(name, events, timings[name])
            measured = ratio(timings[name], timings[OURS])
            goal = at_least(1_000.0) if name == NAIVE and events == 100_000 else None
            row.figure(f"{events:,} events: {name} / ours", measured.p50, goal=goal, p99=measured.p99)


def _append_and_read_in_process(appending: Cache, peer: InProcess, number: int) -> None:
    event_id = appending.append(*turn_events(number)[0])
    peer.self_model()
    assert peer.metrics().as_of == event_id


@contextlib.contextmanager
def _peers(site: Site) -> Iterator[tuple[Cache, Naive, Cache, InProcess]]:
    site.start()
    with (
        connect(site.ledger) as ours,
        contextlib.closing(Naive(site.ledger)) as naive,
        replaying(site.ledger) as oracle,
    ):
        in_process = InProcess(site.ledger)
        try:
            for read in ("self_model", "metrics"):
                getattr(in_process, read)()
            yield ours, naive, oracle, in_process
        finally:
            in_process.close()


def _against_open_commitments(bench: Bench, row: Row) -> None:
    """Other ledgers: short, and with as many commitments open."""
    sizes = bench.scale.open_commitments
    with contextlib.ExitStack() as stack:
        caches: dict[int, Cache] = {}
        for count in sizes:
            bench.say(f"row 4: {count:,} open commitments")
            path = bench.sites.empty() / "open.db"
            with EventLog(path) as log:
                log.append_many([("commitment_open", "", {"cid": f"open-{n}", **_ENTRY}) for n in range(count)])
            site = Site(path, count)
            stack.callback(site.kill)
            site.start()
            cache = caches[count] = stack.enter_context(connect(path))
            with replaying(path) as oracle:
                require_equal(cache, oracle)
            assert len(cache.commitments().open) == count
        dicts = _in_turns(bench, {f"{count}": cache for count, cache in caches.items()})
        views = _views_in_turns(bench, caches)
    row.tables["cost against open commitments, p50 and p99 in µs"] = [
        {
            "open commitments": count,
            "append, self_model() and metrics()": dicts[f"{count}"].p50_us,
            "p99": dicts[f"{count}"].p99_us,
            "append, commitments() and metrics()": views[f"{count}"].p50_us,
            "p99 ": views[f"{count}"].p99_us,
        }
        for count in sizes
    ]


def _views_in_turns(bench: Bench, caches: dict[int, Cache]) -> dict[str, Timing]:
    """The same with the view instead of the fresh dict, which costs what it is large."""
    watch = RoundTimer()

    def step(cache: Cache, number: int) -> None:
        event_id = cache.append(*turn_events(number // 8)[number % 8])
        assert cache.commitments().as_of == cache.metrics().as_of == event_id

    for number in range(max(8, bench.scale.appends // 10)):
        for count, cache in caches.items():
            watch.time(f"{count}", step, cache, number)
        watch.end_round()
    return watch.timings()
