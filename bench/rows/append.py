"""Row 5: an append alone, against the same transaction with nothing around it."""

from __future__ import annotations

import contextlib

from bench import bare, daemons
from bench.context import Bench
from bench.peers import require
from bench.report import Row, at_most
from pmm_shm.ledger.connection import DURABILITIES, Durability
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_cli.benchmark import turn_events
from pmm_shm_cli.timing import RoundTimer, ratio

OURS, BARE = "EventLog.append", "BEGIN IMMEDIATE, last hash, SHA-256, INSERT, COMMIT"
_PER_ROUND = 50


def append_alone(bench: Bench) -> Row:
    row = Row(5, "Append alone", "at most 1.25 × the same transaction by bare sqlite3, same schema and indexes")
    for events in bench.scale.events:
        bench.say(f"row 5: {events:,} events")
        # Each side has its own copy: appends to one file would make the other side look again at what it knows.
        with bench.sites.site(events, fresh=True) as mine, bench.sites.site(events, fresh=True) as other:
            watch = RoundTimer()
            with EventLog(mine.ledger, create=False) as log, bare.connection(other.ledger) as handle:
                appender = bare.Appender(handle)
                sides = {OURS: log.append, BARE: appender.append}
                for number in range(max(1, bench.scale.appends // _PER_ROUND)):
                    for name in (OURS, BARE) if number % 2 else (BARE, OURS):
                        append = sides[name]
                        for place in range(min(_PER_ROUND, bench.scale.appends)):
                            event = turn_events(number)[place % 8]
                            watch.time(name, append, *event)
                    watch.end_round()
                _compare(log, str(mine.ledger), str(other.ledger))
        timings = watch.timings()
        row.time(f"{events:,} events", timings)
        row.point(OURS, events, timings[OURS])
        row.point(BARE, events, timings[BARE])
        measured = ratio(timings[OURS], timings[BARE])
        row.figure(f"{events:,} events: ours / bare", measured.p50, goal=at_most(1.25), p99=measured.p99)
    _durabilities(bench, row)
    return row


def _durabilities(bench: Bench, row: Row) -> None:
    """The cost of surviving a power cut, on the disk of the benchmark's directory."""
    bench.say("row 5: durability")
    sides: list[tuple[str, Durability]] = [(journal, one) for journal in ("wal", "delete") for one in DURABILITIES]
    watch = RoundTimer()
    with contextlib.ExitStack() as stack:
        logs = {}
        for journal, durability in sides:
            path = bench.sites.empty() / "durable.db"
            EventLog(path).close()
            daemons.execute(path, f"PRAGMA journal_mode = {journal}")
            logs[journal, durability] = stack.enter_context(EventLog(path, durability=durability))
        for number in range(max(2, bench.scale.appends // _PER_ROUND)):
            for side in sides if number % 2 else reversed(sides):
                for place in range(min(_PER_ROUND, bench.scale.appends)):
                    watch.time(" ".join(side), logs[side].append, *turn_events(number)[place % 8])
            watch.end_round()
    timings = watch.timings()
    row.tables["an append by durability, p50 and p99 in µs"] = [
        {
            "journal": journal,
            "durability": durability,
            "p50": timings[f"{journal} {durability}"].p50_us,
            "p99": timings[f"{journal} {durability}"].p99_us,
        }
        for journal, durability in sides
    ]


def _compare(log: EventLog, mine: str, other: str) -> None:
    """Both sides wrote the same events, and a chain that holds."""
    for path in (mine, other):
        with EventLog(path, create=False) as opened:
            report = opened.verify_chain()
        require(f"{path}: the first event that breaks the chain", report.first_bad_id, None)
    events = [daemons.execute(path, "SELECT id, kind, content, meta FROM events ORDER BY id DESC LIMIT 400")
              for path in (mine, other)]  # fmt: skip
    require("what the bare side wrote", events[1], events[0])
