"""`EventLog.verify_chain`: the whole chain once, then only the rows behind it, while all that was committed is appends.

SQLite counts the commits of a ledger in WAL mode. As long as there were as many as rows appended (and vectors of these
stored), each of them was an append, and no row before has changed. Otherwise PMM's own function verifies the whole
chain. It does so, too, when the daemon's audit has found a difference.
"""

from __future__ import annotations

import json
import weakref
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from pmm_shm.ledger.freshness import commit_count
from pmm_shm.ledger.new_events import event_hash
from pmm_shm_pmm.fallback import Fallback, passing_errors
from pmm_shm_pmm.shared_log import SharedLog, log_of

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

_ATTEMPTS_MAX = 3
_COMMITS_MODULO = 2**32
_ROWS = "SELECT id, ts, kind, content, meta, prev_hash, hash FROM events WHERE id >= ? ORDER BY id"
_LAST = "SELECT id, ts, kind, content, meta, prev_hash, hash FROM events ORDER BY id DESC LIMIT 1"
_HAS_VECTORS = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'event_embeddings'"
_VECTORS = "SELECT count(*) FROM event_embeddings WHERE eid > ?"
Row = tuple[Any, ...]


class _Verified(NamedTuple):
    """The chain was right up to `last_row`, when the ledger had so many commits in this epoch of its connection."""

    epoch: Any
    commits: int
    last_row: Row
    audits_failed: int


def _commits(log: Any) -> tuple[Any, int]:
    """The epoch of the connection that counts, and the number of commits.

    Raises:
        Fallback: nobody counts them.
    """
    epoch, mark = log.cache.mark()
    commits = commit_count(mark)
    if commits is None:
        raise Fallback("a ledger without a count of commits")
    return epoch, commits


def _audits_failed(log: Any) -> int:
    """How many audits of the daemon that runs have found a difference; 0 without a daemon."""
    daemon = log.cache.stats()["daemon"]
    return 0 if daemon is None else int(daemon["verifications_failed"])


def _new_rows(eventlog: Any, log: Any, verified: _Verified) -> tuple[list[Row], int] | None:
    """The rows from the last verified one on, and the number of commits then; None if other rows may have changed."""
    for _ in range(_ATTEMPTS_MAX):
        epoch, commits = _commits(log)
        with eventlog._lock:
            rows = [tuple(row) for row in eventlog._conn.execute(_ROWS, (verified.last_row[0],)).fetchall()]
            vectors = 0
            if eventlog._conn.execute(_HAS_VECTORS).fetchall()[0][0]:
                vectors = eventlog._conn.execute(_VECTORS, (verified.last_row[0],)).fetchall()[0][0]
        if _commits(log) == (epoch, commits):
            committed = (commits - verified.commits) % _COMMITS_MODULO
            is_known = epoch == verified.epoch and rows and rows[0] == verified.last_row
            return (rows, commits) if is_known and committed == len(rows) - 1 + vectors else None
    return None


def _is_chain(rows: list[Row]) -> bool:
    """Whether each row but the first continues the one before."""
    before = rows[0][-1]
    for event_id, ts, kind, content, meta, prev_hash, digest in rows[1:]:
        if prev_hash != before or digest != event_hash("full", event_id, ts, kind, content, _meta(meta), prev_hash):
            return False
        before = digest
    return True


def _meta(text: Any) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}


def install(patcher: Patcher, module: ModuleType) -> None:
    original = patcher.original(module.__name__, "EventLog.verify_chain")
    kept: weakref.WeakKeyDictionary[SharedLog, _Verified] = weakref.WeakKeyDictionary()

    def verify_chain(self: Any) -> bool:
        log = log_of(self)
        verified = kept.pop(log, None)
        audits_failed = _audits_failed(log)
        if verified is not None and verified.audits_failed == audits_failed:
            found = _new_rows(self, log, verified)
            if found is not None:
                rows, commits = found
                if not _is_chain(rows):
                    return False
                kept[log] = verified._replace(commits=commits, last_row=rows[-1])
                return True
        epoch, commits = _commits(log)
        with self._lock:
            last = self._conn.execute(_LAST).fetchall()
        is_stable = _commits(log) == (epoch, commits)
        with passing_errors():
            answer = bool(original(self))
        if answer and last and is_stable:
            kept[log] = _Verified(epoch, commits, tuple(last[0]), audits_failed)
        return answer

    patcher.replace(module, "EventLog.verify_chain", verify_chain)
