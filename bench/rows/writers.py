"""Row 10: four writers flat out, with a daemon and without one."""

from __future__ import annotations

import contextlib
import time
from statistics import median

from bench.children import Child
from bench.context import Bench
from bench.daemons import until
from bench.oracle import replaying
from bench.report import Row, at_least, at_most
from bench.sites import Site, published_as_of
from pmm_shm_cli.benchmark import require_equal
from pmm_shm_client import connect

_EVENTS = 10_000
_WRITERS = 4
_LAG_DEADLINE_S = 60.0


def writers(bench: Bench) -> Row:
    row = Row(
        10,
        f"{_WRITERS} writers flat out",
        "the daemon's lag returns to 0 within 1 s after they stop; throughput with the daemon at least 0.85 of that "
        "without, in interleaved pairs",
    )
    events = min(bench.largest, _EVENTS)
    table = []
    for number in range(bench.scale.pairs):
        rates, lag_s = {}, 0.0
        for is_served in (True, False) if number % 2 else (False, True):
            bench.say(f"row 10: pair {number + 1}, {'with' if is_served else 'without'} a daemon")
            with bench.sites.site(events, fresh=True) as site:
                if is_served:
                    site.start()
                rates[is_served] = _appends_per_second(site, bench.scale.writers_s)
                if is_served:
                    lag_s = _lag_s(site)
                    with connect(site.ledger) as cache, replaying(site.ledger) as oracle:
                        require_equal(cache, oracle)
        table.append(
            {
                "pair": number + 1,
                "appends per second, without": rates[False],
                "with": rates[True],
                "ratio": rates[True] / rates[False],
                "lag back to 0, s": lag_s,
            }
        )
    row.tables["pairs"] = table
    row.figure("throughput with / without the daemon", median([one["ratio"] for one in table]), goal=at_least(0.85))
    row.figure("lag back to 0 after they stop, worst", max(one["lag back to 0, s"] for one in table), "s", at_most(1.0))
    return row


def _appends_per_second(site: Site, seconds: float) -> float:
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(Child("writer", str(site.ledger), f"writer {number}")) for number in range(_WRITERS)
        ]
        for child in children:
            child.tell(str(seconds))
        committed = [one for child in children for one in child.listen()]
    # Between the first commit of all and the last: how long a process takes to hear of it is none of the ledger's.
    times: list[int] = [at_ns for _, at_ns in committed]
    return (len(committed) - 1) / max(1e-9, (max(times) - min(times)) / 1e9)


def _lag_s(site: Site) -> float:
    """From the moment that the writers have stopped; what they take to report is part of it, to their favour."""
    head, began = site.head(), time.monotonic()
    until(lambda: published_as_of(site) >= head, "the lag returns to 0", _LAG_DEADLINE_S)
    return time.monotonic() - began
