"""Rows 2 and 3: an exact read after another process has appended one event, which the daemon has applied or not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import bare, children
from bench.children import Child
from bench.context import Bench
from bench.daemons import Daemon
from bench.oracle import replaying
from bench.peers import require
from bench.report import Row, at_most
from bench.sites import Site
from pmm_shm.codec import unpack
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.state import cell_key
from pmm_shm.instance.paths import Instance
from pmm_shm.store.environment import close, open_reader
from pmm_shm.store.layout import HEADER_KEY, Header, state_prefix
from pmm_shm_cli.benchmark import TURN_EVENTS
from pmm_shm_cli.timing import RoundTimer, ratio
from pmm_shm_client import Cache, connect

READS = ("metrics", "identity", "commitments")
BARE = "one SELECT, one LMDB get and decode"
APPLIED, NOT_YET, DEAD = "applied", "not applied yet", "daemon dead"
_ROUND_STEPS = 2 * TURN_EVENTS
"""Each event of a turn once with ours first, and once with the bare calls first."""
_SELECT = "SELECT id, ts, kind, content, meta FROM events WHERE id > ?"


def published(bench: Bench) -> Row:
    row = Row(
        2,
        "Exact read after another process appended one event, applied by the daemon",
        "at most 2 × one SELECT ... WHERE id > ? and one LMDB get and decode",
    )
    for events in bench.scale.events:
        with bench.sites.site(events) as site:
            site.start()
            for read in READS:
                bench.say(f"row 2: {events:,} events, {read}")
                _published(bench, row, site, read, events)
    return row


def _published(bench: Bench, row: Row, site: Site, read: str, events: int) -> None:
    with _measuring(site, read) as measuring:
        for number in range(bench.scale.steps):
            measuring.append()
            measuring.wait_published()
            turn, place = divmod(number, TURN_EVENTS)
            measuring.both(APPLIED, is_ours_first=(turn + place) % 2 == 0)
            if (number + 1) % _ROUND_STEPS == 0 or number + 1 == bench.scale.steps:
                measuring.watch.end_round()
    timings = measuring.watch.timings()
    measured = ratio(timings[APPLIED], timings[BARE])
    row.time(f"{read}, {events:,} events", timings)
    row.point(read, events, timings[APPLIED])
    row.figure(f"{read}, {events:,} events: ours / bare", measured.p50, goal=at_most(2.0), p99=measured.p99)
    if read == READS[0]:
        row.point(BARE, events, timings[BARE])


def not_applied_yet(bench: Bench) -> Row:
    row = Row(
        3,
        "The same, not applied by the daemon yet, or the daemon is dead",
        "at most 3 × row 2, which makes no statement on the ledger",
    )
    for events in bench.scale.events:
        with bench.sites.site(events) as site:
            for read in READS:
                bench.say(f"row 3: {events:,} events, {read}")
                _stopped_in_turns(bench, row, site, read, events)
            bench.say(f"row 3: {events:,} events, daemon killed")
            _dead_in_turns(bench, row, site, READS[0], events)
    return row


def _stopped_in_turns(bench: Bench, row: Row, site: Site, read: str, events: int) -> None:
    """One append that is applied, one that is not, and so on; both reads find the daemon stopped, and the caches cold
    after its stop and the other process's answer.
    """
    daemon = site.start()
    with _measuring(site, read) as measuring:
        for _ in range(bench.scale.steps):
            measuring.append()
            measuring.wait_published()
            with _stopped(daemon):
                measuring.append_nothing()
                measuring.ours(APPLIED)
            with _stopped(daemon):
                measuring.append()
                measuring.ours(NOT_YET)
            measuring.watch.end_round()
    timings = measuring.watch.timings()
    measured = ratio(timings[NOT_YET], timings[APPLIED])
    row.time(f"{read}, {events:,} events", timings)
    row.point(f"{read}, {NOT_YET}", events, timings[NOT_YET])
    row.figure(f"{read}, {events:,} events: {NOT_YET} / {APPLIED}", measured.p50, goal=at_most(3.0), p99=measured.p99)


@contextlib.contextmanager
def _stopped(daemon: Daemon) -> Iterator[None]:
    # Past its busy steps, so that it is not within a transaction.
    time.sleep(0.03)
    daemon.freeze()
    try:
        yield
    finally:
        daemon.thaw()


def _dead_in_turns(bench: Bench, row: Row, site: Site, read: str, events: int) -> None:
    """Rounds of many appends each: a daemon takes its time to start."""
    watch = RoundTimer()
    for _ in range(bench.scale.slow_rounds):
        for state in (APPLIED, DEAD):
            site.start()
            with _measuring(site, read, watch) as measuring:
                if state == DEAD:
                    site.kill()
                for _ in range(max(1, bench.scale.steps // bench.scale.slow_rounds)):
                    measuring.append()
                    if state == APPLIED:
                        measuring.wait_published()
                    measuring.ours(state)
        watch.end_round()
    timings = watch.timings()
    measured = ratio(timings[DEAD], timings[APPLIED])
    row.time(f"{read}, {events:,} events, daemon killed", timings)
    row.figure(f"{read}, {events:,} events: {DEAD} / {APPLIED}", measured.p50, goal=at_most(3.0), p99=measured.p99)


class _Measuring:
    """One cache that reads, another process that appends, and the bare calls."""

    def __init__(
        self,
        cache: Cache,
        read: str,
        appender: Child,
        published: Cache,
        bare_read: Callable[[], Any],
        watch: RoundTimer,
    ) -> None:
        self.watch = watch
        self._cache = cache
        self._name = read
        self._read: Callable[[], Any] = getattr(cache, read)
        self._appender = appender
        self._published = published
        self._bare = bare_read
        self._newest = 0

    def append(self) -> None:
        self._newest = self._appender.ask()

    def append_nothing(self) -> None:
        """An append as this process sees it: another one answers."""
        self._appender.ask(children.NOTHING)

    def wait_published(self) -> None:
        # Another cache than the measured one, which must not have seen anything yet.
        while self._published.stage().as_of < self._newest:
            time.sleep(0.0005)

    def ours(self, side: str) -> None:
        value = self.watch.time(side, self._read)
        assert value.as_of == self._newest, f"{self._name} is at {value.as_of}, not at {self._newest}"

    def both(self, side: str, *, is_ours_first: bool) -> None:
        """Ours and the bare calls; the second finds warm what the first has just used."""
        if is_ours_first:
            self.ours(side)
        rows, _ = self.watch.time(BARE, self._bare)
        assert [one[0] for one in rows] == [self._newest]
        if not is_ours_first:
            self.ours(side)


@contextlib.contextmanager
def _measuring(site: Site, read: str, watch: RoundTimer | None = None) -> Iterator[_Measuring]:
    with (
        connect(site.ledger) as cache,
        connect(site.ledger, consistency="snapshot") as snapshot,
        Child("appender", str(site.ledger)) as appender,
        _bare_read(site.ledger) as bare_read,
        replaying(site.ledger) as oracle,
    ):
        # The child has appended nothing yet; what it appends now warms every side.
        appender.ask()
        require(f"{read}, at first", getattr(cache, read)(), getattr(oracle, read)())
        bare_read()
        yield _Measuring(cache, read, appender, snapshot, bare_read, watch or RoundTimer())
        require(f"{read}, at last", getattr(cache, read)(), getattr(oracle, read)())


@contextlib.contextmanager
def _bare_read(ledger: Path) -> Iterator[Callable[[], tuple[list[Any], Any]]]:
    """The new rows by sqlite3, and the published scores by py-lmdb and msgpack."""
    environment = open_reader(Instance.of(ledger).directory)
    assert environment is not None
    with environment.read() as records:
        header = Header.unpack(records.get(HEADER_KEY) or b"")
    generation = header.generation_of(MetricsFold())
    assert generation is not None
    key = state_prefix(generation) + cell_key("scores")
    begin = environment.env.begin
    with bare.connection(ledger) as handle:
        last_id = 0
        (last_id,) = handle.execute("SELECT max(id) FROM events").fetchone()

        def read() -> tuple[list[Any], Any]:
            nonlocal last_id
            rows = handle.execute(_SELECT, (last_id,)).fetchall()
            transaction = begin()
            scores = unpack(transaction.get(key) or b"")
            transaction.abort()
            if rows:
                last_id = rows[-1][0]
            return rows, scores

        try:
            yield read
        finally:
            close(environment)
