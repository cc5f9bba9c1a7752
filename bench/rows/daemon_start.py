"""Row 6: the start of the daemon with nothing published, against fetching all rows; and where the time goes."""

from __future__ import annotations

import cProfile
import gc
import pstats
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bench.context import Bench
from bench.oracle import replaying
from bench.report import Row, at_most
from pmm_cached.follower import all_folds
from pmm_cached.main import GC_OBJECTS
from pmm_shm import limits
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import Engine, States, apply_events
from pmm_shm.folds.history import PARTS
from pmm_shm.folds.state import State
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START, Tail, TailReader
from pmm_shm.store.writer import StoreWriter
from pmm_shm_cli.benchmark import require_equal
from pmm_shm_cli.timing import RoundTimer, ratio
from pmm_shm_client import connect

OURS, BARE = "daemon, from its start to all published", "fetch id, kind, content, meta of all rows"
_SELECT = "SELECT id, kind, content, meta FROM events"
_AHEAD, _DECODE = "fetch and anchor, in a thread beside the others", "decode"
_PROFILED_EVENTS_MAX = 100_000
_FUNCTIONS = 12
_ROWS = 2_048


def daemon_start(bench: Bench) -> Row:
    row = Row(
        6,
        "Daemon start, empty cache",
        "at 1,000,000 events at most 3 × fetching id, kind, content, meta of all rows with sqlite3 in Python",
    )
    for events in bench.scale.events:
        watch = RoundTimer()
        for number in range(bench.scale.starts):
            bench.say(f"row 6: {events:,} events, start {number + 1}")
            with bench.sites.site(events, fresh=True) as site:
                count = watch.time(BARE, _fetch, site.ledger)
                assert count == events
                watch.time(OURS, site.start)
                with connect(site.ledger) as cache, replaying(site.ledger) as oracle:
                    assert cache.metrics(consistency="snapshot").as_of == events
                    require_equal(cache, oracle)
            watch.end_round()
        timings = watch.timings()
        row.time(f"{events:,} events", timings)
        row.point(OURS, events, timings[OURS])
        row.point(BARE, events, timings[BARE])
        measured = ratio(timings[OURS], timings[BARE])
        goal = at_most(3.0) if events >= 1_000_000 else None
        row.figure(f"{events:,} events: start / fetch", measured.p50, goal=goal, p99=measured.p99)
    bench.say("row 6: phases")
    _phases(bench, row)
    _profile(bench, row)
    return row


def _fetch(ledger: Path) -> int:
    count = 0
    with closing(sqlite3.connect(ledger)) as connection:
        cursor = connection.execute(_SELECT)
        while rows := cursor.fetchmany(_ROWS):
            count += len(rows)
    return count


def _phases(bench: Bench, row: Row) -> None:
    """A rebuild step by step, in this process, with a clock between the steps."""
    events = bench.largest
    spent: dict[str, float] = defaultdict(float)
    with bench.sites.site(events, fresh=True) as site:
        began = time.perf_counter()
        _fetch(site.ledger)
        bare_s = time.perf_counter() - began
        folds = all_folds()
        writer = StoreWriter(Instance.of(site.ledger), limits.MAP_SIZE_BYTES)
        connection = Connection(site.ledger, "ro")
        try:
            with _collecting_as_the_daemon():
                _fold_in_steps(connection, writer, folds, spent)
        finally:
            connection.close()
            writer.close()
    total = sum(spent.values())
    row.tables[f"phases of a build at {events:,} events (bare fetch: {bare_s:.2f} s)"] = [
        {"phase": name, "seconds": seconds, "share, %": 100 * seconds / total, "× bare fetch": seconds / bare_s}
        for name, seconds in {**spent, "all": total}.items()
    ]


@contextmanager
def _collecting_as_the_daemon() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _tails(reader: TailReader, connection: Connection) -> Iterator[Tail]:
    position = START
    while True:
        with connection.lock:
            tail = reader.read(position)
        yield tail
        if tail.is_complete:
            return
        position = tail.position


class _TimedEngine(Engine):
    """Adds up the seconds of each fold in `spent`."""

    def __init__(self, folds: list[Fold], spent: dict[str, float]) -> None:
        super().__init__(folds)
        self._spent = spent

    def _fold(self, states: States) -> None:
        for name, events in self._queues.items():
            began = time.perf_counter()
            if events:
                apply_events(self.folds[name], events, states[name])
            self._spent[f"fold {name}"] += time.perf_counter() - began


def _fold_in_steps(connection: Connection, writer: StoreWriter, folds: list[Fold], spent: dict[str, float]) -> None:
    # As a rebuild does it, parts of the history are copied when they are written.
    engine = _TimedEngine([fold for fold in folds if type(fold) not in PARTS], spent)
    states = {name: State() for name in engine.folds}
    generations = {fold: writer.begin_generation(fold) for fold in folds}
    clock = time.perf_counter
    spent[_AHEAD] = spent[_DECODE] = 0.0
    began = clock()
    for tail in _tails(TailReader(connection, engine.kinds, newest=engine.newest), connection):
        spent[_AHEAD] += clock() - began
        began, folded = clock(), sum(spent.values())
        _apply(engine, tail, states)
        spent[_DECODE] += clock() - began - (sum(spent.values()) - folded)
        began = clock()
    began = clock()
    parts = {fold.name: states["history"].part(*PARTS[type(fold)]) for fold in folds if type(fold) in PARTS}
    writer.flush_shadow({generation: {**states, **parts}[fold.name] for fold, generation in generations.items()})
    spent["LMDB write"] += clock() - began


def _apply(engine: Engine, tail: Tail, states: States) -> None:
    for first in range(0, len(tail.rows), limits.FOLD_ROWS_MAX):
        engine.apply(tail.rows[first : first + limits.FOLD_ROWS_MAX], states)


def _profile(bench: Bench, row: Row) -> None:
    """By function, under Python's profiler, which makes short functions look longer than they are."""
    events = min(bench.largest, _PROFILED_EVENTS_MAX)
    with bench.sites.site(events, fresh=True) as site:
        folds = all_folds()
        engine = Engine(folds)
        states = {fold.name: State() for fold in folds}
        connection = Connection(site.ledger, "ro")
        profile = cProfile.Profile()
        try:
            profile.enable()
            for tail in _tails(TailReader(connection, engine.kinds, newest=engine.newest), connection):
                _apply(engine, tail, states)
            profile.disable()
        finally:
            connection.close()
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.values())
    largest = sorted(stats.items(), key=lambda item: -item[1][2])[:_FUNCTIONS]
    row.tables[f"profile of the folding at {events:,} events"] = [
        {"function": f"{Path(where[0]).name}: {where[2]}", "calls": entry[1], "own time, %": 100 * entry[2] / total}
        for where, entry in largest
    ]
