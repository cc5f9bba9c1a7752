"""The tables in PostgreSQL, and a ledger's row in them.

`meta` is text: the hash covers its bytes. A row of `pmm_ledgers` is never updated: it is the lock of all appends to its
ledger, and as such it has to stay small. The grants for each role are in docs/howto/many-machines.md.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, NamedTuple, cast

from pmm_shm.errors import ConfigError, NotALedgerError
from pmm_shm.ledger.new_events import FORMULAS, Formula

if TYPE_CHECKING:
    from psycopg import Connection

FORMAT = 1
NAME_CHARS_MAX = 100
EVENT_COLUMNS = ("id", "ts", "kind", "content", "meta", "prev_hash", "hash")
_TABLES = (
    """CREATE TABLE IF NOT EXISTS pmm_ledgers (
        ledger int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL UNIQUE,
        identity uuid NOT NULL,
        formula text NOT NULL,
        format int NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS pmm_events (
        ledger int NOT NULL REFERENCES pmm_ledgers,
        id bigint NOT NULL,
        ts text NOT NULL,
        kind text NOT NULL,
        content text NOT NULL,
        meta text NOT NULL,
        prev_hash text,
        hash text NOT NULL,
        PRIMARY KEY (ledger, id)
    )""",
    """CREATE TABLE IF NOT EXISTS pmm_roles (
        ledger int NOT NULL REFERENCES pmm_ledgers,
        role text NOT NULL,
        holder uuid,
        token bigint NOT NULL,
        until timestamptz,
        PRIMARY KEY (ledger, role)
    )""",
    """CREATE TABLE IF NOT EXISTS pmm_text_vectors (
        model text NOT NULL,
        dimension int NOT NULL,
        text_key bytea NOT NULL,
        vector bytea,
        holder uuid,
        until timestamptz,
        PRIMARY KEY (model, dimension, text_key)
    )""",
)
# Of two that create the tables at once, one would fail: IF NOT EXISTS is no lock.
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('pmm-shm tables'))"


class SourceLedger(NamedTuple):
    """One ledger in PostgreSQL.

    Attributes:
        number: the value of the columns `ledger`.
        identity: made once, by `create`; what a replica was made from.
        formula: of the hashes of its events.
    """

    number: int
    name: str
    identity: uuid.UUID
    formula: Formula


def channel(number: int) -> str:
    """Where the appends to a ledger are announced; `number` is that of its row."""
    return f"pmm_events_{number}"


def checked_name(name: str) -> str:
    """The name of a ledger in PostgreSQL.

    Raises:
        ConfigError: empty, too long, or with characters that have no place in a name.
    """
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise ConfigError(f"name: expected 1 to {NAME_CHARS_MAX} printable characters, got {name!r:.80}")
    return name


def create_tables(connection: Connection) -> None:
    """Create the tables that are missing, within the caller's transaction.

    Raises:
        ConfigError: the database cannot hold every text.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigError(f"the database has the encoding {encoding}; create one with the encoding UTF8")
    connection.execute(_LOCK)
    for statement in _TABLES:
        connection.execute(statement)


def create_ledger(connection: Connection, name: str, formula: Formula = "full") -> SourceLedger:
    """A new ledger without events, within the caller's transaction.

    Raises:
        ConfigError: there is one of this name.
    """
    sql = (
        "INSERT INTO pmm_ledgers (name, identity, formula, format) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (name) DO NOTHING RETURNING ledger"
    )
    identity = uuid.uuid4()
    row = connection.execute(sql, (name, identity, formula, FORMAT)).fetchone()
    if row is None:
        raise ConfigError(f"a ledger named {name!r} is there already; choose another name")
    return SourceLedger(row[0], name, identity, formula)


def find_ledger(connection: Connection, name: str) -> SourceLedger:
    """The ledger of this name.

    Raises:
        NotALedgerError: there is none, or its format is a later version's.
    """
    exists = connection.execute("SELECT to_regclass('pmm_ledgers') IS NOT NULL").fetchone()
    row = None
    if exists is not None and exists[0]:
        sql = "SELECT ledger, identity, formula, format FROM pmm_ledgers WHERE name = %s"
        row = connection.execute(sql, (name,)).fetchone()
    if row is None:
        raise NotALedgerError(f"no ledger named {name!r} in this database; `pmm-shm cluster init` makes one")
    number, identity, formula, version = row
    if version != FORMAT or formula not in FORMULAS:
        raise NotALedgerError(f"the ledger {name!r} has format {version}; this version of pmm-shm knows {FORMAT}")
    return SourceLedger(number, name, identity, cast(Formula, formula))
