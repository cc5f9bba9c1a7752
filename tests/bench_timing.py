"""The timing report of `make bench`: ratios within one run, the two sides of each interleaved, for machines are noisy.

1. An exact repeated read against a bare `begin, get, abort` of py-lmdb.
2. Append and read back at 1,000 and at 100,000 events, beside a daemon and without one.
3. From COMMIT to published: how far the daemon is behind.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
from pmm_shm_client import Cache, EventLog, connect
from pmm_shm_client.autostart import daemon_command, is_running

from pmm_shm.paths import Instance

ROUNDS = 40
CALLS = 5_000
APPENDS = 50
SIZES = (1_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory(prefix="pmm-shm-bench-") as name:
        directory = Path(name)
        ledgers = {size: make_ledger(directory, size) for size in SIZES}
        report = {
            "read": measure_read(ledgers[SIZES[1]], directory),
            "append_and_read_without_daemon": measure_appends(ledgers),
        }
        with daemons(list(ledgers.values())):
            report["append_and_read_beside_daemon"] = measure_appends(ledgers)
            report["published_after_commit_us"] = measure_lag(ledgers[SIZES[0]])
    print(json.dumps(report) if as_json else as_text(report))


def make_ledger(directory: Path, size: int) -> Path:
    path = directory / f"{size}.db"
    command = [sys.executable, "-m", "pmm_shm_client.cli", "generate", str(path), "--events", str(size), "--seed", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


@contextmanager
def daemons(ledgers: list[Path]) -> Iterator[None]:
    """A daemon for each ledger, and everything published."""
    running = [
        subprocess.Popen([*daemon_command(), "--verify-every", "0", str(path)], stderr=subprocess.DEVNULL)
        for path in ledgers
    ]
    try:
        for path in ledgers:
            while not is_running(Instance.of(path)):
                time.sleep(0.01)
            with connect(path) as cache:
                cache.wait_for(cache.metrics().as_of, timeout=60.0)
        yield
    finally:
        for process in running:
            process.terminate()
            process.wait()


def measure_read(ledger: Path, directory: Path) -> dict[str, float]:
    """Microseconds per call, the medians of interleaved rounds, and their ratio."""
    environment = lmdb.open(str(directory / "bare"), map_size=1 << 30)
    with environment.begin(write=True) as transaction:
        transaction.put(b"metrics", b"x" * 100)

    def bare() -> None:
        transaction = environment.begin()
        transaction.get(b"metrics")
        transaction.abort()

    with connect(ledger) as cache:
        cache.metrics()
        bare_us, exact_us = interleaved([bare, cache.metrics], CALLS)
        hits = cache.stats()["metrics"]["cache_hits"]
    environment.close()
    assert hits >= ROUNDS * CALLS * 0.99, "the reads were not repeated reads"
    ratios = [exact / reference for exact, reference in zip(exact_us, bare_us, strict=True)]
    return {
        "lmdb_begin_get_abort_us": statistics.median(bare_us),
        "exact_repeated_read_us": statistics.median(exact_us),
        "ratio": statistics.median(ratios),
        "ratio_worst_round": max(ratios),
    }


def measure_appends(ledgers: dict[int, Path]) -> dict[str, float]:
    """Microseconds for one append and one read that must include it; median and p99 over interleaved rounds."""
    with connect(ledgers[SIZES[0]]) as small, connect(ledgers[SIZES[1]]) as large:
        caches = dict(zip(SIZES, (small, large), strict=True))
        for cache in caches.values():
            append_and_read(cache)
        samples: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(ROUNDS):
            for size, cache in caches.items():
                for _ in range(APPENDS):
                    started = time.perf_counter()
                    append_and_read(cache)
                    samples[size].append((time.perf_counter() - started) * 1e6)
    medians = {size: statistics.median(values) for size, values in samples.items()}
    p99 = {size: sorted(values)[len(values) * 99 // 100] for size, values in samples.items()}
    return {
        **{f"median_us_at_{size}": medians[size] for size in SIZES},
        **{f"p99_us_at_{size}": p99[size] for size in SIZES},
        "ratio": medians[SIZES[1]] / medians[SIZES[0]],
        "ratio_p99": p99[SIZES[1]] / p99[SIZES[0]],
    }


def append_and_read(cache: Cache) -> None:
    event_id = cache.append("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": 0.5}, "stage": "S1"})
    assert cache.metrics().as_of >= event_id


def measure_lag(ledger: Path) -> dict[str, float]:
    """Microseconds from the end of an append until the snapshot has it, seen by polling the snapshot."""
    lags = []
    with EventLog(ledger) as log, connect(ledger, consistency="snapshot") as cache:
        for _ in range(500):
            event_id = log.append("autonomy_tick")
            committed = time.perf_counter()
            while cache.metrics().as_of < event_id:
                os.sched_yield()
            lags.append((time.perf_counter() - committed) * 1e6)
            time.sleep(0.002)
    lags.sort()
    return {"p50": lags[len(lags) // 2], "p99": lags[len(lags) * 99 // 100], "max": lags[-1]}


def interleaved(actions: list[Callable[[], object]], calls: int) -> list[list[float]]:
    """Microseconds per call of each action, round by round in turns."""
    results: list[list[float]] = [[] for _ in actions]
    for _ in range(ROUNDS):
        for action, values in zip(actions, results, strict=True):
            started = time.perf_counter()
            for _ in range(calls):
                action()
            values.append((time.perf_counter() - started) / calls * 1e6)
    return results


def as_text(report: dict[str, dict[str, float]]) -> str:
    lines = []
    for section, numbers in report.items():
        lines.append(section.replace("_", " "))
        lines += [f"  {name:32} {value:10.2f}" for name, value in numbers.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
