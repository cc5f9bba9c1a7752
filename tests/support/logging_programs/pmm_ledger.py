"""PMM's table, written with plain sqlite3 as PMM does: one line on stdin is one event.

    event KIND TEXT
    stop

Each line is answered by the newest id.
"""

import json
import sqlite3
import sys
import time


def main() -> None:
    connection = sqlite3.connect(sys.argv[1])
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY AUTOINCREMENT, ts TEXT NOT NULL, kind TEXT NOT NULL,"
        " content TEXT NOT NULL, meta TEXT NOT NULL, prev_hash TEXT, hash TEXT)"
    )
    connection.commit()
    for line in sys.stdin:
        verb, *words = line.rstrip("\n").split(maxsplit=2)
        if verb == "stop":
            break
        ts = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        row = (ts, words[0], words[1], json.dumps({"length": len(words[1])}))
        event_id = connection.execute("INSERT INTO events (ts, kind, content, meta) VALUES (?, ?, ?, ?)", row).lastrowid
        connection.commit()
        print(event_id, flush=True)
    connection.close()


main()
