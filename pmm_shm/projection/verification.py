"""Verification: the published state against a full replay, and the ledger's rows against their seals.

Shared by the daemon (in the background, within its CPU budget) and by a client without one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import DECODE
from pmm_shm.folds.registry import BUILT_IN_NAMES
from pmm_shm.folds.state import State, readable_part
from pmm_shm.frozen import json_text, plain, result
from pmm_shm.ledger.chain import broken_at, verify_chain, verify_range
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import Position
from pmm_shm.projection.cursor import Cursor, LogChanged
from pmm_shm.projection.seals import SealCheck, columns_sealed
from pmm_shm.store.layout import Seal
from pmm_shm.store.snapshot import Lineage, Snapshot

Pace = Callable[[], None]
_LENGTH_BYTES = 4
_DIGEST_MODULUS = 1 << 512
_CHANGED_MEANWHILE = "the log lost or changed its newest rows while it was replayed"


@result
class VerifyReport(NamedTuple):
    """The result of a verification; true when all is well.

    Attributes:
        ok: whether the published state equals the replay, and the rows their seals. If nothing is published: whether
            the hash chain holds.
        as_of: the event id up to which the state was verified.
        folds: the names of the folds that were compared.
        events: how many rows were replayed; if nothing is published, how many the chain covers.
        sealed_blocks: how many seals were compared, each of a block of 1,024 rows or of the newest block, not full yet.
        difference: the place of the first difference, in one line: the events of a block whose seal differs and, where
            the hash chain tells, the first bad event of it; the part of a fold that differs. None when all is well.
    """

    ok: bool
    as_of: int
    folds: tuple[str, ...]
    events: int
    sealed_blocks: int
    difference: str | None

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


class PublishedEntries:
    """The entries of one fold as they were published, compressed: as a dict they would take ten times the memory.

    Parameters:
        entries: (key, value) in any order; each key once.

    Attributes:
        digest: as `entries_digest` has it.
    """

    def __init__(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        packer = zlib.compressobj(1)
        packed, total = bytearray(), 0
        for key, value in entries:
            total += _entry_digest(key, value)
            packed += packer.compress(_length(key) + _length(value) + key + value)
        self.digest = total % _DIGEST_MODULUS
        self._packed = bytes(packed + packer.flush())

    def as_dict(self) -> dict[bytes, bytes]:
        """Key to value."""
        data = memoryview(zlib.decompress(self._packed))
        entries, place = {}, 0
        while place < len(data):
            key_begin = place + 2 * _LENGTH_BYTES
            value_begin = key_begin + int.from_bytes(data[place : place + _LENGTH_BYTES], "big")
            place = value_begin + int.from_bytes(data[place + _LENGTH_BYTES : key_begin], "big")
            entries[bytes(data[key_begin:value_begin])] = bytes(data[value_begin:place])
        return entries


def entries_digest(entries: Iterable[tuple[bytes, bytes]]) -> int:
    """The sum of the digests of (key, value): equal for equal entries in any order, and found without keeping them."""
    return sum(_entry_digest(key, value) for key, value in entries) % _DIGEST_MODULUS


def _entry_digest(key: bytes, value: bytes) -> int:
    return int.from_bytes(blake2b(_length(key) + key + value).digest(), "big")


def _length(part: bytes) -> bytes:
    return len(part).to_bytes(_LENGTH_BYTES, "big")


class PublishedCopy(NamedTuple):
    """A copy of the published state, so that no transaction is held while it is verified."""

    position: Position
    lineage: Lineage
    folds: tuple[Fold, ...]
    entries: dict[str, PublishedEntries]
    seals: list[Seal]


def copy_published(snapshot: Snapshot, folds: Sequence[Fold]) -> PublishedCopy | None:
    """The copy; None where one of the folds is not published."""
    lineage = snapshot.lineage(list(folds))
    if lineage is None:
        return None
    entries = {fold.name: PublishedEntries(snapshot.base(fold).scan(b"")) for fold in folds}
    return PublishedCopy(snapshot.header.position, lineage, tuple(folds), entries, snapshot.seals())


class Verified(NamedTuple):
    """A verification, and what follows from it.

    Attributes:
        seals: to keep, by their blocks: of rows that had none yet, and of all rows if they were sealed when the table
            had fewer columns. None of them unless all is well.
        is_purged: whether the log of another program has lost its oldest rows, which the published state still has.
    """

    report: VerifyReport
    seals: dict[int, Seal]
    is_purged: bool = False


def verify(
    connection: Connection, copy: PublishedCopy, pace: Pace = lambda: None, first_id: int | None = None
) -> Verified:
    """Replay the ledger up to the copy's position, and compare.

    Parameters:
        connection: a read-only connection; its lock is taken for each batch only.
        copy: a copy of the published state.
        pace: called after each batch; may sleep, or raise to give up.
        first_id: the oldest event when the state was built, as far as it is known; a seal tells it, too.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    seals = SealCheck(copy.seals)
    report, new_seals = _verify(connection, copy, seals, pace)
    first_id = copy.seals[0].first_id if copy.seals else first_id
    oldest_id = seals.oldest_id
    has_lost = oldest_id is not None and first_id is not None and oldest_id > first_id
    if connection.shape is not None and has_lost and not report.ok:
        lost = f"the rows before event {oldest_id} were removed, and the state has them until the daemon has rebuilt it"
        return Verified(report._replace(difference=lost), {}, is_purged=True)
    if seals.changed is not None and seals.changed[1] == copy.seals[0].last_id:
        columns = _columns_sealed(connection, copy.seals[0])
        if columns is not None:
            return Verified(*_verify(connection, copy, SealCheck(copy.seals, columns), pace))
    return Verified(report, new_seals)


