"""Why a ledger takes no events from this process: its owner's triggers, constraints and SQL functions.

Read when an append has failed, and by `doctor`.
"""

from __future__ import annotations

import re
import sqlite3

from pmm_shm.ledger.replicas import GUARD

_ALL_TRIGGERS = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND sql NOT NULL"
_TRIGGERS = f"{_ALL_TRIGGERS} AND lower(tbl_name) = 'events' ORDER BY name"
# A trigger of `events` may write to their tables.
_OTHERS_TRIGGERS = f"{_ALL_TRIGGERS} AND lower(tbl_name) <> 'events' ORDER BY name"
_TRY = "EXPLAIN INSERT INTO events (ts, kind, content, meta) VALUES ('', '', '', '')"
_NO_FUNCTION = re.compile(r"^(?:no such|unknown) function: (\w+)")
_EVENTS = re.compile(r"\bevents\b", re.IGNORECASE)
NEEDS_LEASE = "only the process that holds the writer lease of PMM 2 can append, all others can read"
"""Why a ledger of PMM 2 takes no events from this process."""


def needs_function(handle: sqlite3.Connection) -> str | None:
    """Why no plain program can append: an SQL function that only the owner's program has. None if it needs none.

    Writes nothing: the statement is only compiled.
    """
    try:
        handle.execute(_TRY).fetchall()
    except sqlite3.OperationalError as error:
        return refusal(handle, error) if _NO_FUNCTION.match(str(error)) else None
    return None


def refusal(handle: sqlite3.Connection, error: sqlite3.Error) -> str:
    """What SQLite said of an insert, with the trigger that is behind it."""
    text = str(error)
    triggers = _triggers(handle)
    if unknown := _NO_FUNCTION.match(text):
        name = unknown[1]
        if name == GUARD:
            return "a replica of a log in PostgreSQL: only its follower writes it, and pmm-shm appends there"
        guilty = [trigger for trigger, sql in triggers.items() if re.search(rf"\b{re.escape(name)}\s*\(", sql)]
        caller = _named(guilty) if guilty else "the table `events`"
        return (
            f"only its owner's program can append, all others can read: {caller} calls the SQL function {name}(), "
            "which no other program has"
        )
    name = text.rpartition(": ")[2].partition(".")[0]
    guilty = [trigger for trigger, sql in triggers.items() if text.replace("'", "''") in sql]
    if not guilty and name.lower() != "events" and ": " in text:
        # Of another table: a trigger wrote there.
        guilty = [trigger for trigger, sql in triggers.items() if re.search(rf"\b{re.escape(name)}\b", sql)]
    if not guilty and isinstance(error, sqlite3.IntegrityError) and " constraint failed" not in text:
        guilty = list(triggers)
    return f"{_named(guilty)}: {text}" if guilty else text


def interference(handle: sqlite3.Connection, *, is_dropped: bool) -> str:
    """Who dropped or changed an event that was inserted, as far as the schema tells."""
    pattern = r"raise\s*\(\s*ignore|delete\s" if is_dropped else r"update\s|replace\s"
    triggers = _triggers(handle)
    others = {name: sql for name, sql in _triggers(handle, _OTHERS_TRIGGERS).items() if _EVENTS.search(sql)}
    found = [name for name, sql in (triggers | others).items() if re.search(pattern, sql, re.IGNORECASE)]
    guilty = found or list(triggers)
    who = _named(guilty) if guilty else "a constraint" if is_dropped else "the type of a column"
    return f"{who} {'dropped' if is_dropped else 'changed'} an event of the table `events`"


def _triggers(handle: sqlite3.Connection, sql: str = _TRIGGERS) -> dict[str, str]:
    return {str(name): str(text) for name, text in handle.execute(sql).fetchall()}


def _named(triggers: list[str]) -> str:
    names = ", ".join(f"`{name}`" for name in triggers)
    return f"the trigger {names}" if len(triggers) == 1 else f"one of the triggers {names}"
