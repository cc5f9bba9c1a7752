"""The follower: pulls what is new, verifies it, inserts it, and sleeps until there is more.

Invariant: it listens before it pulls, so an append behind the last pull wakes it. A lost notification costs one slow
poll.
Invariant: nothing is deleted before a fork was confirmed by three new connections and the lost rows are on disk.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pmm_replicator import forks, source
from pmm_replicator.replica_file import HeadMoved, ReplicaFile
from pmm_replicator.report import ReplicationReport
from pmm_shm import limits
from pmm_shm.errors import SourceUnreachableError
from pmm_shm.ledger.rows import RawRow
from pmm_shm.ledger.source.audit import BLOCK_ROWS, audit_block
from pmm_shm.ledger.source.dsn import psycopg
from pmm_shm.ledger.source.lost import lost_files
from pmm_shm.ledger.source.server import Server, first_line
from pmm_shm.ledger.source.tables import channel

if TYPE_CHECKING:
    from psycopg import Connection

_RETRY_S_MIN = 0.1


class ReplicaFollower:
    """Follows one ledger in PostgreSQL into one replica.

    Parameters:
        server: the primary.
        replica: where to.
        fork_max: how many events it takes back by itself.
        log: takes one line for people.
    """

    def __init__(
        self,
        server: Server,
        replica: ReplicaFile,
        report: ReplicationReport,
        fork_max: int,
        log: Callable[[str], None],
    ) -> None:
        self._server = server
        self._replica = replica
        self._report = report
        self._fork_max = fork_max
        self._log = log
        self._head: RawRow | None = None
        self._audit_from = 1
        self._next_audit = time.monotonic() + limits.REPLICA_AUDIT_S
        self._next_look_around = time.monotonic() + limits.REPLICA_LOOK_AROUND_S
        self._others: Server | None = None
        self._looking: threading.Thread | None = None
        self._difference_id: int | None = None
        self._is_told_to_stop = False
        # It wakes the wait for a notification.
        self._stop_event = os.eventfd(0, os.EFD_CLOEXEC)

    def stop(self) -> None:
        """End `run` after the batch; safe in a signal handler."""
        self._is_told_to_stop = True
        os.eventfd_write(self._stop_event, 1)

    @property
    def is_stopping(self) -> bool:
        return self._is_told_to_stop

    def run(self) -> None:
        """Follow until `stop`.

        Raises:
            NotALedgerError: the primary has another ledger under this name.
            ForkTooDeepError, ChainError: a person has to decide; nothing was changed.
            LedgerError: the replica cannot be written.
        """
        driver = psycopg()
        pause_s = _RETRY_S_MIN
        self._head = self._replica.head()
        while not self.is_stopping:
            try:
                self._follow_connection()
                pause_s = _RETRY_S_MIN
            except SourceUnreachableError as error:
                self._trouble(str(error))
            except driver.Error as error:
                self._trouble(f"PostgreSQL: {first_line(error)}")
            self._server.close()
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, limits.REPLICA_RETRY_S_MAX)

    def catch_up(self) -> None:
        """Pull everything that is there now."""
        self._head = self._replica.head()
        while self._pull_one():
            pass

    def _follow_connection(self) -> None:
        """Follow over one connection until it fails, or until `stop`."""
        connection = self._server.connection()
        info = connection.info
        self._report.update(
            server=f"{info.host}:{info.port}",
            timeline=self._server.timeline,
            forks=self._replica.record.forks,
            lost_files=lost_files(self._replica.path),
        )
        connection.execute(f"LISTEN {channel(self._server.known_ledger().number)}")
        while not self.is_stopping:
            while self._pull_one():
                if connection.closed or self.is_stopping:
                    # A fork was looked at over new connections, and these do not listen.
                    return
            self._audit_when_due()
            self._look_around_when_due()
            if connection.closed:
                return
            self._wait_for_more(connection)

    def _wait_for_more(self, connection: Connection) -> None:
        """Return at a notification, after the slow poll, or at `stop`. psycopg's own wait looks ten times a second."""
        if not list(connection.notifies(timeout=0, stop_after=1)):
            select.select([connection.fileno(), self._stop_event], [], [], limits.REPLICA_SLOW_POLL_S)
            list(connection.notifies(timeout=0))

    def _look_around_when_due(self) -> None:
        """Leave a server that was replaced and does not know it: its connection would stay for ever.

        A thread asks the others: one that is gone takes seconds, and events would wait for it.
        """
        if self._others is not None and self._others.timeline > self._server.timeline:
            self._server.close()
        if time.monotonic() >= self._next_look_around and not (self._looking and self._looking.is_alive()):
            self._others = self._server.another()
            self._looking = threading.Thread(target=self._others.look_around, daemon=True)
            self._looking.start()
            self._next_look_around = time.monotonic() + limits.REPLICA_LOOK_AROUND_S

    def _audit_when_due(self) -> None:
        """Compare one block with the source, now and then, so that all are compared in turn."""
        if time.monotonic() < self._next_audit or self._head is None:
            return
        connection, ledger = self._server.connection(), self._server.known_ledger()
        self._next_audit = time.monotonic() + limits.REPLICA_AUDIT_S
        # Large events take the server a while.
        connection.silence_s = limits.REPLICA_AUDIT_SILENCE_S
        difference = audit_block(self._replica.reader, connection, ledger.number, self._audit_from)
        connection.silence_s = limits.SOURCE_SILENCE_S
        self._audit_from += BLOCK_ROWS
        if self._audit_from > self._head[0]:
            self._audit_from = 1
        if difference is not None and difference.event_id != self._difference_id:
            self._difference_id = difference.event_id
            self._log(f"event {difference.event_id} differs from the source: {difference.problem}")
            self._report.update(difference=f"event {difference.event_id}: {difference.problem}")

    def _pull_one(self) -> bool:
        """Pull and insert one batch. Returns whether there was anything new."""
        connection, ledger = self._server.connection(), self._server.known_ledger()
        pulled = source.pull(connection, ledger.number, self._head, ledger.formula)
        if not pulled.continues:
            self._resolve_fork()
            return True
        rows = pulled.rows
        head_id = 0 if self._head is None else self._head[0]
        if rows:
            try:
                self._replica.insert(rows, self._head, self._server.timeline)
            except HeadMoved:
                # Another follower, or a restore.
                self._head = self._replica.head()
                return True
            self._head = rows[-1]
            head_id = rows[-1][0]
        newest_id = head_id if pulled.is_complete else source.newest_id(connection, ledger.number)
        self._report.looked(head_id, newest_id)
        return not pulled.is_complete

    def _resolve_fork(self) -> None:
        lost = forks.resolve(self._server, self._replica, self._head, self._fork_max)
        self._head = self._replica.head()
        if lost is not None:
            self._log(
                f"the source has lost {lost.events} events from {lost.first_id} on: they were taken back, and are kept "
                f"in {lost.path}"
            )
            self._report.update(forks=self._replica.record.forks, lost_files=lost_files(self._replica.path))

    def _trouble(self, problem: str) -> None:
        self._log(problem)
        self._report.update(problem=problem)

    def _sleep(self, duration_s: float) -> None:
        deadline_s = time.monotonic() + duration_s
        while not self.is_stopping and (rest_s := deadline_s - time.monotonic()) > 0:
            time.sleep(min(0.05, rest_s))
