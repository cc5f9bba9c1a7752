"""The daemon's numbers for Prometheus, over HTTP on loopback; imported only with `--metrics-port`.

One thread answers the requests in turn, from numbers that are at most `_KEPT_S` old, so that many requests do not slow
down the follower. No label contains the ledger's name or its content.

Invariant: it listens on 127.0.0.1 only.
"""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from http.server import HTTPServer
from typing import Any

from pmm_cached.logs import Logger
from pmm_shm.errors import ConfigError, DaemonError

try:
    from prometheus_client import CollectorRegistry, Metric, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.exposition import MetricsHandler
    from prometheus_client.registry import Collector
except ImportError:
    from pmm_shm.installation import extra_command

    raise ConfigError(f"--metrics-port needs prometheus-client: {extra_command('prometheus')}") from None

HOST = "127.0.0.1"
_KEPT_S = 0.5
_REQUEST_S = 2.0
_STATES = ("healthy", "lagging", "degraded")
StatsSource = Callable[[], dict[str, Any]]

# (name, help, path): the number is found in the daemon's numbers under a path such as `sizes.ledger_bytes`. Of a list
# it is the length; milliseconds become seconds.
_GAUGES = (
    ("applied_event_id", "Newest event that is published.", "as_of"),
    ("head_event_id", "Newest event in the ledger.", "head_id"),
    ("lag_events", "Events in the ledger that are not published yet.", "lag_events"),
    ("lag_seconds", "How long there have been such events.", "lag_ms"),
    ("heartbeat_age_seconds", "Time since the follower last made progress.", "heartbeat_age_ms"),
    ("published", "1 if anything is published.", "is_published"),
    ("rebuilding_folds", "Folds that are being rebuilt.", "rebuilding"),
    ("quarantined_events", "How often an event could not be used by a fold.", "quarantined"),
    ("verified_event_id", "Newest event that a verification has covered.", "verified_as_of"),
    ("sealed_blocks", "Blocks of the ledger's rows that have a seal.", "sealed_blocks"),
    ("reader_processes", "Other processes that have the store open.", "reader_processes"),
    ("reading_transactions", "Open read transactions.", "readers"),
    ("oldest_reader_behind_commits", "Age of the oldest of them, in commits.", "oldest_reader_behind_txns"),
    ("live_workers", "Workers that have reported and are alive.", "workers.live"),
    ("store_used_bytes", "Size of the records in the store.", "sizes.store_used_bytes"),
    ("store_disk_bytes", "Size of the store on disk.", "sizes.store_disk_bytes"),
    ("ledger_bytes", "Size of the ledger's file.", "sizes.ledger_bytes"),
    ("ledger_wal_bytes", "Size of the ledger's write-ahead log.", "sizes.wal_bytes"),
    ("text_vectors", "Text vectors in the store.", "embeddings.text_vectors"),
    ("text_vectors_max", "Text vectors that the store keeps at most.", "embeddings.text_vectors_max"),
    ("word_index_event_id", "Newest event that the index of words has taken in.", "words.as_of"),
    ("word_index_events", "Events in the index of words.", "words.rows"),
    ("word_index_bytes", "Size of the index of words.", "words.size_bytes"),
    ("leases", "Leases on missing text vectors.", "embeddings.leases_held"),
)
_COUNTERS = (
    ("events_folded", "Events that the daemon folded as they arrived.", "events_folded"),
    ("commits", "Commits of folded events.", "commits"),
    ("rebuilds", "Rebuilds of folds.", "rebuilds"),
    ("history_breaks", "Times that the ledger was replaced, cut or edited.", "history_breaks"),
    ("commands", "Commands from clients.", "commands"),
    ("malformed_messages", "Messages that could not be read.", "malformed_messages"),
    ("map_growths", "Times that the map of the store has grown.", "map_growths"),
    ("workers", "Workers that have reported.", "workers.seen"),
    ("worker_events_folded", "Events that workers folded for their reads.", "workers.events_folded"),
    ("leases_granted", "Leases that were granted.", "embeddings.leases_granted"),
    ("lease_waits", "Requests that waited for a lease.", "embeddings.lease_waits"),
    ("leases_expired", "Leases that expired.", "embeddings.leases_expired"),
    ("late_puts", "Vectors that arrived after their leases had ended.", "embeddings.late_puts"),
)


# Of the replica of a log in PostgreSQL, under `replica`.
_REPLICA_GAUGES = (
    ("replica_following", "1 if the follower of the source runs.", "is_running"),
    ("replica_lag_events", "Events that the source had and the replica had not, at the last look.", "lag_events"),
    ("replica_lag_seconds", "How long there have been such events, or no answer.", "lag_ms"),
    ("replica_source_age_seconds", "Time since the source's head was last confirmed.", "looked_ms"),
    ("replica_timeline", "Timeline of the server that is followed.", "timeline"),
    ("replica_lost_files", "Files with events that the source has lost.", "lost_files"),
)


