"""A connection to the primary of a PostgreSQL cluster, for one ledger.

Of several hosts each is asked by itself: it counts as the primary if it takes writes, knows the ledger by the identity
that the replica was made from, and its timeline is the latest of all, and not older than any that was seen. So an old
primary that comes back is refused, and so is another ledger under the same name.
"""

from __future__ import annotations

import contextlib

# Imported early: the fork hook below must run before that of logging, whose lock threads take that we wait for.
import logging  # noqa: F401
import math
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pmm_shm import limits
from pmm_shm.errors import ConfigError, LedgerBusyError, LedgerError, NotALedgerError, SourceUnreachableError
from pmm_shm.late import late_imports
from pmm_shm.ledger.connection import LocksOfFork
from pmm_shm.ledger.source.dsn import connect_timeout_s, each_host, psycopg
from pmm_shm.ledger.source.tables import SourceLedger, find_ledger

if TYPE_CHECKING:
    from pmm_shm.ledger.source.session import SourceSession

_SPARE_CONNECT_S = 2
_PREPARED_AFTER = 2
# The checkpoint after a promotion may still be to come: then the newest WAL file has the timeline.
_TIMELINE = (
    "SELECT pg_backend_pid(), pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN 0 ELSE greatest("
    "(SELECT timeline_id FROM pg_control_checkpoint()), "
    "('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int) END"
)


