"""The daemon's own numbers, written by its threads and read by the stats command.

Each attribute has one writer; a reader may see numbers of two moments side by side.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from pmm_cached.workers import Workers
from pmm_shm import versions


@dataclass
class EmbeddingStatus:
    """Numbers of the text vectors and of the leases on them.

    Attributes:
        lease_waits: requests that had to wait, for others held all that they asked for.
        late_puts: vectors that were refused, for their leases had ended.
        tables: model to the numbers of its table of event vectors.
        importing: [rows compared, rows in all] while the ledger's `event_embeddings` is compared.
        problem: why a table does not come on.
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
class Status:
    """Counters and states of one daemon, since its start.

    Attributes:
        followed_monotonic: when the follower came on last.
        caught_up_monotonic: the last moment at which what is published surely was the head of the log.
        problem: why the follower does not come on.
        last_error: what went wrong last, whether it was mended since or not.
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
    # Looked up once: an installation that is replaced under a running daemon does not change what runs.
    versions: dict[str, str | int] = field(default_factory=versions.of_this_process)
    workers: Workers = field(default_factory=Workers)

    def failed(self, error: str) -> None:
        """Remember what went wrong."""
        self.last_error, self.last_error_monotonic = error, time.monotonic()

    def as_dict(self) -> dict[str, Any]:
        """What the stats command answers of them: plain values, times in milliseconds."""
        now = time.monotonic()
        return {
            "pid": os.getpid(),
            **self.versions,
            "ledger": self.ledger,
            "uptime_ms": int((now - self.started_monotonic) * 1_000),
            "as_of": self.as_of,
            "caught_up_age_ms": int((now - self.caught_up_monotonic) * 1_000),
            "heartbeat_age_ms": int((now - self.followed_monotonic) * 1_000),
            "is_published": self.is_published,
            "problem": self.problem or self.rebuild_problem,
            "last_error": self.last_error,
            "last_error_age_ms": None if self.last_error is None else int((now - self.last_error_monotonic) * 1_000),
            "folds": list(self.folds),
            "events_folded": self.events_folded,
            "commits": self.commits,
            "rebuilds": self.rebuilds,
            "rebuilding": list(self.rebuilding),
            "rebuild_waits_for_pid": self.rebuild_waits_for_pid,
            "verifications_passed": self.verifications_passed,
            "verifications_failed": self.verifications_failed,
            "verified_as_of": self.verified_as_of,
            "last_difference": self.last_difference,
            "sealed_blocks": self.sealed_blocks,
            "history_breaks": self.history_breaks,
            "commands": self.commands,
            "malformed_messages": self.malformed_messages,
            "connections": self.connections,
            "hang_ups": self.hang_ups,
            "map_growths": self.map_growths,
            "embeddings": asdict(self.embeddings),
            "workers": self.workers.as_dict(),
        }
