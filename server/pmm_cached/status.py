"""The daemon's own numbers, written by its threads and read by the stats command.

Each attribute has one writer. A reader may see numbers of different moments side by side.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from pmm_cached.workers import Workers
from pmm_shm import versions


class ImportCounts(NamedTuple):
    """Rows that one comparison put into and removed from the event tables, and rows it could not use."""

    put: int
    removed: int
    malformed: int


@dataclass
class EmbeddingStatus:
    """Numbers of the text vectors, their leases, and the tables of event vectors.

    Attributes:
        lease_waits: requests that had to wait because others held all of their keys.
        late_puts: vectors that were refused because their leases had ended.
        tables: the numbers of each table of event vectors, by model.
        importing: [rows compared, all rows] while the ledger's `event_embeddings` are compared; otherwise None.
        problem: why a table does not make progress; None if all do.
    """

    text_vectors: int = 0
    text_vectors_max: int = 0
    leases_held: int = 0
    leases_granted: int = 0
    lease_waits: int = 0
    leases_expired: int = 0
    late_puts: int = 0
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    importing: list[int] | None = None
    problem: str | None = None


@dataclass
class WordStatus:
    """Numbers of the index of words.

    Attributes:
        kinds: of the events that it takes in.
        as_of: it has every one of them up to this event.
        rows: how many events are in it.
        size_bytes: of its file.
        problem: why it does not make progress; None if it does.
    """

    kinds: list[str] = field(default_factory=list)
    as_of: int = 0
    rows: int = 0
    size_bytes: int = 0
    problem: str | None = None


@dataclass
class Status:
    """Counters and states of one daemon, since its start.

    Attributes:
        followed_monotonic: when the follower last made progress.
        caught_up_monotonic: the last moment at which the published state surely was at the head of the log.
        problem: why the follower does not make progress; None if it does.
        rebuild_problem: why the last rebuild failed; None if it did not.
        last_error: the last error, whether it was mended since or not.
    """

    ledger: str
    started_monotonic: float = field(default_factory=time.monotonic)
    as_of: int = 0
    events_folded: int = 0
    commits: int = 0
    rebuilds: int = 0
    rebuilding: list[str] = field(default_factory=list)
    rebuild_waits_for_pid: int | None = None
    verifications_passed: int = 0
    verifications_failed: int = 0
    verified_as_of: int = 0
    last_difference: str | None = None
    sealed_blocks: int = 0
    history_breaks: int = 0
    malformed_messages: int = 0
    connections: int = 0
    hang_ups: int = 0
    commands: int = 0
    map_growths: int = 0
    problem: str | None = None
    rebuild_problem: str | None = None
    last_error: str | None = None
    last_error_monotonic: float = 0.0
    is_published: bool = False
    followed_monotonic: float = field(default_factory=time.monotonic)
    caught_up_monotonic: float = field(default_factory=time.monotonic)
    folds: list[str] = field(default_factory=list)
    embeddings: EmbeddingStatus = field(default_factory=EmbeddingStatus)
    words: WordStatus = field(default_factory=WordStatus)
    # Looked up once: a running daemon does not change when its installation is replaced.
    versions: dict[str, str | int] = field(default_factory=versions.of_this_process)
    workers: Workers = field(default_factory=Workers)

    def failed(self, error: str) -> None:
        """Remember an error."""
        self.last_error, self.last_error_monotonic = error, time.monotonic()

    def as_dict(self) -> dict[str, Any]:
        """The answer to the stats command: plain values, with ages in milliseconds in place of instants."""
        now = time.monotonic()
        shown = (one.name for one in fields(self) if not one.name.endswith("_monotonic"))
        numbers = {name: getattr(self, name) for name in shown} | {
            "pid": os.getpid(),
            **self.versions,
            "uptime_ms": int((now - self.started_monotonic) * 1_000),
            "caught_up_age_ms": int((now - self.caught_up_monotonic) * 1_000),
            "heartbeat_age_ms": int((now - self.followed_monotonic) * 1_000),
            "problem": self.problem or self.rebuild_problem,
            "last_error_age_ms": None if self.last_error is None else int((now - self.last_error_monotonic) * 1_000),
            "rebuilding": list(self.rebuilding),
            "folds": list(self.folds),
            "embeddings": asdict(self.embeddings),
            "words": asdict(self.words),
            "workers": self.workers.as_dict(),
            "worker_processes": self.workers.processes(),
            "same_pid_workers": self.workers.of_same_pid(),
        }
        del numbers["versions"], numbers["rebuild_problem"]
        return numbers
