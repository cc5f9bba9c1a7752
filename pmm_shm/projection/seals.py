"""Seals: the rows of the ledger, as a verification reads them, against the digests that earlier ones have kept.

A seal covers exactly the rows behind the one before it, up to its own last id; whether its block was full does not
matter. An edit that changes no answer and that the ledger's hash chain does not cover is found here alone.

Invariant: a seal is only replaced by one of the same rows and of more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from pmm_shm import limits
from pmm_shm.ledger.rows import DIGEST_BYTES, RawRow, raw_bytes
from pmm_shm.store.layout import Seal


class SealCheck:
    """Compares the known seals with the rows, and seals rows that have no seal yet. Keeps no rows.

    Parameters:
        known: the seals that were kept, by their blocks.

    Attributes:
        compared: how many seals were compared.
        changed: the first and the last event between which a row differs from its seal; None where none does.
    """

    def __init__(self, known: Sequence[Seal]) -> None:
        self._known = known
        self._new: dict[int, Seal] = {}
        self._block = 0
        self.compared = 0
        self.changed: tuple[int, int] | None = None
        self._begin()

    def add(self, rows: Iterable[RawRow]) -> None:
        """The next rows; all rows, ascending."""
        for row in rows:
            event_id = row[0]
            while self.compared < len(self._known) and event_id > self._known[self.compared].last_id:
                self._compare()
            if self._rows == limits.SEAL_BLOCK_ROWS and self.compared == len(self._known):
                self._seal()
                self._next()
            if not self._rows:
                self._first_id = event_id
            self._last_id = event_id
            self._rows += 1
            self._digest.update(raw_bytes(row))

    def finish(self) -> dict[int, Seal]:
        """There are no more rows. Returns the seals to keep, by their blocks, beside the known or in their place."""
        while self.compared < len(self._known):
            self._compare()
        if self._rows:
            self._seal()
        return self._new

    def _begin(self) -> None:
        self._digest = blake2b(digest_size=DIGEST_BYTES)
        self._rows = 0
        self._first_id = self._last_id = 0

    def _next(self) -> None:
        self._block += 1
        self._begin()

    def _compare(self) -> None:
        known = self._known[self.compared]
        self.compared += 1
        if self._digest.digest() != known.digest and self.changed is None:
            self.changed = (min(known.first_id, self._first_id) if self._rows else known.first_id, known.last_id)
        # A newest block that was sealed before it was full goes on.
        if self._rows >= limits.SEAL_BLOCK_ROWS or self.compared < len(self._known):
            self._next()

    def _seal(self) -> None:
        seal = Seal(self._first_id, self._last_id, self._digest.digest())
        if self._block >= len(self._known) or self._known[self._block] != seal:
            self._new[self._block] = seal
