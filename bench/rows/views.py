"""Row 13: a frame and a typed self-model, which copy nothing, however much is open."""

from __future__ import annotations

from bench.context import Bench
from bench.oracle import replaying
from bench.peers import require
from bench.report import Row, at_most
from bench.sites import Site
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_cli.benchmark import require_equal
from pmm_shm_cli.timing import RoundTimer, Timing, interleaved
from pmm_shm_client import Cache, connect

UNCHANGED, AFTER = "nothing new", "behind one more commitment"


def views(bench: Bench) -> Row:
    row = Row(
        13,
        "frame() and model() with nothing new, and model() behind one more commitment",
        "nothing new: at most 1 µs each; one more commitment, 10,000 open: at most 30 µs",
    )
    for count in bench.scale.open_commitments:
        bench.say(f"row 13: {count:,} open commitments")
        path = bench.sites.empty() / "open.db"
        with EventLog(path) as log:
            log.append_many([("commitment_open", "", {"cid": f"open-{n}", "text": f"task {n}"}) for n in range(count)])
        site = Site(path, count)
        try:
            site.start()
            _measure(bench, row, site, count)
        finally:
            site.kill()
    return row


def _measure(bench: Bench, row: Row, site: Site, count: int) -> None:
    with connect(site.ledger) as cache, replaying(site.ledger) as oracle:
        require_equal(cache, oracle)
        require("model", cache.model(), oracle.model())
        repeated = interleaved({"frame": cache.frame, "model": cache.model}, bench.scale.rounds, bench.scale.calls)
        behind = _behind_appends(bench, cache)
        require("model, at last", cache.model(), oracle.model())
        require_equal(cache, oracle)
    what = f"{count:,} open"
    row.time(f"{UNCHANGED}, {what}", repeated)
    for name, one in repeated.items():
        row.figure(f"{name}, {UNCHANGED}, {what}", one.p50_us, "µs", at_most(1.0), one.p99_us)
    row.time(f"{AFTER}, {what}", behind)
    most = max(bench.scale.open_commitments)
    goal = at_most(30.0) if count == most >= 10_000 else None
    row.figure(f"model, {AFTER}, {what}", behind["model"].p50_us, "µs", goal, behind["model"].p99_us)


def _behind_appends(bench: Bench, cache: Cache) -> dict[str, Timing]:
    watch = RoundTimer()
    for number in range(bench.scale.steps):
        event_id = cache.append("commitment_open", "", {"cid": f"new-{number}", "text": "one more"})
        model = watch.time("model", cache.model)
        assert model.as_of == event_id
        watch.end_round()
    return watch.timings()
