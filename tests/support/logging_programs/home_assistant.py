"""Writes the tables of Home Assistant's recorder as it does; needs nothing but Python.

    fire TYPE JSON       one event, in a commit of its own; equal data is stored once
    purge KEEP           all but the newest KEEP events are deleted, as after `purge_keep_days`
    stop

Each line is answered by the newest event_id. The columns are those of its schema version 41.
"""

import sqlite3
import sys
import time
import zlib

SCHEMA = """
CREATE TABLE event_data (
    data_id INTEGER NOT NULL PRIMARY KEY, hash BIGINT, shared_data TEXT
);
CREATE TABLE event_types (event_type_id INTEGER NOT NULL PRIMARY KEY, event_type VARCHAR(64));
CREATE TABLE events (
    event_id INTEGER NOT NULL, event_type CHAR(0), event_data CHAR(0), origin CHAR(0), origin_idx SMALLINT,
    time_fired CHAR(0), time_fired_ts FLOAT, context_id CHAR(0), context_user_id CHAR(0), context_parent_id CHAR(0),
    data_id INTEGER, context_id_bin BLOB, context_user_id_bin BLOB, context_parent_id_bin BLOB, event_type_id INTEGER,
    PRIMARY KEY (event_id),
    FOREIGN KEY(data_id) REFERENCES event_data (data_id),
    FOREIGN KEY(event_type_id) REFERENCES event_types (event_type_id)
);
CREATE INDEX ix_event_data_hash ON event_data (hash);
CREATE UNIQUE INDEX ix_event_types_event_type ON event_types (event_type);
CREATE INDEX ix_events_data_id ON events (data_id);
CREATE INDEX ix_events_time_fired_ts ON events (time_fired_ts);
CREATE INDEX ix_events_event_type_id_time_fired_ts ON events (event_type_id, time_fired_ts);
CREATE INDEX ix_events_context_id_bin ON events (context_id_bin);
"""


def main() -> None:
    connection = sqlite3.connect(sys.argv[1])
    connection.execute("PRAGMA journal_mode=WAL")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone():
        connection.executescript(SCHEMA)
    for line in sys.stdin:
        verb, *words = line.rstrip("\n").split(maxsplit=2)
        if verb == "stop":
            break
        if verb == "fire":
            fire(connection, *words)
        else:
            purge(connection, int(words[0]))
        connection.commit()
        print(connection.execute("SELECT coalesce(max(event_id), 0) FROM events").fetchone()[0], flush=True)
    connection.close()


def fire(connection: sqlite3.Connection, event_type: str, data: str) -> None:
    type_id = _id_of(connection, "event_types", "event_type_id", event_type=event_type)
    data_id = _id_of(connection, "event_data", "data_id", hash=zlib.crc32(data.encode()), shared_data=data)
    connection.execute(
        "INSERT INTO events (origin_idx, time_fired_ts, data_id, event_type_id) VALUES (0, ?, ?, ?)",
        (time.time(), data_id, type_id),
    )


def purge(connection: sqlite3.Connection, keep: int) -> None:
    connection.execute("DELETE FROM events WHERE event_id <= (SELECT max(event_id) FROM events) - ?", (keep,))
    connection.execute("DELETE FROM event_data WHERE data_id NOT IN (SELECT data_id FROM events)")


def _id_of(connection: sqlite3.Connection, table: str, key: str, **values: object) -> int:
    where = " AND ".join(f"{name} = ?" for name in values)
    row = connection.execute(f"SELECT {key} FROM {table} WHERE {where}", tuple(values.values())).fetchone()
    if row:
        return row[0]
    names, marks = ", ".join(values), ", ".join("?" for _ in values)
    return connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values())).lastrowid


main()
