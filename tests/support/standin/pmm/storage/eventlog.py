"""The append-only log of events in one SQLite file, as one process sees it: the appends of others it never hears of."""

import hashlib
import json
import os
import sqlite3
import threading
from datetime import datetime, timezone

from pmm.work import whole


class EventLog:
    """An event is `{"id", "ts", "kind", "content", "meta"}`."""

    DEFAULT_PATH = ".data/pmm.db"
    JOURNAL_MODE = "WAL"

    def __init__(self, path=".data/pmm.db"):
        self.path = path
        self._lock = threading.RLock()
        self._append_listeners = []
        self._events_cache = None
        self._cache_last_id = 0
        self.has_embeddings_index = False
        folder = os.path.dirname(path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        self._conn = sqlite3.connect(path, check_same_thread=False)
        self._init_db()

    def _init_db(self):
        with self._lock, self._conn:
            self._conn.execute(f"PRAGMA journal_mode={self.JOURNAL_MODE}")
            self._conn.execute("PRAGMA synchronous=NORMAL")
            self._conn.execute(
                "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY AUTOINCREMENT, ts TEXT NOT NULL,"
                " kind TEXT NOT NULL, content TEXT NOT NULL, meta TEXT NOT NULL, prev_hash TEXT, hash TEXT)"
            )
            columns = {row[1] for row in self._conn.execute("PRAGMA table_info(events)")}
            for column in ("prev_hash", "hash"):
                if column not in columns:
                    self._conn.execute(f"ALTER TABLE events ADD COLUMN {column} TEXT")
            self._conn.execute("CREATE INDEX IF NOT EXISTS idx_events_kind_id ON events(kind, id)")
            self._conn.execute("CREATE INDEX IF NOT EXISTS idx_events_ts_id ON events(ts, id)")
            self._conn.execute(
                "CREATE INDEX IF NOT EXISTS idx_metrics_lookup ON events(id DESC) WHERE kind='metrics_update'"
            )
            self._conn.execute(
                "CREATE TABLE IF NOT EXISTS event_embeddings (eid INTEGER PRIMARY KEY, digest TEXT, embedding BLOB,"
                " summary TEXT, keywords TEXT, created_at INTEGER)"
            )
            self.has_embeddings_index = True

    @staticmethod
    def _parse_meta(text):
        try:
            return json.loads(text or "{}")
        except ValueError:
            return {}

    @staticmethod
    def _hash_event(id, ts, kind, content, meta, prev_hash):
        payload = {"id": id, "ts": ts, "kind": kind, "content": content, "meta": meta, "prev_hash": prev_hash}
        return hashlib.sha256(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()

    def register_append_listener(self, listener):
        self._append_listeners.append(listener)

    def append(self, kind, content, meta=None):
        """The new event's id; listeners hear of it after the commit."""
        meta_text = json.dumps(meta or {})
        meta = json.loads(meta_text)
        ts = datetime.now(timezone.utc).isoformat()
        with self._lock:
            with self._conn:
                cursor = self._conn.execute(
                    "INSERT INTO events (ts, kind, content, meta) VALUES (?, ?, ?, ?)", (ts, kind, content, meta_text)
                )
                event_id = int(cursor.lastrowid)
                row = self._conn.execute(
                    "SELECT hash FROM events WHERE id < ? ORDER BY id DESC LIMIT 1", (event_id,)
                ).fetchone()
                prev_hash = row[0] if row else None
                digest = self._hash_event(event_id, ts, kind, content, meta, prev_hash)
                self._conn.execute(
                    "UPDATE events SET prev_hash = ?, hash = ? WHERE id = ?", (prev_hash, digest, event_id)
                )
            event = {"id": event_id, "ts": ts, "kind": kind, "content": content, "meta": meta}
            if self._events_cache is not None:
                self._events_cache.append(event)
                self._cache_last_id = event_id
        self._notify(event)
        return event_id

    def _notify(self, event):
        for listener in list(self._append_listeners):
            try:
                listener(event)
            except Exception:
                pass

    def read_all(self):
        """The live list: the same object at each call, which appends make longer."""
        with self._lock:
            if self._events_cache is None:
                rows = self._conn.execute("SELECT id, ts, kind, content, meta FROM events ORDER BY id").fetchall()
                self._events_cache = [
                    {"id": row[0], "ts": row[1], "kind": row[2], "content": row[3], "meta": self._parse_meta(row[4])}
                    for row in rows
                ]
                whole("EventLog.read_all", self._events_cache)
                self._cache_last_id = rows[-1][0] if rows else 0
            return self._events_cache

    def read_tail(self, *, limit):
        return self.read_all()[-int(limit) :]

    def read_after_id(self, *, after_id, limit):
        events = whole("EventLog.read_after_id", self.read_all())
        return [event for event in events if event["id"] > after_id][: int(limit)]

    def read_after_ts(self, *, after_ts, limit):
        events = whole("EventLog.read_after_ts", self.read_all())
        return [event for event in events if str(event["ts"]) > str(after_ts)][: int(limit)]

    def query(self, kind=None, limit=100):
        """The newest events, newest first, of all kinds."""
        with self._lock:
            rows = self._conn.execute(
                "SELECT id, ts, kind, content, meta FROM events ORDER BY id DESC LIMIT ?", (int(limit),)
            ).fetchall()
        return [self._row(row) for row in rows]

    def get_event(self, event_id):
        with self._lock:
            row = self._conn.execute(
                "SELECT id, ts, kind, content, meta FROM events WHERE id = ?", (int(event_id),)
            ).fetchone()
        return self._row(row) if row else None

    def _row(self, row):
        return {
            "id": row[0],
            "timestamp": row[1],
            "kind": row[2],
            "content": row[3],
            "meta": self._parse_meta(row[4]),
        }

    def insert_embedding_row(self, *, eid, digest, embedding_blob, summary="", keywords="", created_at=0):
        with self._lock, self._conn:
            self._conn.execute(
                "INSERT OR REPLACE INTO event_embeddings (eid, digest, embedding, summary, keywords, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (eid, digest, embedding_blob, summary, keywords, created_at),
            )
        return True

    def verify_chain(self):
        """Whether every row has the hash of the row before it, and its own by the full formula."""
        with self._lock:
            rows = self._conn.execute(
                "SELECT id, ts, kind, content, meta, prev_hash, hash FROM events ORDER BY id"
            ).fetchall()
        before = None
        for row_id, ts, kind, content, meta, prev_hash, digest in whole("EventLog.verify_chain", rows):
            if prev_hash != before:
                return False
            if digest != self._hash_event(row_id, ts, kind, content, self._parse_meta(meta), prev_hash):
                return False
            before = digest
        return True


_default_eventlog = None


def get_default_eventlog():
    """The log of the default path, made once, by the class that this module's name `EventLog` stands for."""
    global _default_eventlog
    if _default_eventlog is None:
        _default_eventlog = EventLog()
    return _default_eventlog
