"""Ledgers in PostgreSQL, and hosts that follow them: real servers, real followers."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from pmm_shm import limits
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.new_events import new_event
from pmm_shm.ledger.source.appending import SourceAppender
from pmm_shm.ledger.source.report import ReplicaStatus, read_status
from pmm_shm.ledger.source.server import Server
from pmm_shm.ledger.source.tables import create_ledger, create_tables
from pmm_shm.vectors.embedder import Embedder
from tests.support import ledgers
from tests.support.crash import DiesAt, die_at
from tests.support.daemons import environment, until
from tests.support.forking import end_with_parent, in_child

COLUMNS = "id, ts, kind, content, meta, prev_hash, hash"


def make_source(dsn: str, name: str) -> None:
    """A ledger without events."""
    with psycopg.connect(dsn) as connection:
        create_tables(connection)
        create_ledger(connection, name)


def source_rows(dsn: str, name: str) -> list[tuple[Any, ...]]:
    """All rows of a ledger in PostgreSQL."""
    sql = f"SELECT {COLUMNS} FROM pmm_events JOIN pmm_ledgers USING (ledger) WHERE name = %s ORDER BY id"
    with psycopg.connect(dsn) as connection:
        return connection.execute(sql, (name,)).fetchall()


def execute(dsn: str, sql: str, *values: Any) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql, values)


class UnitEmbedder(Embedder):
    """Gives each text the same vector."""

    name = "unit"
    dimension = 2

    def embed(self, texts: Any) -> list[list[float]]:
        if "fails" in texts:
            raise RuntimeError
        return [[1.0, 0.0] for _ in texts]


class Writer:
    """Appends to a ledger in PostgreSQL, from no host in particular."""

    def __init__(self, dsn: str, name: str, timeout_s: float = 20.0) -> None:
        self._appender = SourceAppender(Server(dsn, name), timeout_s)

    def append(self, *contents: str, kind: str = "user") -> list[int]:
        return [row[0] for row in self._appender.append([new_event(kind, content) for content in contents])]

    def close(self) -> None:
        self._appender.close()


def _follow(
    arguments: list[str], variables: dict[str, str], dies_at: DiesAt | None, log: str, other_limits: dict[str, float]
) -> None:
    import os

    from pmm_replicator.main import main

    end_with_parent()
    for name, value in other_limits.items():
        setattr(limits, name, value)
    if dies_at is not None:
        die_at(*dies_at)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["pmm_replicator", *arguments]
    with open(log, "a", encoding="utf-8") as file:
        sys.stderr = file
        main()


class Host:
    """One replica and its follower.

    Parameters:
        folder: of the replica; the host's own.
    """

    def __init__(self, folder: Path, dsn: str, name: str) -> None:
        folder.mkdir(exist_ok=True)
        self.ledger = str(folder / "agent.db")
        self.dsn = dsn
        self.name = name
        self.log = folder / "follower.log"
        self._process: Any = None

    def follow(self, *options: str, dies_at: DiesAt | None = None, **other_limits: float) -> None:
        """Start the follower; `other_limits` replace those of `limits` in it."""
        arguments = [self.ledger, "--name", self.name, *options]
        variables = environment(PMM_SOURCE=self.dsn)
        self._process = in_child(_follow, arguments, variables, dies_at, str(self.log), other_limits)

    def wait(self, deadline_s: float = 30.0) -> int:
        """Wait until the follower ends; its exit code."""
        self._process.join(deadline_s)
        code: int | None = self._process.exitcode
        assert code is not None, "the follower runs on"
        return code

    def has_ended(self) -> bool:
        return self._process.exitcode is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the follower; its exit code."""
        import os

        if self._process.exitcode is None:
            os.kill(self._process.pid, number)
        return self.wait()

    def rows(self) -> list[tuple[Any, ...]]:
        """All rows of the replica; none where it does not exist."""
        if not Path(self.ledger).exists():
            return []
        try:
            return ledgers.execute(self.ledger, f"SELECT {COLUMNS} FROM events ORDER BY id")
        except Exception:
            return []

    def _tables(self) -> list[str]:
        if not Path(self.ledger).exists():
            return []
        return [row[0] for row in ledgers.execute(self.ledger, "SELECT name FROM sqlite_master")]

    def until_equal(self) -> list[tuple[Any, ...]]:
        """Wait until the replica has the rows of the source; these."""
        return until(lambda: (rows := source_rows(self.dsn, self.name)) == self.rows() and (rows or [()]), "equal rows")

    def status(self) -> ReplicaStatus:
        found = read_status(Instance.of(self.ledger).directory)
        assert found is not None
        return found

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    @contextlib.contextmanager
    def following(self, *options: str, **other_limits: float) -> Iterator[Host]:
        """The host, with a follower while the block runs."""
        self.follow(*options, **other_limits)
        try:
            until(lambda: self.has_ended() or "pmm_replica" in self._tables())
            yield self
        finally:
            self.stop()

    def open(self) -> EventLog:
        return EventLog(self.ledger, create=False, timeout=10.0)
