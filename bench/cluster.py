"""The report of `make bench-cluster`: the log in PostgreSQL and its replicas, beside the bare work of each step, and
beside readers that poll the PostgreSQL recorder of pyeventsourcing.

A PostgreSQL server of its own, on this machine, with fsync. The two sides of a comparison take turns, for machines are
noisy; the rows that the bare side writes have the same columns and sizes.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg

from bench.cluster_appends import (
    BARE,
    CONTENT,
    STATE,
    Report,
    bench_appends,
    bench_writers,
    in_turns,
    open_peer,
    percentile,
    timed,
)
from bench.daemons import Daemon, until
from pmm_replicator.follower import ReplicaFollower
from pmm_replicator.replica_file import ReplicaFile
from pmm_replicator.report import ReplicationReport
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.replicas import ReplicaRecord
from pmm_shm.ledger.schema import TABLE_SQL, create_indexes
from pmm_shm.ledger.source.importing import check_importable, import_ledger
from pmm_shm.ledger.source.report import read_status
from pmm_shm.ledger.source.server import Server
from pmm_shm.ledger.source.tables import EVENT_COLUMNS, create_ledger, create_tables
from pmm_shm_cli.synthetic import generate
from pmm_shm_client import connect
from tests.support.postgres import Postgres, running

_COLUMNS = ", ".join(EVENT_COLUMNS)
_POLL_S = 0.0001
# Its appends are slow, and the rate is the same.
_PEER_EVENTS_MAX = 50_000


def bench_hosts(report: Report, server: Postgres, folder: Path, rounds: int, idle_s: float) -> None:
    """From a commit to the exact read on another host, the waiting append, and an idle follower."""
    ledgers = [str(folder / f"host{number}" / "agent.db") for number in range(2)]
    daemons = []
    for ledger in ledgers:
        Path(ledger).parent.mkdir()
        daemons.append(Daemon(ledger, "--source", server.dsn, "--name", "hosts"))
        until(Path(ledger).exists, "the replica is made")
    time.sleep(1.0)
    behind: list[float] = []
    waiting: list[float] = []
    with connect(ledgers[0]) as here, connect(ledgers[1]) as there:
        for _ in range(rounds):
            event_id = here.append("user", CONTENT, wait=False)
            began = time.perf_counter()
            while there.recent().as_of < event_id:
                time.sleep(_POLL_S)
            behind.append(time.perf_counter() - began)
            waiting.append(timed(lambda: here.append("user", CONTENT)))
            time.sleep(0.005)
        polled, look_s = _bench_polling(server, rounds)
        globally = in_turns({"global": lambda: there.metrics(consistency="global")}, rounds)
        report.add(
            "commit to exact read on another host",
            f"p50 {percentile(behind, 0.5) * 1e3:.2f} ms, p99 {percentile(behind, 0.99) * 1e3:.2f} ms",
            target="p50 under 3 ms",
            peer=polled,
        )
        report.add("append that waits for its replica", f"{statistics.median(waiting) * 1e3:.2f} ms")
        report.add("read with consistency global, nothing new", f"{globally['global'] * 1e6:,.0f} µs")
        plain = str(folder / "plain.db")
        with EventLog(plain) as log:
            log.append_many([("user", CONTENT, {})] * 100)
        with connect(plain) as ordinary:
            reads = {
                "here": lambda: [there.metrics() for _ in range(1_000)],
                "bare": lambda: [ordinary.metrics() for _ in range(1_000)],
            }
            found = in_turns(reads, 41)
        report.add(
            "exact read on a replica, against a plain ledger",
            f"{found['here'] * 1e3:.2f} µs",
            f"{found['bare'] * 1e3:.2f} µs",
            found["here"] / found["bare"],
            "1.05",
            "" if look_s is None else f"{look_s * 1e6:,.0f} µs, a poll",
        )
    status = read_status(Instance.of(ledgers[0]).directory)
    assert status is not None
    before = _cpu_s(status.pid)
    time.sleep(idle_s)
    report.add("idle follower", f"{(_cpu_s(status.pid) - before) / idle_s:.2%} of a core", target="0.3 %")
    for daemon in daemons:
        daemon.kill()


def _bench_polling(server: Postgres, rounds: int) -> tuple[str, float | None]:
    """From a commit to what a polling reader of the peer finds, and one look of it that finds nothing."""
    writer, reader = open_peer(server), open_peer(server)
    if writer is None or reader is None:
        return "", None
    behind = []
    with closing(writer), closing(reader):
        for _ in range(rounds):
            (event_id,) = writer.append([STATE])
            began = time.perf_counter()
            while not reader.events_after(event_id - 1, 10):
                time.sleep(_POLL_S)
            behind.append(time.perf_counter() - began)
            time.sleep(0.005)
        look_s = in_turns({"peer": partial(reader.events_after, event_id, 10)}, rounds)["peer"]
    found = f"p50 {percentile(behind, 0.5) * 1e3:.2f} ms, p99 {percentile(behind, 0.99) * 1e3:.2f} ms"
    return found, look_s


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_pull(report: Report, server: Postgres, folder: Path, events: int) -> None:
    """The first pull of a new host, against a bare fetch and SQLite insert of the same rows."""
    ledger = str(folder / "large.db")
    generate(ledger, events, seed=7)
    with closing(Connection(ledger, "ro")) as source, psycopg.connect(server.dsn, autocommit=True) as connection:
        made = import_ledger(source, check_importable(source), connection, "pull")
    replica = str(folder / "replica" / "agent.db")
    Path(replica).parent.mkdir()
    began = time.perf_counter()
    daemon = Daemon(replica, "--source", server.dsn, "--name", "pull", "--embedder", "none", "--verify-every", "0")

    def is_there() -> bool:
        status = read_status(Instance.of(replica).directory)
        return status is not None and status.head_id == events

    until(is_there, "the first pull", 3_600.0)
    whole_s = time.perf_counter() - began
    daemon.kill()
    follower, close = _follower(server, folder)
    here_s = timed(follower.catch_up)
    close()
    began = time.perf_counter()
    with (
        psycopg.connect(server.dsn) as connection,
        closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as bare,
    ):
        bare.execute("PRAGMA journal_mode = WAL")
        bare.execute("PRAGMA synchronous = NORMAL")
        bare.execute(TABLE_SQL)
        create_indexes(bare)
        last_id = 0
        sql = f"SELECT {_COLUMNS} FROM pmm_events WHERE ledger = %s AND id > %s ORDER BY id LIMIT 2000"
        while rows := connection.execute(sql, (made.number, last_id)).fetchall():
            bare.execute("BEGIN IMMEDIATE")
            bare.executemany(f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            bare.execute("COMMIT")
            last_id = rows[-1][0]
    bare_s = time.perf_counter() - began
    report.add(
        f"first pull of {events:,} events, verified",
        f"{here_s:.1f} s, {events / here_s:,.0f}/s",
        f"{bare_s:.1f} s",
        here_s / bare_s,
        "2.5",
        _peer_pull(server, min(events, _PEER_EVENTS_MAX)),
    )
    report.add("the same, from the start of a daemon that folds them meanwhile", f"{whole_s:.1f} s")


def _peer_pull(server: Postgres, events: int) -> str:
    """Events of the peer's recorder, into memory: it has no copy on a host."""
    peer = open_peer(server, "off")
    if peer is None:
        return ""
    with closing(peer):
        last_id = (peer.append([STATE]) or [0])[0]
        first_id = last_id
        while last_id - first_id < events:
            last_id = peer.append([STATE] * min(1_000, events - last_id + first_id))[-1]
        began = time.perf_counter()
        position = first_id
        while found := peer.events_after(position, 2_000):
            position = found[-1].id
        rate = (position - first_id) / (time.perf_counter() - began)
        return f"{rate:,.0f}/s, unverified, into memory"


