"""The verification of the hash chain. `new_events` has its two formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError
from pmm_shm.frozen import json_text, plain, result
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.new_events import FORMULAS, Formula, event_hash
from pmm_shm.ledger.rows import HASH_COLUMNS, RawRow, parse_meta

HASHED_ROW_SQL = "SELECT id, ts, kind, content, meta, prev_hash, hash FROM events"


class HashedRow(NamedTuple):
    """A raw row of the ledger with its hashes."""

    id: Any
    ts: Any
    kind: Any
    content: Any
    meta: Any
    prev_hash: Any
    hash: Any


@result
class ChainReport(NamedTuple):
    """The result of a verification of the chain.

    Attributes:
        rows_checked: rows with a hash that were checked, including the first bad one, where the verification ends.
        rows_without_hash: rows that the chain skips, up to there.
        formula: the formula of the first hashed row; None without hashed rows, or if it fits neither formula.
        first_bad_id: the first row whose hash does not fit its values, or whose `prev_hash` is not the hash of an
            earlier row.
        fork: the first two events that follow the same event, both with a valid hash; None in a linear chain. The
            verification goes on behind them: a fork is no sign of tampering.
        forks: number of events that follow one which an earlier event follows already, up to there.
    """

    rows_checked: int
    rows_without_hash: int
    formula: Formula | None
    first_bad_id: int | None
    fork: tuple[int, int] | None = None
    forks: int = 0

    @property
    def ok(self) -> bool:
        """Whether no bad row and no fork was found. Says nothing about rows without a hash, or about a removed tail."""
        return self.first_bad_id is None and self.fork is None

    @property
    def problems(self) -> list[str]:
        """A line for the bad row and for the fork, if there are any."""
        broken = [] if self.first_bad_id is None else [broken_at(self.first_bad_id)]
        return broken + ([] if self.fork is None else [forked_at(self.fork, self.forks)])

    @property
    def problem(self) -> str | None:
        """What was found, in one line; None if nothing was."""
        return "; ".join(self.problems) or None

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


def broken_at(event_id: int) -> str:
    """The words of every message that says where the chain is broken."""
    return f"the hash chain is broken at event {event_id}"


def forked_at(pair: tuple[int, int], count: int) -> str:
    """The words of every message about forks; `pair` is the first of them."""
    others = f"; {count - 1:,} more {'follows' if count == 2 else 'follow'}" if count > 1 else ""
    return (
        f"the hash chain forks: events {pair[0]} and {pair[1]} have the same predecessor{others}. {FORKED_BY}; "
        f"{FORKS_ARE_HARMLESS}"
    )


FORKED_BY = "Several processes of PMM appended at once, or another program read the newest hash before it locked"
FORKS_ARE_HARMLESS = (
    "no event is lost or changed, reads and appends go on at the newest row, and nothing needs to be repaired"
)


def fits(formula: Formula, row: RawRow) -> bool:
    """Whether the hash of a row of `HASHED_ROW_SQL` is that of its values; False if they cannot be hashed."""
    event_id, ts, kind, content, meta, prev_hash, own = row
    try:
        expected = event_hash(formula, event_id, ts, kind, content, parse_meta(meta), prev_hash)
    except (TypeError, ValueError, RecursionError):
        return False
    return bool(expected == own)


def detect_formula(row: RawRow) -> Formula | None:
    """The formula of the row's hash; None if it fits neither."""
    return next((formula for formula in FORMULAS if fits(formula, row)), None)


