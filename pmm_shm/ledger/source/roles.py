"""A role that one process of all hosts holds, under a lease on the server's clock, with a fencing token.

Not an advisory lock: a stopped holder would keep it.
"""

from __future__ import annotations

import time
import uuid

from pmm_shm import limits
from pmm_shm.errors import LedgerError
from pmm_shm.ledger.source.dsn import psycopg
from pmm_shm.ledger.source.server import Server

_CLAIM = """
    INSERT INTO pmm_roles AS r (ledger, role, holder, token, until)
    VALUES (%(ledger)s, %(role)s, %(holder)s, 1, clock_timestamp() + %(lease_s)s * interval '1 second')
    ON CONFLICT (ledger, role) DO UPDATE SET holder = excluded.holder, until = excluded.until,
        token = r.token + CASE WHEN r.holder = excluded.holder AND r.until > clock_timestamp() THEN 0 ELSE 1 END
    WHERE r.holder IS NULL OR r.holder = excluded.holder OR r.until <= clock_timestamp()
    RETURNING token
"""
_RESIGN = "UPDATE pmm_roles SET holder = NULL WHERE ledger = %s AND role = %s AND holder = %s"


class SourceRole:
    """One process's lease on a role of a ledger in PostgreSQL. Not thread-safe.

    The holder's time on its lease ends before the server's, because it counts from before the request.

    Parameters:
        server: the primary.
        name: 1 to 64 characters.

    Attributes:
        token: grows with each new holder; None while this process does not hold the role.
    """

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name
        self._holder = uuid.uuid4()
        self._expires_at = 0.0
        self.token: int | None = None

    def is_held(self, for_s: float = 0.0) -> bool:
        """Whether this process surely holds the role now and for the next `for_s` seconds."""
        return self.token is not None and time.monotonic() + for_s < self._expires_at

    def claim(self) -> bool:
        """Acquire the role, or renew the lease. Returns whether this process holds it; without a server it cannot."""
        asked = time.monotonic()
        driver = psycopg()
        try:
            with self._server.lock:
                # An answer that comes after the lease would have ended is worth nothing.
                connection = self._server.connection(time.monotonic() + limits.ROLE_LEASE_S)
                values = {
                    "ledger": self._server.known_ledger().number,
                    "role": self._name,
                    "holder": self._holder,
                    "lease_s": limits.ROLE_LEASE_S,
                }
                row = connection.execute(_CLAIM, values).fetchone()
        except (LedgerError, driver.Error):
            # The rest of the lease still counts.
            return self.is_held()
        self.token = None if row is None else row[0]
        self._expires_at = asked + limits.ROLE_LEASE_S if self.token is not None else 0.0
        return self.is_held()

    def resign(self) -> None:
        """End the lease, so that another process need not wait until it expires."""
        token, self.token = self.token, None
        if token is None:
            return
        driver = psycopg()
        try:
            with self._server.lock:
                connection = self._server.connection(time.monotonic() + limits.ROLE_LEASE_S)
                connection.execute(_RESIGN, (self._server.known_ledger().number, self._name, self._holder))
        except (LedgerError, driver.Error):
            pass
