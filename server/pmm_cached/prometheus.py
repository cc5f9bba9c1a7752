"""The daemon's numbers for Prometheus, over HTTP on loopback; imported only where they are asked for.

One thread answers one request after the other, from numbers that are at most `_KEPT_S` old: however often it is asked,
the follower is not held up. No label holds anything that stands in the ledger, or its name.

Invariant: nothing but 127.0.0.1 is ever listened on.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import HTTPServer
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pmm_cached.logs import Logger
from pmm_shm.errors import ConfigError, DaemonError

try:
    from prometheus_client import CollectorRegistry, Metric, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.exposition import MetricsHandler
    from prometheus_client.registry import Collector
except ImportError:
    raise ConfigError("--metrics-port needs prometheus-client: pip install 'pmm-shm[prometheus]'") from None

HOST = "127.0.0.1"
_KEPT_S = 0.5
_REQUEST_S = 2.0
_STATES = ("healthy", "lagging", "degraded")
Stats = Callable[[], dict[str, Any]]

_GAUGES: tuple[tuple[str, str, Callable[[dict[str, Any]], float]], ...] = (
    ("applied_event_id", "Newest event that is published.", lambda n: n["as_of"]),
    ("head_event_id", "Newest event in the ledger.", lambda n: n["head_id"]),
    ("lag_events", "Events in the ledger that are not published yet.", lambda n: n["lag_events"]),
    ("lag_seconds", "For how long there have been such events.", lambda n: n["lag_ms"] / 1_000),
    ("heartbeat_age_seconds", "Since the follower looked at the ledger last.", lambda n: n["heartbeat_age_ms"] / 1_000),
    ("published", "Whether anything is published.", lambda n: n["is_published"]),
    ("rebuilding_folds", "Folds that are being rebuilt.", lambda n: len(n["rebuilding"])),
    ("quarantined_events", "Times that an event could not be used.", lambda n: n["quarantined"]),
    ("verified_event_id", "Newest event that a verification has covered.", lambda n: n["verified_as_of"]),
    ("sealed_blocks", "Blocks of the ledger's rows that are sealed.", lambda n: n["sealed_blocks"]),
    ("reader_processes", "Other processes that have the store open.", lambda n: len(n["reader_processes"])),
    ("reading_transactions", "Read transactions that are open.", lambda n: n["readers"]),
    ("oldest_reader_behind_commits", "Age of the oldest of them.", lambda n: n["oldest_reader_behind_txns"]),
    ("live_workers", "Workers that have reported and live.", lambda n: n["workers"]["live"]),
    ("store_used_bytes", "What the records in the store take.", lambda n: n["sizes"]["store_used_bytes"]),
    ("store_disk_bytes", "What the store takes on disk.", lambda n: n["sizes"]["store_disk_bytes"]),
    ("ledger_bytes", "Size of the ledger's file.", lambda n: n["sizes"]["ledger_bytes"]),
    ("ledger_wal_bytes", "Size of the ledger's write-ahead log.", lambda n: n["sizes"]["wal_bytes"]),
    ("text_vectors", "Text vectors in the store.", lambda n: n["embeddings"]["text_vectors"]),
    ("text_vectors_max", "How many are kept at most.", lambda n: n["embeddings"]["text_vectors_max"]),
    (
        "event_vectors",
        "Event vectors, of all models.",
        lambda n: sum(t["rows"] for t in n["embeddings"]["tables"].values()),
    ),
    ("leases", "Leases on missing text vectors that are held.", lambda n: n["embeddings"]["leases_held"]),
)
_COUNTERS: tuple[tuple[str, str, Callable[[dict[str, Any]], float]], ...] = (
    ("events_folded", "Events that were folded as they came.", lambda n: n["events_folded"]),
    ("commits", "Commits of what was folded.", lambda n: n["commits"]),
    ("rebuilds", "Rebuilds of folds.", lambda n: n["rebuilds"]),
    ("history_breaks", "Times that the ledger was replaced, cut or edited.", lambda n: n["history_breaks"]),
    ("commands", "Commands that clients gave.", lambda n: n["commands"]),
    ("malformed_messages", "Messages that were none.", lambda n: n["malformed_messages"]),
    ("map_growths", "Times that the map of the store has grown.", lambda n: n["map_growths"]),
    ("workers", "Workers that have reported.", lambda n: n["workers"]["seen"]),
    ("worker_events_folded", "Events that workers folded for their reads.", lambda n: n["workers"]["events_folded"]),
    ("leases_granted", "Leases that were granted.", lambda n: n["embeddings"]["leases_granted"]),
    ("lease_waits", "Requests that waited for a lease.", lambda n: n["embeddings"]["lease_waits"]),
    ("leases_expired", "Leases that nobody ended.", lambda n: n["embeddings"]["leases_expired"]),
    ("late_puts", "Vectors that came after their leases had ended.", lambda n: n["embeddings"]["late_puts"]),
)


class MetricsServer:
    """Listens when made; `start` begins to answer.

    Parameters:
        stats: the daemon's numbers; called by this server's thread.

    Raises:
        DaemonError: the port cannot be had.
    """

    def __init__(self, port: int, stats: Stats, log: Logger) -> None:
        registry = CollectorRegistry()
        registry.register(_DaemonCollector(stats))
        ProcessCollector(registry=registry)
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": _REQUEST_S})
        try:
            self._server = _Server((HOST, port), handler, log)
        except OSError as error:
            raise DaemonError(f"--metrics-port: {HOST}:{port}: {error.strerror}") from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Take no more requests. Returns whether the last one is over."""
        if self._thread.is_alive():
            # `shutdown` would wait for a slow request.
            threading.Thread(target=self._server.shutdown, name="metrics stop", daemon=True).start()
            self._thread.join(timeout_s)
        self._server.server_close()
        return not self._thread.is_alive()