def _follower(server: Postgres, folder: Path) -> tuple[ReplicaFollower, Callable[[], None]]:
    """A follower in this process, of an empty replica, and how to end it."""
    primary = Server(server.dsn, "pull")
    ledger = primary.known_ledger()
    record = ReplicaRecord(ledger.identity, ledger.name, server.dsn, ledger.formula, primary.timeline, 0)
    replica = ReplicaFile(str(folder / "pulled.db"), record)

    def close() -> None:
        primary.close()
        replica.close()

    return ReplicaFollower(primary, replica, ReplicationReport(folder, ledger.name), 1, print), close


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="of the first pull")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--idle-s", type=float, default=20.0)
    options = parser.parse_args()
    report = Report()
    with running(fsync=True) as server, tempfile.TemporaryDirectory(prefix="pmm-bench-") as name:
        folder = Path(name)
        with psycopg.connect(server.dsn) as connection:
            create_tables(connection)
            connection.execute(BARE)
            for ledger in ("appends", "hosts"):
                create_ledger(connection, ledger)
        bench_appends(report, server, options.rounds)
        bench_writers(report, server, min(10.0, options.idle_s))
        bench_hosts(report, server, folder, options.rounds, options.idle_s)
        bench_pull(report, server, folder, options.events)
    report.show()


if __name__ == "__main__":
    main()