class Server:
    """One connection to the primary, opened at the first use and closed before a fork. Use it under `lock`.

    Parameters:
        dsn: where the servers are, without a password.
        name: the ledger's; None for a primary of whatever ledgers.
        identity: the ledger must have this one; None for any.
        timeline: the highest that was seen; a server with a lower one is refused.
        seen_timeline: the highest that others have seen by now; asked at each use.
        options: for libpq, such as `application_name`.

    Attributes:
        timeline: the highest seen.
        ledger: the ledger's row; known once connected.
    """

    def __init__(
        self,
        dsn: str,
        name: str | None,
        identity: uuid.UUID | None = None,
        timeline: int = 0,
        *,
        seen_timeline: Callable[[], int] = lambda: 0,
        **options: Any,
    ) -> None:
        self.lock = threading.RLock()
        self.dsn = dsn
        self.name = name
        self.timeline = timeline
        self.ledger: SourceLedger | None = None
        self._identity = identity
        self._seen_timeline = seen_timeline
        self._options = options
        self._connection: SourceSession | None = None
        self._pid = 0
        _servers.add(self)

    def connection(self, deadline_s: float = math.inf) -> SourceSession:
        """The open connection, in autocommit mode; connects where there is none.

        Parameters:
            deadline_s: until when its answers are waited for, in monotonic seconds, and a little longer.

        Raises:
            SourceUnreachableError: no server is the primary of this ledger.
            NotALedgerError: no server is, and one that takes writes has no ledger of this name, or another one.
            MissingExtraError: psycopg is not installed.
        """
        seen = self._seen_timeline()
        if seen > self.timeline:
            # A server with a lower one is an old primary from now on.
            self.close()
            self.timeline = seen
        connection = self._connection
        if connection is not None and not connection.closed and not connection.broken and self._pid == os.getpid():
            connection.deadline_s = deadline_s + limits.SOURCE_GRACE_S
            return connection
        self.close()
        reasons: list[str] = []
        is_another = False
        for dsn in each_host(self.dsn):
            if reasons and self._connection is None and time.monotonic() >= deadline_s:
                reasons.append("no time was left for the other servers")
                break
            try:
                # Each is asked, and the latest timeline stays: an old primary takes writes, too.
                found = self._open(dsn, deadline_s, is_spare=self._connection is not None)
            except (_NotThePrimary, NotALedgerError) as error:
                reasons.append(str(error))
                is_another |= isinstance(error, NotALedgerError)
                continue
            self.close()
            self._connection, self._pid = found, os.getpid()
        if self._connection is not None:
            return self._connection
        kind = NotALedgerError if is_another else SourceUnreachableError
        whose = "" if self.name is None else f" for the ledger {self.name!r}"
        raise kind(f"no primary{whose}: {'; '.join(reasons)}")

    @contextlib.contextmanager
    def held(self, deadline_s: float) -> Iterator[None]:
        """Hold `lock`, and wait for it no longer than until `deadline_s`.

        Raises:
            LedgerBusyError: another thread of this process has it until then.
        """
        if not self.lock.acquire(timeout=min(max(0.0, deadline_s - time.monotonic()), threading.TIMEOUT_MAX)):
            raise LedgerBusyError(f"the ledger {self.name!r}: another thread of this process still uses the connection")
        try:
            yield
        finally:
            self.lock.release()

    def another(self) -> Server:
        """The same servers, as they are known by now, over a connection of its own."""
        return Server(self.dsn, self.name, self._identity, self.timeline, **self._options)

    def look_around(self) -> None:
        """Ask all servers of the cluster; `timeline` is the latest one's. A server that is gone takes seconds."""
        others = each_host(self.dsn)
        for dsn in others if len(others) > 1 else ():
            try:
                self._open(dsn, math.inf, is_spare=True).close()
            except (_NotThePrimary, NotALedgerError):
                continue

    def known_ledger(self) -> SourceLedger:
        """The ledger's row; connects where it is not known."""
        if self.ledger is None:
            self.connection()
        assert self.ledger is not None
        return self.ledger

    def close(self) -> None:
        """Close the connection; the next use connects anew."""
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            connection.close()

    def __del__(self) -> None:
        self.close()

    def _open(self, dsn: str, deadline_s: float, *, is_spare: bool = False) -> SourceSession:
        """A connection to a primary; `is_spare`: only to one with a later timeline than the highest seen."""
        driver = psycopg()
        with late_imports:
            from pmm_shm.ledger.source.session import SourceSession
        try:
            session = SourceSession.connect(
                dsn,
                autocommit=True,
                prepare_threshold=None,
                # A DSN, or PGCLIENTENCODING, must not change what is read.
                client_encoding="utf8",
                connect_timeout=connect_timeout_s(dsn, _SPARE_CONNECT_S if is_spare else deadline_s - time.monotonic()),
                **self._options,
            )
            session.deadline_s = deadline_s + limits.SOURCE_GRACE_S
        except driver.ProgrammingError as error:
            raise ConfigError(f"the data source name: {first_line(error)}") from None
        except driver.Error as error:
            raise _NotThePrimary(first_line(error)) from None
        try:
            row = session.execute(_TIMELINE).fetchone()
            assert row is not None
            backend_pid, is_standby, timeline = row
            where = f"{session.info.host}:{session.info.port}"
            if is_standby:
                raise _NotThePrimary(f"{where} is a standby")
            if timeline < self.timeline + is_spare:
                raise _NotThePrimary(
                    f"{where} is an old primary (timeline {timeline}, and {self.timeline} was seen already)"
                )
            ledger = None if self.name is None else find_ledger(session, self.name)
            if ledger is not None and self._identity is not None and ledger.identity != self._identity:
                raise NotALedgerError(f"{where} has another ledger under the name {self.name!r}")
        except driver.Error as error:
            session.close()
            raise _NotThePrimary(first_line(error)) from None
        except BaseException:
            session.close()
            raise
        if backend_pid == session.info.backend_pid:
            # Named statements would not survive a pooler in transaction mode. It gives its clients numbers of its own.
            session.prepare_threshold = _PREPARED_AFTER
            session.is_pooled = False
        self.ledger, self.timeline = ledger, timeline
        return session


class _NotThePrimary(LedgerError):
    """This server cannot be used; another of the cluster may."""


def first_line(error: BaseException) -> str:
    """The first line of what PostgreSQL says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# A connection must not cross a fork: both sides would talk on one socket. It is closed before, and opened on first use
# on both sides.
_servers: weakref.WeakSet[Server] = weakref.WeakSet()
_fork = LocksOfFork()


def _before_fork() -> None:
    if not _fork.is_complete:
        _fork.give_back()
        for server in sorted(_servers, key=id):
            _fork.take(server.lock)
            server.close()
        _fork.is_complete = True


def _after_fork() -> None:
    _fork.give_back()


# Twice, as those of the ledger's connections.
for _ in range(2):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