class MetricsServer:
    """Listens when made; `start` begins to answer.

    Parameters:
        stats: returns the daemon's numbers; called in this server's thread.

    Raises:
        DaemonError: the port cannot be bound.
    """

    def __init__(self, port: int, stats: StatsSource, log: Logger) -> None:
        registry = CollectorRegistry()
        registry.register(_DaemonCollector(stats))
        ProcessCollector(registry=registry)
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": _REQUEST_S})
        try:
            self._server = _MetricsServer((HOST, port), handler, log)
        except OSError as error:
            raise DaemonError(f"--metrics-port: {HOST}:{port}: {error.strerror}") from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Accept no more requests. Returns whether the last one has ended."""
        if self._thread.is_alive():
            # `shutdown` would wait for a slow request.
            threading.Thread(target=self._server.shutdown, name="metrics stop", daemon=True).start()
            self._thread.join(timeout_s)
        self._server.server_close()
        return not self._thread.is_alive()


class _MetricsServer(HTTPServer):
    def __init__(self, address: tuple[str, int], handler: Any, log: Logger) -> None:
        self._log = log
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks up the host's name. The port may have old connections of a killed daemon, but no
        # other listener.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        self._log.debug("a request for metrics broke off", exception=traceback.format_exc().rstrip("\n"))


class _DaemonCollector(Collector):
    """The daemon's numbers as metrics."""

    def __init__(self, stats: StatsSource) -> None:
        self._stats = stats
        self._lock = threading.Lock()
        self._kept: tuple[float, dict[str, Any]] | None = None

    def describe(self) -> Iterable[Metric]:
        # Without this method, registering the collector would collect once.
        return ()

    def collect(self) -> Iterator[Metric]:
        numbers = self._numbers()
        yield InfoMetricFamily("pmm_cached", "The daemon's version.", value={"version": numbers["version"]})
        for name, text, path in _GAUGES:
            yield GaugeMetricFamily(f"pmm_cached_{name}", text, value=_number(numbers, path))
        yield from _replica(numbers["replica"])
        for name, text, path in _COUNTERS:
            yield CounterMetricFamily(f"pmm_cached_{name}", text, value=_number(numbers, path))
        tables = numbers["embeddings"]["tables"].values()
        rows = sum(table["rows"] for table in tables)
        yield GaugeMetricFamily("pmm_cached_event_vectors", "Event vectors of all models.", value=rows)
        yield _health(numbers)
        yield _verifications(numbers)
        yield from _reads(numbers["workers"])

    def _numbers(self) -> dict[str, Any]:
        with self._lock:
            now = time.monotonic()
            if self._kept is None or now - self._kept[0] > _KEPT_S:
                self._kept = (now, self._stats())
            return self._kept[1]


def _number(numbers: dict[str, Any], path: str) -> float:
    value: Any = numbers
    for key in path.split("."):
        value = value[key]
    if path.endswith("_ms"):
        value /= 1_000
    return float(len(value) if isinstance(value, list) else value)


def _replica(numbers: dict[str, Any] | None) -> Iterator[Metric]:
    if numbers is None:
        return
    for name, text, path in _REPLICA_GAUGES:
        if numbers[path] is not None:
            yield GaugeMetricFamily(f"pmm_cached_{name}", text, value=_number(numbers, path))
    yield CounterMetricFamily("pmm_cached_replica_forks", "Times that events were taken back.", value=numbers["forks"])


def _health(numbers: dict[str, Any]) -> Metric:
    family = GaugeMetricFamily("pmm_cached_health", "1 for the daemon's state, 0 for the others.", labels=["state"])
    for state in _STATES:
        family.add_metric([state], float(numbers["health"] == state))
    return family


def _verifications(numbers: dict[str, Any]) -> Metric:
    family = CounterMetricFamily("pmm_cached_verifications", "Comparisons with a full replay.", labels=["result"])
    for result in ("passed", "failed"):
        family.add_metric([result], numbers[f"verifications_{result}"])
    return family


def _reads(workers: dict[str, Any]) -> Iterator[Metric]:
    reads = CounterMetricFamily("pmm_cached_worker_reads", "Reads that workers reported.", labels=["group", "result"])
    recomputations = CounterMetricFamily(
        "pmm_cached_worker_recomputations", "Views that workers rebuilt.", labels=["group"]
    )
    misses = CounterMetricFamily(
        "pmm_cached_worker_misses",
        "Reads that were no hits, by what answered them: the published state and newer events, or a replay.",
        labels=["group", "result"],
    )
    embeddings = CounterMetricFamily("pmm_cached_worker_embeddings", "Texts that workers looked up.", labels=["result"])
    for group in ("projection", "metrics"):
        reads.add_metric([group, "hit"], workers[f"{group}_hits"])
        reads.add_metric([group, "miss"], workers[f"{group}_misses"])
        for result in ("caught_up", "replayed"):
            misses.add_metric([group, result], workers[f"{group}_{result}"])
        recomputations.add_metric([group], workers[f"{group}_recomputations"])
    embeddings.add_metric(["hit"], workers["embedding_hits"])
    embeddings.add_metric(["miss"], workers["embedding_misses"])
    yield from (reads, misses, recomputations, embeddings)
