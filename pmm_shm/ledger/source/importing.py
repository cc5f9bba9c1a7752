"""Moving a ledger into PostgreSQL: every row is looked at first, and nothing is written unless all of them can go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pmm_shm.errors import ChainError, NotALedgerError
from pmm_shm.ledger.chain import HashedRow, detect_formula, fits
from pmm_shm.ledger.connection import Connection as Ledger
from pmm_shm.ledger.new_events import Formula
from pmm_shm.ledger.rows import HASH_COLUMNS, InvalidText, RawRow
from pmm_shm.ledger.source.tables import EVENT_COLUMNS, SourceLedger, create_ledger, create_tables
from pmm_shm.ledger.tail import START, Position, TailReader, head_of, ordered_columns

if TYPE_CHECKING:
    from psycopg import Connection

    from pmm_shm.ledger.json_lines import CountProgress

_COPY = f"COPY pmm_events (ledger, {', '.join(EVENT_COLUMNS)}) FROM STDIN"


class ImportPlan(NamedTuple):
    """A ledger that can go into PostgreSQL, up to `head_id`.

    Attributes:
        formula: of its hashes.
        head_id: its newest event when it was looked at; 0 for an empty ledger.
    """

    formula: Formula
    head_id: int


def check_importable(ledger: Ledger, progress: CountProgress = lambda done: None) -> ImportPlan:
    """Look at every row of a ledger.

    Raises:
        NotALedgerError: a row cannot go; the message has its id and the reason.
        ChainError: the hash chain is broken or forks there.
        LedgerError: the ledger cannot be read.
    """
    formula: Formula | None = None
    next_id, last_hash, head_id = 1, None, 0
    for rows in _batches(ledger, head_of(ledger)):
        for row in rows:
            reason = _obstacle(row, next_id)
            if reason is not None:
                raise NotALedgerError(f"{ledger.path}: event {row[0]} cannot go into PostgreSQL: {reason}")
            hashed = HashedRow._make(row)
            formula = formula or detect_formula(hashed)
            if formula is None or hashed.prev_hash != last_hash or not fits(formula, hashed):
                raise ChainError(f"{ledger.path}: the hash chain is broken or forks at event {row[0]}")
            next_id, last_hash, head_id = row[0] + 1, hashed.hash, row[0]
        progress(head_id)
    return ImportPlan(formula or "full", head_id)


def import_ledger(
    ledger: Ledger, plan: ImportPlan, connection: Connection, name: str, progress: CountProgress = lambda done: None
) -> SourceLedger:
    """Make the tables where they are missing, and a ledger of these rows, in one transaction.

    Raises:
        ConfigError: there is a ledger of this name.
        NotALedgerError: the ledger was replaced or edited since it was looked at.
        psycopg.Error: PostgreSQL refused it; nothing was written.
    """
    with connection.transaction():
        create_tables(connection)
        made = create_ledger(connection, name, plan.formula)
        if plan.head_id:
            last: RawRow | None = None
            with connection.cursor().copy(_COPY) as copy:
                for rows in _batches(ledger, plan.head_id):
                    for row in rows:
                        if row[5] != (None if last is None else last[6]):
                            raise NotALedgerError(f"{ledger.path}: it was replaced while it was imported")
                        copy.write_row((made.number, *row))
                        last = row
                    progress(0 if last is None else last[0])
            if last is None or last[0] != plan.head_id:
                raise NotALedgerError(f"{ledger.path}: it was replaced while it was imported")
    return made


def _batches(ledger: Ledger, head_id: int) -> Iterator[list[RawRow]]:
    """The rows up to an event, with the columns of PostgreSQL's table; in short statements."""
    with ledger.lock:
        ledger.handle()
        columns = ordered_columns(ledger.columns)
    if not set(HASH_COLUMNS) <= set(columns):
        if head_id:
            raise NotALedgerError(f"{ledger.path}: its events have no hashes, and PostgreSQL's copy needs them")
        return
    places = [columns.index(name) for name in EVENT_COLUMNS]
    reader, position = TailReader(ledger, None, whole_rows=True), START
    while True:
        with ledger.lock:
            tail = reader.read(position, until_id=head_id)
        if not tail.is_anchored:
            raise NotALedgerError(f"{ledger.path}: it was replaced or edited while it was read")
        yield [tuple(row[place] for place in places) for row in tail.rows]
        if tail.is_complete or _is_at(tail.position, head_id):
            return
        position = tail.position


def _is_at(position: Position, head_id: int) -> bool:
    return position.as_of >= head_id


def _obstacle(row: RawRow, next_id: int) -> str | None:
    if row[0] != next_id:
        return f"its id does not follow the one before, {next_id - 1}"
    for name, value in zip(EVENT_COLUMNS[1:], row[1:], strict=True):
        if value is None and name == "prev_hash" and next_id == 1:
            continue
        if isinstance(value, InvalidText):
            return f"{name} is not UTF-8"
        if not isinstance(value, str):
            return f"{name} is {'NULL' if value is None else 'not text'}"
        if "\0" in value:
            return f"{name} holds a NUL character"
    return None
