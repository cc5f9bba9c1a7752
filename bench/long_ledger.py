"""The second part of `make bench-search`: a long ledger, searched by words, by meaning, and by both.

1. One process: each query is asked by words, by meaning and by both, one after the other, with the same k, as a user
   asks them. The sum of the parts is that of the same query in the same round. So all three find the processor's caches
   as searches of other kinds have left them: fifty searches of one kind in a row would keep its own data there.
2. More processes: the CPU time and the time of one search by both.
3. What 100,000 events add to both indexes.
4. From commit to published, while the daemon works off a backlog of all events, and without one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.daemons import Daemon, until
from pmm_shm.instance.paths import Instance
from pmm_shm.vectors import local_bow
from pmm_shm.wire import protocol
from pmm_shm_client import EventLog, commands, connect
from pmm_shm_client.finding import SearchMode

if TYPE_CHECKING:
    from bench.search import Report, Sizes

K = 10
PROCESSES = (1, 4, 8)
MODES: tuple[SearchMode, ...] = ("words", "meaning", "hybrid")
_PERIOD_S = 0.01
_INDEX_S = 600.0
_ASK_EVERY = 20


def measure_words(ledger: Path, sizes: Sizes, report: Report) -> None:
    """Sentences of eight words that are in the log; all of them are common there, which is the hardest case."""
    queries = sentences(ledger)
    rounds: list[dict[SearchMode, list[float]]] = []
    with connect(ledger) as cache, connect(ledger) as other:
        for query in queries:
            for mode in MODES:
                hits = cache.search(query, k=K, mode=mode)
                assert hits.is_complete
                assert hits == other.search(query, k=K, mode=mode)
        for number in range(sizes.rounds):
            rounds.append({mode: [] for mode in MODES})
            turn = number % len(MODES)
            for query in queries:
                for mode in MODES[turn:] + MODES[:turn]:
                    began = time.perf_counter()
                    cache.search(query, k=K, mode=mode)
                    rounds[-1][mode].append((time.perf_counter() - began) * 1e6)
    section = f"{sizes.word_events:,} events, 8 words"
    for mode in MODES:
        report.times(section, mode, [value for one in rounds for value in one[mode]])
    words_us = [value for one in rounds for value in one["words"]]
    report.target(f"search by words, p50 in ms, {section}", statistics.median(words_us) / 1e3, 2)
    ratios = [statistics.median(one["hybrid"]) / statistics.median(_sums(one)) for one in rounds]
    report.target(f"hybrid / sum of its parts, each query in turn, {section}", statistics.median(ratios), 1.1)


def _sums(one: dict[SearchMode, list[float]]) -> list[float]:
    return [words + meaning for words, meaning in zip(one["words"], one["meaning"], strict=True)]


def measure_processes(ledger: Path, sizes: Sizes, report: Report) -> None:
    """Each searches without a rest, so more of them than cores wait for each other: CPU time says what they take."""
    from bench.search import Worker

    cpu_us: dict[int, float] = {}
    for count in PROCESSES:
        arguments = {"ledger": str(ledger), "seconds": sizes.contention_s}
        workers = [Worker("searches", arguments, 1) for _ in range(count)]
        for worker in workers:
            worker.wait_ready()
        for worker in workers:
            worker.go()
        found = [json.loads(worker.finish()) for worker in workers]
        cpu_us[count] = statistics.median(value for one in found for value in one["cpu_us"])
        section = f"{sizes.word_events:,} events, {count} process{'es' if count > 1 else ''}"
        report.times(section, "hybrid", [value for one in found for value in one["wall_us"]])
        report.times(section, "hybrid, CPU time", [value for one in found for value in one["cpu_us"]])
    most = max(PROCESSES)
    report.target(f"hybrid, CPU time of one search: {most} processes / 1", cpu_us[most] / cpu_us[1], 1.5)


def searches_worker(ledger: str, seconds: float) -> None:
    """Another process that searches by both; prints the microseconds of each search."""
    queries = sentences(Path(ledger))
    cpu_us: list[float] = []
    wall_us: list[float] = []
    with connect(ledger) as cache:
        for query in queries:
            cache.search(query, k=K, mode="hybrid")
        print("ready", flush=True)
        sys.stdin.readline()
        end = time.perf_counter() + seconds
        while not wall_us or time.perf_counter() < end:
            cpu_began, began = time.process_time(), time.perf_counter()
            cache.search(queries[len(wall_us) % len(queries)], k=K, mode="hybrid")
            wall_us.append((time.perf_counter() - began) * 1e6)
            cpu_us.append((time.process_time() - cpu_began) * 1e6)
    print(json.dumps({"cpu_us": cpu_us, "wall_us": wall_us}))


def note_growth(ledger: Path, sizes: Sizes, report: Report) -> None:
    """The bytes of both indexes, for 100,000 events of the ledger."""
    words_mb = os.stat(Instance.of(ledger).words_file).st_size / 1e6
    rows = _stats(ledger)["embeddings"]["tables"][local_bow.NAME]["rows"]
    # Id, vector, norm and source.
    vectors_mb = rows * (8 + 4 * local_bow.DIMENSION + 4 + 1) / 1e6
    scale = 100_000 / sizes.word_events
    report.notes.append(
        f"growth per 100,000 events: index of words {words_mb * scale:.1f} MB, "
        f"{rows * scale:,.0f} vectors of {local_bow.DIMENSION} numbers {vectors_mb * scale:.1f} MB"
    )


def measure_backlog(ledger: Path, sizes: Sizes, report: Report) -> None:
    """The writer looks again and again until its event is published. `ledger` has no instance directory yet."""
    with _serving(ledger) as daemon:
        began = time.monotonic()
        backlog = _paced(ledger, sizes.paced, lambda: _is_behind(ledger, sizes.word_events))
        daemon.call(protocol.INDEX, {}, _INDEX_S)
        took_s = time.monotonic() - began
        without = _paced(ledger, sizes.paced)
    section = "commit to published, 100 appends per second"
    report.times(section, "with a backlog of both indexes", backlog)
    report.times(section, "without", without)
    report.target(f"{section}, with a backlog: p99 in ms", sorted(backlog)[len(backlog) * 99 // 100] / 1e3, 5)
    report.notes.append(
        f"{section}: worst with a backlog {max(backlog) / 1e3:.1f} ms, without {max(without) / 1e3:.1f}"
    )
    report.notes.append(f"{section}: the backlog of {sizes.word_events:,} events took {took_s:.1f} s")


@contextmanager
def _serving(ledger: Path) -> Iterator[Daemon]:
    """A daemon that has just published the folds, and has begun to index."""
    daemon = Daemon(str(ledger), "--verify-every", "0")
    try:
        daemon.wait_answering()
        with connect(ledger) as cache:
            head = cache.metrics().as_of
        until(lambda: _stats(ledger)["as_of"] >= head, "the folds are published", _INDEX_S)
        yield daemon
    finally:
        daemon.stop()


def _paced(ledger: Path, appends: int, goes_on: Callable[[], bool] = lambda: True) -> list[float]:
    """Microseconds of each append; after some of them, `goes_on` is asked."""
    samples = []
    with EventLog(ledger, create=False) as log, connect(ledger, consistency="snapshot") as cache:
        next_s = time.monotonic()
        for number in range(appends):
            next_s += _PERIOD_S
            time.sleep(max(0.0, next_s - time.monotonic()))
            event_id = log.append("user", f"message number {number} about the garden", {})
            committed = time.perf_counter()
            while cache.metrics().as_of < event_id:
                os.sched_yield()
            samples.append((time.perf_counter() - committed) * 1e6)
            if number % _ASK_EVERY == _ASK_EVERY - 1 and not goes_on():
                break
    return samples


def _is_behind(ledger: Path, event_id: int) -> bool:
    """Whether one of the indexes lacks events up to this one."""
    stats = _stats(ledger)
    table = stats["embeddings"]["tables"].get(local_bow.NAME)
    return table is None or min(stats["words"]["as_of"], table["as_of"]) < event_id


def _stats(ledger: Path) -> Any:
    return commands.call(Instance.of(ledger), protocol.STATS, {}, 5.0)


def sentences(ledger: Path, count: int = 50, words: int = 8) -> list[str]:
    """Parts of messages, the same for the same ledger."""
    with closing(sqlite3.connect(ledger)) as connection:
        rows: list[Any] = connection.execute(
            "SELECT content FROM events WHERE kind IN ('user', 'response') ORDER BY id"
        ).fetchall()
    pool = " ".join(row[0] for row in rows[:: max(1, len(rows) // 1_000)]).split()
    return [" ".join(pool[start : start + words]) for start in range(0, len(pool) - words, max(1, len(pool) // count))]