def verify_unpublished(connection: Connection, pace: Pace = lambda: None) -> VerifyReport:
    """Where nothing is published, read the whole ledger and check its hash chain: a report is never about nothing.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    cursor = Cursor((), connection, whole_rows=True)
    try:
        for _ in cursor.advance_to_head():
            pace()
    except LogChanged:
        return VerifyReport(False, 0, (), cursor.events_folded, 0, _CHANGED_MEANWHILE)
    bad_id = verify_chain(connection).first_bad_id
    problem = None if bad_id is None else broken_at(bad_id)
    return VerifyReport(problem is None, 0, (), cursor.events_folded, 0, problem)


def _columns_sealed(connection: Connection, seal: Seal) -> int | None:
    """How many columns the seal of the first block covers; None if it fits none."""
    try:
        tails = Cursor((), connection, whole_rows=True).advance_to_head(seal.last_id)
        return columns_sealed(seal, (row for tail in tails for row in tail.rows))
    except LogChanged:
        return None


def _verify(
    connection: Connection, copy: PublishedCopy, seals: SealCheck, pace: Pace
) -> tuple[VerifyReport, dict[int, Seal]]:
    cursor = Cursor(copy.folds, connection, whole_rows=True)
    new_seals: dict[int, Seal] = {}
    target_id = copy.position.event_id
    difference: str | None
    try:
        if target_id is not None:
            for tail in cursor.advance_to_head(target_id):
                seals.add(tail.rows)
                for state in cursor.states.values():
                    # A replay publishes nothing, and what it keeps for that grows with the state.
                    state.take_touched()
                pace()
            new_seals = seals.finish()
        difference = _difference(cursor, copy, seals, connection)
    except LogChanged:
        difference = _CHANGED_MEANWHILE
    names = tuple(fold.name for fold in copy.folds)
    report = VerifyReport(
        difference is None, copy.position.as_of, names, cursor.events_folded, seals.compared, difference
    )
    return report, new_seals if report.ok else {}


def _difference(cursor: Cursor, copy: PublishedCopy, seals: SealCheck, connection: Connection) -> str | None:
    """The first difference, in one line: the block, which locates an edit, before the fold."""
    if cursor.position.event_id != copy.position.event_id or not cursor.log_holds(copy.position):
        return f"event {copy.position.as_of}, the newest that was folded, is gone or has changed"
    found = _changed_rows(seals, connection)
    for fold in copy.folds:
        difference = _first_difference(fold.name, copy.entries[fold.name], cursor.states[fold.name])
        if difference is not None:
            found.append(difference)
            break
    return "; ".join(found) or None


def _changed_rows(seals: SealCheck, connection: Connection) -> list[str]:
    if seals.changed is None:
        return []
    first_id, last_id = seals.changed
    bad_id = verify_range(connection, first_id, last_id).first_bad_id
    broken = [] if bad_id is None else [broken_at(bad_id)]
    return [f"a row among the events {first_id} to {last_id} was changed, added or removed", *broken]


def _first_difference(name: str, published: PublishedEntries, state: State) -> str | None:
    if entries_digest(_replayed(state)) == published.digest:
        return None
    theirs, ours = published.as_dict(), dict(_replayed(state))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            part = readable_part(key, theirs.get(key) or ours.get(key))
            is_built_in = name in BUILT_IN_NAMES or name == DECODE
            also = "" if is_built_in else "; or the fold's code changed without a new version"
            return f"fold {name}: {part} differs from the replay{also}"
    return None


def _replayed(state: State) -> Iterator[tuple[bytes, bytes]]:
    return ((key, value) for key, value in state.changes() if value is not None)