class _ChainVerifier:
    """Follows the chain row by row, and all its branches where it forks.

    Parameters:
        connection: where earlier rows are looked up; its lock is taken.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Hashes of the newest rows, the oldest first, and whether a later row follows: branches begin and go on near
        # each other.
        self._recent: dict[Any, bool] = {}
        self.fork: tuple[int, int] | None = None
        self.forks = 0
        self.rows_checked = 0
        self.rows_without_hash = 0
        self.formula: Formula | None = None
        self.last_hash: Any = None

    def first_bad_id(self, rows: list[RawRow]) -> int | None:
        """The id of the first of the next rows that does not continue the chain."""
        return next((row[0] for row in rows if not self._accepts(HashedRow._make(row))), None)

    def _accepts(self, row: HashedRow) -> bool:
        if row.hash is None:
            self.rows_without_hash += 1
            return True
        first = self.rows_checked == 0
        self.rows_checked += 1
        if first:
            self.formula = detect_formula(row)
        if self.formula is None or not (first or fits(self.formula, row)):
            return False
        if row.prev_hash != self.last_hash and (first or not self._is_branch(row)):
            return False
        if row.prev_hash in self._recent:
            self._recent[row.prev_hash] = True
        self.last_hash = row.hash
        self._recent[row.hash] = False
        if len(self._recent) > limits.TAIL_ROWS_MAX:
            del self._recent[next(iter(self._recent))]
        return True

    def _is_branch(self, row: HashedRow) -> bool:
        """Whether the row, whose own hash is right, follows an earlier one than that before it."""
        if row.prev_hash is not None and type(row.prev_hash) is not str:
            return False
        if self.fork is None:
            sibling = self._earlier("prev_hash IS ?", row.prev_hash, row.id)
            if sibling is None:
                return False
            self.fork, self.forks = (sibling, row.id), 1
            return True
        # Each program that found the ledger empty began without a predecessor.
        has_sibling = True if row.prev_hash is None else self._recent.get(row.prev_hash)
        if has_sibling is None:
            has_sibling = self._earlier("prev_hash IS ?", row.prev_hash, row.id) is not None
            if not has_sibling and self._earlier("hash IS ?", row.prev_hash, row.id) is None:
                return False
        self.forks += has_sibling
        return True

    def _earlier(self, condition: str, value: Any, event_id: int) -> int | None:
        """The first hashed event before `event_id` that fits the condition."""
        sql = f"SELECT id FROM events WHERE {condition} AND hash IS NOT NULL AND id < ? ORDER BY id LIMIT ?"
        with self._connection.lock:
            rows = fetch_batch(self._connection, sql, (value, event_id), 1).rows
        return rows[0][0] if rows else None

    def begin_behind(self, first: HashedRow, last: HashedRow) -> bool:
        """Trust the rows from `first` to `last`. Returns whether one of the two shows the formula."""
        self.rows_checked = 1
        self.formula = detect_formula(first) or detect_formula(last)
        self.last_hash = last.hash
        return self.formula is not None

    def report(self, first_bad_id: int | None) -> ChainReport:
        return ChainReport(self.rows_checked, self.rows_without_hash, self.formula, first_bad_id, self.fork, self.forks)


def verify_chain(connection: Connection) -> ChainReport:
    """Verify the chain of the whole ledger in bounded batches; the lock is free between them.

    `connection` only reads. No content of a row makes this raise.

    Raises:
        LedgerError: in one of its kinds, when the ledger cannot be read.
    """
    for _ in range(limits.REPLAYS_MAX):
        report = _verify_one_file(connection)
        if report is not None:
            return report
    raise LedgerBusyError(f"{connection.path}: it was replaced {limits.REPLAYS_MAX} times while it was verified")


def verify_range(connection: Connection, first_id: int, last_id: int) -> ChainReport:
    """Verify the chain of the events `first_id` to `last_id`; those before are trusted.

    Nothing is bad where the ledger has no hashes, or where the rows before fit no formula.

    Raises:
        LedgerError: in one of its kinds, when the ledger cannot be read.
    """
    verifier = _ChainVerifier(connection)
    with connection.lock:
        connection.handle()
        if not set(HASH_COLUMNS) <= set(connection.columns):
            return verifier.report(None)
        before = "WHERE hash IS NOT NULL AND id < ? ORDER BY id"
        ends = [
            fetch_batch(connection, f"{HASHED_ROW_SQL} {before} {order} LIMIT ?", (first_id,), 1).rows
            for order in ("ASC", "DESC")
        ]
    if all(ends) and not verifier.begin_behind(*(HashedRow._make(rows[0]) for rows in ends)):
        return verifier.report(None)
    condition = "WHERE id >= ? AND id <= ?"
    while True:
        with connection.lock:
            sql = f"{HASHED_ROW_SQL} {condition} ORDER BY id LIMIT ?"
            rows, complete = fetch_batch(connection, sql, (first_id, last_id), limits.TAIL_ROWS_MAX)
        bad_id = verifier.first_bad_id(rows)
        if bad_id is not None or complete:
            return verifier.report(bad_id)
        first_id, condition = rows[-1][0], "WHERE id > ? AND id <= ?"


def _verify_one_file(connection: Connection) -> ChainReport | None:
    """None if the ledger was replaced meanwhile."""
    verifier = _ChainVerifier(connection)
    with connection.lock:
        connection.handle()
        identity = connection.identity
        hashed = set(HASH_COLUMNS) <= set(connection.columns)
    columns = "prev_hash, hash" if hashed else "NULL, NULL"
    after, condition = None, ""
    while True:
        with connection.lock:
            connection.handle()
            if connection.identity != identity:
                return None
            sql = f"SELECT id, ts, kind, content, meta, {columns} FROM events {condition} ORDER BY id LIMIT ?"
            parameters = () if after is None else (after,)
            rows, complete = fetch_batch(connection, sql, parameters, limits.TAIL_ROWS_MAX)
        bad_id = verifier.first_bad_id(rows)
        if bad_id is not None or complete:
            return verifier.report(bad_id)
        after, condition = rows[-1][0], "WHERE id > ?"
