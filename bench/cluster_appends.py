"""Appends to the log in PostgreSQL by one and by eight writers, beside the bare transaction and the peer."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from bench.peers import MissingPeerError
from bench.peers.eventsourcing_postgres import Recorder
from pmm_shm.ledger.new_events import new_event
from pmm_shm.ledger.source.appending import SourceAppender
from pmm_shm.ledger.source.server import Server
from tests.support.postgres import Postgres

CONTENT = "a message of a usual length, as people write them to an agent, in one sentence or two"
BARE = "CREATE TABLE bare (id bigserial PRIMARY KEY, ts text, kind text, content text, meta text, p text, h text)"
_BARE_INSERT = "INSERT INTO bare (ts, kind, content, meta, p, h) VALUES (%s, %s, %s, %s, %s, %s)"
_HASH = "0" * 64
_ROW = ("2026-01-01T00:00:00.000000+00:00", "user", CONTENT, '{"n": 1}', _HASH, _HASH)
# The peer stores an event as one value: its table has no columns for content, meta and time, and no hashes.
STATE = f'{{"content": "{CONTENT}", "meta": {{"n": 1}}, "ts": "{_ROW[0]}"}}'.encode()


class Report:
    """Rows of a table, printed at the end."""

    def __init__(self) -> None:
        self._table = Table("what", "here", "bare", "ratio", "target", Recorder.name)

    def add(
        self, what: str, here: str, bare: str = "", ratio: float | None = None, target: str = "", peer: str = ""
    ) -> None:
        self._table.add_row(what, here, bare, "" if ratio is None else f"{ratio:.2f}", target, peer)

    def show(self) -> None:
        Console(width=170).print(self._table)


def timed(action: Callable[[], Any]) -> float:
    """How long it takes, in seconds."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def in_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median time of each side in seconds; each round has both sides, in changing order."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides) if number % 2 else list(sides)[::-1]
        for name in names:
            times[name].append(timed(sides[name]))
    return {name: statistics.median(found) for name, found in times.items()}


def percentile(values: list[float], share: float) -> float:
    """A percentile, by nearest rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def bench_appends(report: Report, server: Postgres, rounds: int) -> None:
    """One append, single and in batches, against the bare transaction with the same rows, and the peer."""
    for commit in ("on", "off"):
        setting = f"-c synchronous_commit={commit}"
        appender = SourceAppender(Server(server.dsn, "appends", options=setting), 30.0)
        peer = open_peer(server, commit)
        with psycopg.connect(server.dsn, autocommit=True, options=setting) as bare:
            for size in (1, 100):
                batch = [new_event("user", CONTENT, {"n": 1})] * size
                sides: dict[str, Callable[[], Any]] = {
                    "here": partial(appender.append, batch),
                    "bare": partial(_insert, bare, [_ROW] * size),
                }
                if peer is not None:
                    sides["peer"] = partial(peer.append, [STATE] * size)
                for action in sides.values():
                    action()
                found = in_turns(sides, rounds)
                report.add(
                    f"append of {size}, synchronous_commit {commit}",
                    f"{found['here'] * 1e3:.2f} ms, {size / found['here']:,.0f}/s",
                    f"{found['bare'] * 1e3:.2f} ms",
                    found["here"] / found["bare"],
                    "1.5",
                    f"{found['peer'] * 1e3:.2f} ms" if peer is not None else "",
                )
        appender.close()
        if peer is not None:
            peer.close()


def open_peer(server: Postgres, commit: str = "on") -> Recorder | None:
    try:
        return Recorder(server.port, commit)
    except MissingPeerError:
        return None


def _insert(connection: psycopg.Connection, rows: list[Any]) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(_BARE_INSERT, rows)


def bench_writers(report: Report, server: Postgres, seconds: float) -> None:
    """Eight writers at once, each a thread with a connection; the sides one after the other, twice."""
    for commit, size in (("on", 1), ("on", 100), ("off", 1), ("off", 100)):
        rates: dict[str, float] = {}
        for side in ("here", "bare", "peer", "peer", "bare", "here"):
            rate = _rate(partial(_writer, side, server, commit, size), seconds / 6) * size
            rates[side] = rates.get(side, 0.0) + rate / 2
        report.add(
            f"append of {size}, 8 writers, synchronous_commit {commit}",
            f"{rates['here']:,.0f}/s",
            f"{rates['bare']:,.0f}/s",
            rates["bare"] / rates["here"],
            "",
            f"{rates['peer']:,.0f}/s" if rates["peer"] else "",
        )


def _writer(side: str, server: Postgres, commit: str, size: int) -> tuple[Callable[[], Any], Callable[[], None]] | None:
    """What appends once, and what ends it."""
    setting = f"-c synchronous_commit={commit}"
    if side == "here":
        appender = SourceAppender(Server(server.dsn, "appends", options=setting), 60.0)
        return partial(appender.append, [new_event("user", CONTENT, {"n": 1})] * size), appender.close
    if side == "bare":
        connection = psycopg.connect(server.dsn, autocommit=True, options=setting)
        return partial(_insert, connection, [_ROW] * size), connection.close
    peer = open_peer(server, commit)
    return None if peer is None else (partial(peer.append, [STATE] * size), peer.close)


def _rate(make: Callable[[], tuple[Callable[[], Any], Callable[[], None]] | None], seconds: float) -> float:
    """Actions a second of eight threads."""
    writers = [made for _ in range(8) if (made := make()) is not None]
    count = [0] * len(writers)
    for action, _ in writers:
        action()
    until_s = time.perf_counter() + seconds

    def write(number: int, action: Callable[[], Any]) -> None:
        while time.perf_counter() < until_s:
            action()
            count[number] += 1

    threads = [threading.Thread(target=write, args=(number, action)) for number, (action, _) in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, close in writers:
        close()
    return sum(count) / seconds
