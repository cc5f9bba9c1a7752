"""Row 14: sixteen processes that append and read ten times a second each, and as many that do the bare work."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence

from bench.children import Child
from bench.context import Bench
from bench.oracle import replaying
from bench.report import Row, at_most
from pmm_shm_cli.benchmark import require_equal
from pmm_shm_cli.timing import quantile, timing
from pmm_shm_client import connect

OURS, BARE = "pmm-shm", "bare SELECT ... WHERE id > ? and bare append"
_EVENTS = 100_000
_PROCESSES = 16
_PERIOD_S = 0.1
_PARTS = ("append", "read behind it")
_SHARES = (0.5, 0.99, 0.999)
Samples = dict[str, list[float]]


def crowd(bench: Bench) -> Row:
    row = Row(
        14,
        f"{_PROCESSES} processes, ten turns a second each: append, metrics, self-model; in turns with bare twins",
        "read behind the append: p99 at most 2 ×, p99.9 at most 3 × one SELECT ... WHERE id > ?; append: p99 at most "
        "1.25 × the bare one",
    )
    rounds: dict[str, list[Samples]] = {OURS: [], BARE: []}
    with bench.sites.site(min(bench.largest, _EVENTS), fresh=True) as site:
        site.start()
        with contextlib.ExitStack() as stack:
            groups = {
                OURS: [stack.enter_context(Child("turner", str(site.ledger))) for _ in range(_PROCESSES)],
                BARE: [stack.enter_context(Child("bare_turner", str(site.ledger))) for _ in range(_PROCESSES)],
            }
            for group in groups.values():
                # Warm, and compared with a replay below.
                _samples(group, 4 * _PERIOD_S)
            for number in range(bench.scale.crowd_rounds):
                for name in (OURS, BARE) if number % 2 else (BARE, OURS):
                    bench.say(f"row 14: round {number + 1}, {name}")
                    site.wait_published()
                    rounds[name].append(_samples(groups[name], bench.scale.crowd_s))
        with connect(site.ledger) as cache, replaying(site.ledger) as oracle:
            require_equal(cache, oracle)
    _figures(row, rounds)
    return row


def _samples(group: Sequence[Child], seconds: float) -> Samples:
    """Of all processes of a group, which begin one after the other within a period."""
    for number, child in enumerate(group):
        child.tell(f"{seconds} {number * _PERIOD_S / len(group)}")
    answers = [child.listen() for child in group]
    return {part: [us for answer in answers for us in answer[place]] for place, part in enumerate(_PARTS)}


def _figures(row: Row, rounds: Mapping[str, Sequence[Samples]]) -> None:
    for part in _PARTS:
        of_all = {name: [us for one in several for us in one[part]] for name, several in rounds.items()}
        medians = {name: [statistics.median(one[part]) for one in several] for name, several in rounds.items()}
        row.time(part, {name: timing(name, medians[name], samples) for name, samples in of_all.items()})
        goals = {0.99: at_most(1.25 if part == "append" else 2.0), 0.999: at_most(3.0) if part != "append" else None}
        for share, goal in {0.5: None, **goals}.items():
            # The median of the rounds: a single pause of the machine hits one side.
            ratios = [
                quantile(ours[part], share) / quantile(bare[part], share)
                for ours, bare in zip(rounds[OURS], rounds[BARE], strict=True)
            ]
            row.figure(f"{part}: p{100 * share:g}, ours / bare", statistics.median(ratios), goal=goal)
    row.tables["by round, µs"] = [
        {
            "round": f"{number + 1}, {name}",
            **{f"{part}, p{100 * share:g}": quantile(one[part], share) for part in _PARTS for share in _SHARES},
        }
        for number in range(len(rounds[OURS]))
        for name, one in ((OURS, rounds[OURS][number]), (BARE, rounds[BARE][number]))
    ]
