"""Text vectors of all hosts: an embedder that asks PostgreSQL first, and claims a text before it computes it.

A host's own text table and its leases stand before it, so only texts that are new to a host get here.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from pmm_shm import limits
from pmm_shm.errors import LedgerError
from pmm_shm.ledger.source.dsn import psycopg
from pmm_shm.ledger.source.server import Server
from pmm_shm.vectors.embedder import Embedder, embedded, text_key

_READY = (
    "SELECT text_key, vector FROM pmm_text_vectors "
    "WHERE model = %s AND dimension = %s AND text_key = ANY(%s) AND vector IS NOT NULL"
)
_CLAIM = """
    INSERT INTO pmm_text_vectors AS v (model, dimension, text_key, holder, until)
    SELECT %s, %s, wanted, %s, clock_timestamp() + %s * interval '1 second'
    FROM unnest(%s::bytea[]) AS wanted ORDER BY wanted
    ON CONFLICT (model, dimension, text_key) DO UPDATE SET holder = excluded.holder, until = excluded.until
    WHERE v.vector IS NULL AND v.until <= clock_timestamp()
    RETURNING text_key
"""
_STORE = (
    "UPDATE pmm_text_vectors SET vector = %s, holder = NULL, until = NULL "
    "WHERE model = %s AND dimension = %s AND text_key = %s AND holder = %s"
)
_RELEASE = (
    "DELETE FROM pmm_text_vectors WHERE model = %s AND dimension = %s AND text_key = ANY(%s) AND holder = %s "
    "AND vector IS NULL"
)
_POLL_S = 0.05
_FLOAT = np.dtype("<f4")


class SourceEmbedder(Embedder):
    """Computes each text once for all hosts; without a server, as the embedder alone.

    Parameters:
        embedder: computes what no host has.
        server: the primary; for this object alone. If it fails, it is not asked again for
            `limits.REPLICA_RETRY_S_MAX`.
    """

    def __init__(self, embedder: Embedder, server: Server) -> None:
        self._embedder = embedder
        self._server = server
        self._next_try_s = 0.0
        self._holder = uuid.uuid4()
        self.name, self.dimension = embedder.name, embedder.dimension
        self.batch_max, self.requests_max = embedder.batch_max, embedder.requests_max
        self.takes_empty = embedder.takes_empty

    def embed(self, texts: Sequence[str]) -> Any:
        """As `Embedder.embed`; a vector that is stored for all hosts is not computed again."""
        wanted = {text_key(text): text for text in texts}
        vectors: dict[bytes, Any] = {}
        while missing := [key for key in wanted if key not in vectors]:
            claimed = self._ready_or_claimed(missing, vectors)
            if claimed is None:
                return self._embedder.embed(texts)
            if claimed:
                self._compute(claimed, wanted, vectors)
            elif len(vectors) < len(wanted):
                # Other hosts compute the rest, or died: then their leases expire.
                time.sleep(_POLL_S)
        return np.stack([vectors[text_key(text)] for text in texts])

    def _compute(self, keys: list[bytes], wanted: dict[bytes, str], vectors: dict[bytes, Any]) -> None:
        try:
            matrix = embedded(self._embedder, [wanted[key] for key in keys])
        except BaseException:
            self._tell([(_RELEASE, (self.name, self.dimension, keys, self._holder))])
            raise
        vectors.update(zip(keys, matrix, strict=True))
        self._tell(
            [
                (_STORE, (row.astype(_FLOAT).tobytes(), self.name, self.dimension, key, self._holder))
                for key, row in zip(keys, matrix, strict=True)
            ]
        )

    def _ready_or_claimed(self, keys: list[bytes], vectors: dict[bytes, Any]) -> list[bytes] | None:
        """Add what is stored to `vectors`; returns what this process may compute now, None without a server."""
        if time.monotonic() < self._next_try_s:
            return None
        driver = psycopg()
        try:
            with self._server.lock:
                connection = self._server.connection()
                rows = connection.execute(_READY, (self.name, self.dimension, keys)).fetchall()
                vectors.update({bytes(key): np.frombuffer(vector, _FLOAT) for key, vector in rows})
                rest = [key for key in keys if key not in vectors]
                if not rest:
                    return []
                claim = (self.name, self.dimension, self._holder, limits.SOURCE_LEASE_S, rest)
                return [bytes(key) for (key,) in connection.execute(_CLAIM, claim).fetchall()]
        except (LedgerError, driver.Error):
            self._next_try_s = time.monotonic() + limits.REPLICA_RETRY_S_MAX
            return None

    def _tell(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        driver = psycopg()
        try:
            with self._server.lock:
                connection = self._server.connection()
                with connection.transaction():
                    for sql, values in statements:
                        connection.execute(sql, values)
        except (LedgerError, driver.Error):
            # The leases expire.
            pass