class _Server(HTTPServer):
    def __init__(self, address: tuple[str, int], handler: Any, log: Logger) -> None:
        self._log = log
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks up the name of the host. What is left of a killed daemon's connections is no
        # reason to refuse the port; another listener is.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        self._log.debug("a request for metrics broke off", exc_info=True)


class _DaemonCollector(Collector):
    """The daemon's numbers as metrics."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._lock = threading.Lock()
        self._kept: tuple[float, dict[str, Any]] | None = None

    def describe(self) -> Iterable[Metric]:
        # Without it, to register the collector would collect once.
        return ()

    def collect(self) -> Iterator[Metric]:
        numbers = self._numbers()
        yield InfoMetricFamily("pmm_cached", "The daemon's version.", value={"version": _version()})
        for name, text, value in _GAUGES:
            yield GaugeMetricFamily(f"pmm_cached_{name}", text, value=float(value(numbers)))
        for name, text, value in _COUNTERS:
            yield CounterMetricFamily(f"pmm_cached_{name}", text, value=float(value(numbers)))
        yield _health(numbers)
        yield _verifications(numbers)
        yield from _reads(numbers["workers"])

    def _numbers(self) -> dict[str, Any]:
        with self._lock:
            now = time.monotonic()
            if self._kept is None or now - self._kept[0] > _KEPT_S:
                self._kept = (now, self._stats())
            return self._kept[1]


def _health(numbers: dict[str, Any]) -> Metric:
    family = GaugeMetricFamily("pmm_cached_health", "1 for the state that the daemon is in.", labels=["state"])
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
        "pmm_cached_worker_recomputations", "Views that workers built anew.", labels=["group"]
    )
    embeddings = CounterMetricFamily("pmm_cached_worker_embeddings", "Texts that workers looked up.", labels=["result"])
    for group in ("projection", "metrics"):
        reads.add_metric([group, "hit"], workers[f"{group}_hits"])
        reads.add_metric([group, "miss"], workers[f"{group}_misses"])
        recomputations.add_metric([group], workers[f"{group}_recomputations"])
    embeddings.add_metric(["hit"], workers["embedding_hits"])
    embeddings.add_metric(["miss"], workers["embedding_misses"])
    yield from (reads, recomputations, embeddings)


def _version() -> str:
    try:
        return version("pmm-shm")
    except PackageNotFoundError:
        return "unknown"
