"""The hash chain: its two formulas, and the verification of a whole ledger.

The hash covers the parsed `meta`, not its text, and the formula `content` leaves `id` and `ts` unprotected. The cache's
own anchor and seals cover the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.rows import HASH_COLUMNS, RawRow, parse_meta

Formula = Literal["full", "content"]
FORMULAS: tuple[Formula, ...] = ("full", "content")

HASHED_ROW_SQL = "SELECT id, ts, kind, content, meta, prev_hash, hash FROM events"


def json_encoder(*, sort_keys: bool = False, separators: tuple[str, str] = (", ", ": ")) -> Callable[[object], str]:
    """A function that returns the text of `json.dumps`. A value that contains itself raises `RecursionError`.

    `JSONEncoder.encode` creates its encoder in C anew for every value, which is half the cost of a small one.
    """
    own = json.JSONEncoder(sort_keys=sort_keys, separators=separators)
    item, key = separators
    try:
        make = json.encoder.c_make_encoder  # type: ignore[attr-defined]
        encode = make(None, own.default, encode_basestring_ascii, None, key, item, sort_keys, False, True)
    except (AttributeError, TypeError):
        # Not a documented part of Python: an interpreter may lack it.
        return own.encode
    return lambda value: "".join(encode(value, 0))


_canonical = json_encoder(sort_keys=True, separators=(",", ":"))


class HashedRow(NamedTuple):
    """A raw row of the ledger with its hashes."""

    id: Any
    ts: Any
    kind: Any
    content: Any
    meta: Any
    prev_hash: Any
    hash: Any


class ChainReport(NamedTuple):
    """The result of a verification of the chain.

    Attributes:
        rows_checked: rows with a hash that were checked, including the first bad one, where the verification ends.
        rows_without_hash: rows that the chain skips, up to there.
        formula: the formula of the first hashed row; None without hashed rows, or if it fits neither formula.
        first_bad_id: the first row whose hash does not fit its values, or whose `prev_hash` is not the hash before it.
    """

    rows_checked: int
    rows_without_hash: int
    formula: Formula | None
    first_bad_id: int | None

    @property
    def ok(self) -> bool:
        """Whether no bad row was found. Says nothing about rows without a hash, or about a tail that was cut off."""
        return self.first_bad_id is None

    @property
    def problem(self) -> str | None:
        """What was found, in a few words; None if no bad row was."""
        return None if self.first_bad_id is None else broken_at(self.first_bad_id)


def broken_at(event_id: int) -> str:
    """The words of every message that says where the chain is broken."""
    return f"the hash chain is broken at event {event_id}"


def canonical_json(value: object) -> str:
    """JSON as the hash covers it: sorted keys, no spaces, non-ASCII escaped."""
    if type(value) is str:
        return encode_basestring_ascii(value)
    return _canonical(value)


def hash_of_parts(
    formula: Formula, event_id: int, ts_json: str, kind_json: str, content_json: str, meta_json: str, prev_json: str
) -> str:
    """SHA-256 in hex of an event, given its values as canonical JSON."""
    # The sorted keys are written by hand: with one JSON text per part, a writer prepares most of them before it locks.
    if formula == "full":
        text = (
            f'{{"content":{content_json},"id":{event_id},"kind":{kind_json},"meta":{meta_json},'
            f'"prev_hash":{prev_json},"ts":{ts_json}}}'
        )
    else:
        text = f'{{"content":{content_json},"kind":{kind_json},"meta":{meta_json},"prev_hash":{prev_json}}}'
    return sha256(text.encode()).hexdigest()


def event_hash(
    formula: Formula, event_id: int, ts: str, kind: str, content: str, meta: dict[str, Any], prev_hash: str | None
) -> str:
    """SHA-256 in hex of one event; `meta` is the parsed object, `prev_hash` None for the first event of the chain.

    Raises:
        TypeError, ValueError, RecursionError: a value cannot be written as JSON.
    """
    parts = (canonical_json(value) for value in (ts, kind, content, meta, prev_hash))
    return hash_of_parts(formula, event_id, *parts)


def fits(formula: Formula, row: HashedRow) -> bool:
    """Whether the row's hash is that of its values; False if they cannot be hashed."""
    try:
        meta = parse_meta(row.meta)
        expected = event_hash(formula, row.id, row.ts, row.kind, row.content, meta, row.prev_hash)
    except (TypeError, ValueError, RecursionError):
        return False
    return bool(expected == row.hash)


def detect_formula(row: HashedRow) -> Formula | None:
    """The formula of the row's hash; None if it fits neither."""
    return next((formula for formula in FORMULAS if fits(formula, row)), None)


class _ChainVerifier:
    """Follows the chain row by row."""

    def __init__(self) -> None:
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
        if self.formula is None or row.prev_hash != self.last_hash:
            return False
        self.last_hash = row.hash
        return first or fits(self.formula, row)

    def begin_behind(self, first: HashedRow, last: HashedRow) -> bool:
        """Trust the rows from `first` to `last`. Returns whether one of the two shows the formula."""
        self.rows_checked = 1
        self.formula = detect_formula(first) or detect_formula(last)
        self.last_hash = last.hash
        return self.formula is not None

    def report(self, first_bad_id: int | None) -> ChainReport:
        return ChainReport(self.rows_checked, self.rows_without_hash, self.formula, first_bad_id)


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


def first_bad_id(connection: Connection, first_id: int, last_id: int) -> int | None:
    """The first of the events `first_id` to `last_id` that does not continue the chain; those before are trusted.

    None if the chain holds, if there is no such event, or if the rows before fit no formula.

    Raises:
        LedgerError: in one of its kinds, when the ledger cannot be read.
    """
    with connection.lock:
        connection.handle()
        if not set(HASH_COLUMNS) <= set(connection.columns):
            return None
        before = "WHERE hash IS NOT NULL AND id < ? ORDER BY id"
        ends = [
            fetch_batch(connection, f"{HASHED_ROW_SQL} {before} {order} LIMIT ?", (first_id,), 1).rows
            for order in ("ASC", "DESC")
        ]
    verifier = _ChainVerifier()
    if all(ends) and not verifier.begin_behind(*(HashedRow._make(rows[0]) for rows in ends)):
        return None
    condition = "WHERE id >= ? AND id <= ?"
    while True:
        with connection.lock:
            sql = f"{HASHED_ROW_SQL} {condition} ORDER BY id LIMIT ?"
            rows, complete = fetch_batch(connection, sql, (first_id, last_id), limits.TAIL_ROWS_MAX)
        bad_id = verifier.first_bad_id(rows)
        if bad_id is not None or complete:
            return bad_id
        first_id, condition = rows[-1][0], "WHERE id > ? AND id <= ?"


def _verify_one_file(connection: Connection) -> ChainReport | None:
    """None if the ledger was replaced meanwhile."""
    verifier = _ChainVerifier()
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
