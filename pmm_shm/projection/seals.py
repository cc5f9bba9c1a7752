"""Seals: the rows of the ledger, as a verification reads them, against the digests that earlier ones have kept.

A seal covers exactly the rows behind the one before it, up to its own last id; whether its block was full does not
matter. An edit that changes no answer and that the ledger's hash chain does not cover is found here alone.

Invariant: a seal is only replaced by one of the same rows and of more, or of more columns of them.
Invariant: the seals that are kept cover the same number of columns, all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pmm_shm import limits
from pmm_shm.digests import blake2b
from pmm_shm.ledger.rows import DIGEST_BYTES, REQUIRED_COLUMNS, RawRow, raw_bytes
from pmm_shm.store.layout import Seal


class SealCheck:
    """Compares the known seals with the rows, and seals rows that have no seal yet. Keeps no rows.

    Parameters:
        known: the seals that were kept, by their blocks.
        columns: how many columns of a row they cover, if others were added since: then all rows are sealed anew, once
            they were compared. None for all.

    Attributes:
        compared: how many seals were compared.
        oldest_id: the id of the first row; None where there was none.
        changed: the first and the last event between which a row differs from its seal; None where none does.
    """

    def __init__(self, known: Sequence[Seal], columns: int | None = None) -> None:
        self._known = known
        self._columns = columns
        self._new: dict[int, Seal] = {}
        self._block = 0
        self.compared = 0
        self.changed: tuple[int, int] | None = None
        self.oldest_id: int | None = None
        self._begin()

    def add(self, rows: Sequence[RawRow]) -> None:
        """The next rows; all rows, ascending."""
        if self.oldest_id is None and rows:
            self.oldest_id = rows[0][0]
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
            if self._columns is None:
                self._digest.update(raw_bytes(row))
            else:
                self._known_digest.update(raw_bytes(row[: self._columns]))
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
        self._known_digest = self._digest if self._columns is None else blake2b(digest_size=DIGEST_BYTES)
        self._rows = 0
        self._first_id = self._last_id = 0

    def _next(self) -> None:
        self._block += 1
        self._begin()

    def _compare(self) -> None:
        known = self._known[self.compared]
        self.compared += 1
        if self._known_digest.digest() != known.digest and self.changed is None:
            self.changed = (min(known.first_id, self._first_id) if self._rows else known.first_id, known.last_id)
        # A newest block that was sealed before it was full goes on.
        if self._rows >= limits.SEAL_BLOCK_ROWS or self.compared < len(self._known):
            if self._columns is not None and self._rows:
                self._seal()
            self._next()

    def _seal(self) -> None:
        seal = Seal(self._first_id, self._last_id, self._digest.digest())
        if self._block >= len(self._known) or self._known[self._block] != seal:
            self._new[self._block] = seal


def columns_sealed(seal: Seal, rows: Iterable[RawRow]) -> int | None:
    """How many columns the seal covers, the first of each row, given the rows of its block; None if it fits none."""
    digests: dict[int, Any] = {}
    for row in rows:
        for count in range(len(REQUIRED_COLUMNS), len(row) + 1):
            if count not in digests:
                digests[count] = blake2b(digest_size=DIGEST_BYTES)
            digests[count].update(raw_bytes(row[:count]))
    return next((count for count, digest in digests.items() if digest.digest() == seal.digest), None)
