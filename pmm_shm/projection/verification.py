"""Verification: the published state against a full replay, and the ledger's rows against their seals.

Shared by the daemon (in the background, within its CPU budget) and by a client without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pmm_shm.codec import unpack
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.state import State
from pmm_shm.ledger.chain import broken_at, first_bad_id
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START, Position, TailReader
from pmm_shm.projection.replay import LogChanged, tails
from pmm_shm.projection.seals import SealCheck
from pmm_shm.store.layout import Seal
from pmm_shm.store.snapshot import Lineage, Snapshot

Pace = Callable[[], None]


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found; true when all is well.

    Attributes:
        ok: whether the published state equals the replay, and the rows their seals.
        as_of: the event id up to which was verified.
        folds: the names of the folds that were compared.
        events: how many rows were replayed.
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


@dataclass(frozen=True)
class PublishedCopy:
    """A copy of what was published at one moment, so that no transaction is held while it is verified."""

    position: Position
    lineage: Lineage
    folds: tuple[Fold, ...]
    entries: dict[str, dict[bytes, bytes]]
    seals: list[Seal]


def copy_published(snapshot: Snapshot, folds: Sequence[Fold]) -> PublishedCopy | None:
    """The copy; None where one of the folds is not published."""
    lineage = snapshot.lineage(list(folds))
    if lineage is None:
        return None
    entries = {fold.name: snapshot.entries(fold) for fold in folds}
    return PublishedCopy(snapshot.header.position, lineage, tuple(folds), entries, snapshot.seals())


@dataclass
class Outcome:
    """A report, and the seals to keep, by their blocks: of rows that had none yet."""

    report: VerifyReport
    new_seals: dict[int, Seal] = field(default_factory=dict)


def verify(connection: Connection, copy: PublishedCopy, pace: Pace = lambda: None) -> Outcome:
    """Replay the ledger up to the copy's position, and compare.

    Parameters:
        connection: a read-only connection; its lock is taken for each batch only.
        copy: what was published.
        pace: called after each batch; may sleep, or raise to give up.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    replay = _SealingReplay(copy)
    try:
        replay.run(connection, pace)
    except LogChanged:
        return replay.outcome("the log lost or changed its newest rows while it was replayed")
    return replay.outcome(replay.difference(connection))


class _SealingReplay:
    def __init__(self, copy: PublishedCopy) -> None:
        self._copy = copy
        self._engine = Engine(copy.folds)
        self._states = {fold.name: State() for fold in copy.folds}
        self._position = START
        self._events = 0
        self._seals = SealCheck(copy.seals)
        self._new_seals: dict[int, Seal] = {}

    def run(self, connection: Connection, pace: Pace) -> None:
        target = self._copy.position.event_id
        if target is None:
            return
        # All kinds: seals cover rows that no fold needs.
        reader = TailReader(connection, None)
        for tail in tails(reader.read_whole, connection):
            rows = tail.rows
            if rows and rows[-1][0] > target:
                rows = [row for row in rows if row[0] <= target]
            self._engine.apply(rows, self._states)
            self._seals.add(row[:-1] for row in rows)
            if rows:
                self._position = reader.position_of(rows[-1])
                self._events += len(rows)
            pace()
            if self._position.event_id == target or (tail.rows and tail.rows[-1][0] > target):
                break
        self._new_seals = self._seals.finish()

    def difference(self, connection: Connection) -> str | None:
        """The first difference, in one line: the block, which locates an edit, before the fold."""
        if self._position != self._copy.position:
            return f"event {self._copy.position.as_of}, the newest that was folded, is gone or has changed"
        return "; ".join([*self._changed_rows(connection), *self._changed_folds()]) or None

    def _changed_rows(self, connection: Connection) -> list[str]:
        if self._seals.changed is None:
            return []
        first_id, last_id = self._seals.changed
        bad_id = first_bad_id(connection, first_id, last_id)
        broken = [] if bad_id is None else [broken_at(bad_id)]
        return [f"a row among the events {first_id} to {last_id} was changed, added or removed", *broken]

    def _changed_folds(self) -> list[str]:
        for fold in self._copy.folds:
            found = _first_difference(fold.name, self._copy.entries[fold.name], self._states[fold.name])
            if found is not None:
                return [found]
        return []

    def outcome(self, difference: str | None) -> Outcome:
        compared = self._seals.compared
        names = tuple(fold.name for fold in self._copy.folds)
        report = VerifyReport(difference is None, self._copy.position.as_of, names, self._events, compared, difference)
        return Outcome(report, self._new_seals if report.ok else {})


def _first_difference(name: str, published: dict[bytes, bytes], state: State) -> str | None:
    replayed = {key: value for key, value in state.changes() if value is not None}
    if replayed == published:
        return None
    for key in sorted(replayed.keys() | published.keys()):
        if replayed.get(key) != published.get(key):
            return f"fold {name}: {_readable(key, published.get(key) or replayed.get(key))} differs from the replay"
    return None


def _readable(key: bytes, value: bytes | None) -> str:
    if key[:1] == b"c":
        return f"cell {key[1:].decode(errors='replace')!r}"
    table = key[2 : 2 + key[1]].decode(errors="replace")
    try:
        entry = repr(unpack(value or b"")[0])[:80]
    except Exception:
        entry = key.hex()[:80]
    return f"table {table!r}, key {entry}"
