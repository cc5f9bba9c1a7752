"""The shape of `Cache.stats()`. Times end in `_ms` and are milliseconds, sizes in `_bytes`."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class ReadStats(TypedDict):
    """Reads of one group of methods by this process; `hit_rate` from 0.0 to 1.0.

    `cache_misses` are `caught_up` and `replayed` together: reads of the published state with the events after it, and
    reads that this process replayed alone. `events_processed` counts the events folded for both groups, `last_id` is
    the position of the newest read.
    """

    cache_hits: int
    cache_misses: int
    hit_rate: float
    caught_up: int
    replayed: int
    events_processed: int
    last_id: int


class ProjectionStats(ReadStats):
    """Reads of identity, traits, commitments, directives and recent events."""

    verifications_passed: int
    verifications_failed: int
    cached: bool


class MetricsStats(ReadStats):
    """Reads of metrics, stage and history, with the scores of the newest read."""

    recomputations: int
    ias: float
    gas: float


class EmbeddingStats(TypedDict):
    """Look-ups of texts by this process; sizes and leases are the daemon's, if one runs."""

    hits: int
    misses: int
    hit_rate: float
    maxsize: int
    currsize: int
    leases_granted: int
    lease_waits: int
    leases_expired: int


class AppendStats(TypedDict):
    """Events that this cache has appended, and what they survive."""

    appends: int
    durability: Literal["default", "full"]


class EventTableStats(TypedDict):
    """One table of event vectors."""

    rows: int
    dimension: int
    as_of: int
    kinds: list[str]
    refused: int
    last_refusal: str | None
    is_served: bool


class DaemonEmbeddingStats(TypedDict):
    """Text vectors and event tables of the daemon; `tables` by model."""

    text_vectors: int
    text_vectors_max: int
    leases_held: int
    leases_granted: int
    lease_waits: int
    leases_expired: int
    late_puts: int
    tables: dict[str, EventTableStats]
    importing: list[int] | None
    problem: str | None


class WorkerStats(TypedDict):
    """What workers have reported, summed; `live` of the `seen` ones still run."""

    live: int
    seen: int
    projection_hits: int
    projection_misses: int
    projection_caught_up: int
    projection_replayed: int
    projection_recomputations: int
    metrics_hits: int
    metrics_misses: int
    metrics_caught_up: int
    metrics_replayed: int
    metrics_recomputations: int
    events_folded: int
    embedding_hits: int
    embedding_misses: int
    appends_default: int
    appends_full: int
    pid_collisions: int


class WorkerProcessStats(TypedDict):
    """One live process that has reported: the reads of its caches, by what answered them."""

    pid: int
    caches: int
    hits: int
    caught_up: int
    replayed: int
    reported_age_ms: int


class DaemonSizes(TypedDict):
    """Sizes of files and memory."""

    store_used_bytes: int
    store_disk_bytes: int
    ledger_bytes: int
    wal_bytes: int
    resident_bytes: int


class WordStats(TypedDict):
    """The index of words."""

    kinds: list[str]
    as_of: int
    rows: int
    size_bytes: int
    problem: str | None


class ReplicaStats(TypedDict):
    """The source of a replica, and how far its follower is; as `pmm_shm.ledger.source.report.ReplicaStatus`."""

    name: str
    is_running: bool
    server: str | None
    timeline: int
    source_head_id: int | None
    lag_events: int
    lag_ms: int
    looked_ms: int | None
    forks: int
    lost_files: list[str]
    difference: str | None
    problem: str | None
    needs_a_person: bool


class _CaughtUp(TypedDict, total=False):
    caught_up_age_ms: int


class DaemonStats(_CaughtUp):
    """The daemon's own numbers, since its start; `caught_up_age_ms` is left out while it lags."""

    ledger: str
    pid: int
    version: str
    format: int
    protocol: int
    python: str
    sqlite: str
    uptime_ms: int
    health: Literal["healthy", "lagging", "degraded"]
    health_reasons: list[str]
    is_current: bool
    is_published: bool
    as_of: int
    head_id: int
    lag_events: int
    lag_ms: int
    heartbeat_age_ms: int
    folds: list[str]
    events_folded: int
    commits: int
    commands: int
    rebuilds: int
    rebuilding: list[str]
    rebuild_waits_for_pid: int | None
    verifications_passed: int
    verifications_failed: int
    verified_as_of: int
    last_difference: str | None
    sealed_blocks: int
    history_breaks: int
    same_pid_workers: int
    quarantined: int
    quarantine: list[list[Any]]
    malformed_messages: int
    connections: int
    hang_ups: int
    map_growths: int
    problem: str | None
    last_error: str | None
    last_error_age_ms: int | None
    readers: int
    oldest_reader_pid: int | None
    oldest_reader_behind_txns: int
    reader_processes: list[list[Any]]
    sizes: DaemonSizes
    embeddings: DaemonEmbeddingStats
    words: WordStats
    shape: str | None
    replica: ReplicaStats | None
    workers: WorkerStats
    worker_processes: list[WorkerProcessStats]


class Stats(TypedDict):
    """The result of `Cache.stats()`; `daemon` is None where none serves the ledger."""

    projection: ProjectionStats
    metrics: MetricsStats
    embeddings: EmbeddingStats
    appends: AppendStats
    daemon: DaemonStats | None
