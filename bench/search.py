"""The search report of `make bench-search`: vectors searched and looked up, against who does it barely and who does it
otherwise; ratios within one run, the sides interleaved, for machines are noisy.

1. The ten nearest rows: numpy over one contiguous matrix, a client's search of the published table, and sqlite-vec.
2. A text's vector that is there already, against a bare `begin, get, abort` of py-lmdb and one SHA-256.
3. What a worker's private memory grows by when it searches.
4. Searches of four processes on two cores.
5. An ordinary ledger, searched by text.
6. A long ledger, searched by words, by meaning, and by both.

Every answer is compared with a float64 search over all rows before it is timed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from pmm_shm import limits
from pmm_shm.instance.paths import Instance
from pmm_shm.store.environment import close, open_reader
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import text_key
from pmm_shm.vectors.event_table import EventTableRecord, EventTableView, table_key
from pmm_shm.vectors.events import DEFAULT_KINDS
from pmm_shm.vectors.nearest import nearest
from pmm_shm.vectors.text_table import model_tag, text_vector_key
from pmm_shm.wire import protocol
from pmm_shm_cli.synthetic import generate
from pmm_shm_client import commands, connect
from pmm_shm_client.autostart import daemon_command, is_running
from pmm_shm_client.finding import SearchMode

Found = list[tuple[int, float]]
K = 10
QUERIES = 8
CONTENDERS = 4
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
_INSERT = "INSERT INTO event_embeddings (eid, embedding, created_at) VALUES (?, ?, 0)"
_NO_PEER = "sqlite-vec is not installed: left out (make bench-search installs it)"


class Sizes(NamedTuple):
    """The amount of work.

    Attributes:
        tables: (rows, dimension) of the searched ones: for contention, for the dimension, for memory.
        rounds, calls: each side of a comparison has `calls` calls in each of the rounds.
        searches: while memory is looked at.
    """

    tables: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    rounds: int
    calls: int
    texts: int
    searches: int
    contention_s: float
    contention_rounds: int
    events: int
    word_events: int


FULL = Sizes(((100_000, 32), (100_000, 256), (1_000_000, 32)), 40, 5, 2_000, 100, 4.0, 3, 10_000, 100_000)
QUICK = Sizes(((2_000, 32), (2_000, 256), (3_000, 32)), 3, 3, 50, 10, 0.2, 1, 500, 1_000)


class Report:
    """The results, and the targets that were met."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.targets: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def times(self, section: str, name: str, samples_us: Sequence[float]) -> None:
        ordered = sorted(samples_us)
        p50, p99 = statistics.median(ordered), ordered[len(ordered) * 99 // 100]
        self.rows.append({"section": section, "name": name, "p50_us": p50, "p99_us": p99, "calls": len(ordered)})

    def target(self, name: str, value: float, at_most: float | None = None, at_least: float | None = None) -> None:
        met = value <= at_most if at_most is not None else at_least is not None and value >= at_least
        goal = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}"
        self.targets.append({"name": name, "value": value, "target": goal, "is_met": met})

    def as_dict(self) -> dict[str, Any]:
        return {"machine": machine(), "rows": self.rows, "targets": self.targets, "notes": self.notes}

    def print(self, console: Console) -> None:
        times, targets = Table(title="Times"), Table(title="Targets")
        for table, texts, numbers in (
            (times, ("what", "by"), ("p50 µs", "p99 µs", "calls")),
            (targets, ("what",), ("measured", "target", "met")),
        ):
            for text in texts:
                table.add_column(text)
            for number in numbers:
                table.add_column(number, justify="right", no_wrap=True)
        section = ""
        for row in self.rows:
            first, section = row["section"] if row["section"] != section else "", row["section"]
            times.add_row(first, row["name"], f"{row['p50_us']:,.1f}", f"{row['p99_us']:,.1f}", f"{row['calls']:,}")
        for row in self.targets:
            targets.add_row(row["name"], f"{row['value']:.2f}", row["target"], "yes" if row["is_met"] else "no")
        console.print(times, targets)
        for line in (*self.notes, str(machine())):
            console.print(line, markup=False, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        WORKERS[options.worker[0]](**json.loads(options.worker[1]))
        return
    sizes = QUICK if options.quick else FULL
    report = Report()
    with tempfile.TemporaryDirectory(prefix="pmm-shm-bench-") as name:
        measure(Path(name), sizes, report)
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        report.print(Console())


def measure(directory: Path, sizes: Sizes, report: Report) -> None:
    say("an ordinary ledger")
    ordinary = directory / "ordinary.db"
    generate(ordinary, sizes.events, seed=1)
    with serving(ordinary):
        measure_texts(ordinary, sizes, report)
        measure_ordinary(ordinary, sizes, report)
    say(f"{sizes.word_events:,} events: words")
    long = directory / "long.db"
    generate(long, sizes.word_events, seed=1)
    with serving(long):
        measure_words(long, sizes, report)
    for number, (rows, dimension) in enumerate(sizes.tables):
        say(f"{rows:,} x {dimension}: making the ledger")
        matrix = np.random.default_rng(number).standard_normal((rows, dimension), dtype=np.float32)
        ledger = make_ledger(directory, matrix)
        # Without an embedder, so that the table has the imported vectors and no others.
        with serving(ledger, "--embedder", "none"):
            say(f"{rows:,} x {dimension}: searching")
            measure_search(ledger, matrix, sizes, report)
            if number == 0:
                measure_contention(ledger, dimension, sizes, report)
            if number == 2:
                measure_memory(ledger, dimension, sizes, report)


# 1. The nearest rows.


def measure_search(ledger: Path, matrix: np.ndarray, sizes: Sizes, report: Report) -> None:
    """A client, the bare product over the same table, numpy, and sqlite-vec: the same queries in turns."""
    rows, dimension = matrix.shape
    section = f"top {K} of {rows:,} x {dimension}"
    queries = queries_of(dimension)
    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    with connect(ledger) as cache, mapped_search(ledger, imported_model(dimension)) as bare:

        def ours(query: np.ndarray) -> Found:
            return list(cache.search(query, k=K, model=imported_model(dimension)))

        sides: dict[str, Callable[[np.ndarray], Found]] = {
            "numpy, one matrix": lambda query: by_numpy(units, query),
            "Cache.search": ours,
            "nearest, without the client": bare,
        }
        peer = sqlite_vec_search(matrix)
        if peer is None:
            report.notes = [_NO_PEER]
        else:
            sides["sqlite-vec"] = peer
        norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
        for query in queries:
            exact = matrix.astype(np.float64) @ query / (norms * np.linalg.norm(query))
            for name, search in sides.items():
                is_narrow = name in ("numpy, one matrix", "sqlite-vec")
                check(search(query), exact, 1 + np.arange(rows), K, 1e-5 if is_narrow else 1e-12)
        samples = interleaved(sides, queries, sizes, {"sqlite-vec": 1})
    for name, rounds in samples.items():
        report.times(section, name, [value for one in rounds for value in one])
    at_size = f"{rows:,} x {dimension}"
    report.target(f"ours / numpy, {at_size}", ratio(samples["Cache.search"], samples["numpy, one matrix"]), 1.3)
    if peer is not None:
        measured = ratio(samples["sqlite-vec"], samples["Cache.search"])
        report.target(f"sqlite-vec / ours, {at_size}", measured, at_least=8)


def by_numpy(units: np.ndarray, query: np.ndarray) -> Found:
    """As short as it gets: the rows have length 1 already, and lie as they are written down."""
    unit = (query / np.linalg.norm(query)).astype(np.float32)
    scores = units @ unit
    best = np.argpartition(scores, len(scores) - K)[-K:]
    best = best[np.argsort(-scores[best])]
    return list(zip((best + 1).tolist(), scores[best].tolist(), strict=True))


@contextmanager
def mapped_search(ledger: Path, model: str) -> Iterator[Callable[[np.ndarray], Found]]:
    """`nearest` over the published table, without what a client does around it."""
    environment = open_reader(Instance.of(ledger).directory)
    assert environment is not None

    def search(query: np.ndarray) -> Found:
        with environment.read_mapped() as records:
            data = records.get(table_key(model))
            assert data is not None
            table = EventTableView(records, EventTableRecord.unpack(bytes(data)))
            return nearest([*table.blocks(), tail], query, K)

    with environment.read_mapped() as records:
        data = records.get(table_key(model))
        assert data is not None
        tail = EventTableView(records, EventTableRecord.unpack(bytes(data))).tail()
    try:
        yield search
    finally:
        close(environment)


def sqlite_vec_search(matrix: np.ndarray) -> Callable[[np.ndarray], Found] | None:
    """The same rows in sqlite-vec, in memory: no file that another SQLite library could unlock. None where it is not
    installed."""
    try:
        # In a process without a ledger, so that the second SQLite library breaks no lock.
        import apsw  # noqa: TID251
        import sqlite_vec
    except ImportError:
        return None
    connection = apsw.Connection(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    dimension = matrix.shape[1]
    connection.execute(f"CREATE VIRTUAL TABLE rows USING vec0(vector float[{dimension}] distance_metric=cosine)")
    with connection:
        values = ((number, row.tobytes()) for number, row in enumerate(matrix, 1))
        connection.executemany("INSERT INTO rows (rowid, vector) VALUES (?, ?)", values)
    sql = f"SELECT rowid, distance FROM rows WHERE vector MATCH ? AND k = {K} ORDER BY distance"

    def search(query: np.ndarray) -> Found:
        found: list[Any] = connection.execute(sql, (query.astype(np.float32).tobytes(),)).fetchall()
        return [(rowid, 1.0 - distance) for rowid, distance in found]

    return search


# 2. Texts that were seen before.


def measure_texts(ledger: Path, sizes: Sizes, report: Report) -> None:
    texts = [f"{number:06d} " + " ".join(f"word{number * 31 % 997 + place}" for place in range(12)) for number in
             range(sizes.texts)]  # fmt: skip
    prefix = text_vector_key(model_tag(local_bow.NAME), b"")
    environment = open_reader(Instance.of(ledger).directory)
    assert environment is not None
    env, sha256 = environment.env, hashlib.sha256

    def bare(text: str) -> bytes | None:
        key = prefix + sha256(text.encode()).digest()
        transaction = env.begin()
        value: bytes | None = transaction.get(key)
        transaction.abort()
        return value

    with connect(ledger) as first:
        first.embed_many(texts)
    # Another one: its own memory is empty, all that it finds is in shared memory.
    with connect(ledger) as cache:
        for text in texts:
            wanted = np.array(local_bow.vector(text), np.float32)
            assert prefix + text_key(text) == prefix + sha256(text.encode()).digest()
            assert (cache.embed(text) == wanted).all()
            assert bare(text) == wanted.tobytes()
        assert cache.stats()["embeddings"]["misses"] == 0
        samples = interleaved({"begin, get, abort and SHA-256": bare, "Cache.embed": cache.embed}, texts, sizes,
                              calls=len(texts))  # fmt: skip
        assert cache.stats()["embeddings"]["misses"] == 0
    close(environment)
    for name, rounds in samples.items():
        report.times(f"{len(texts):,} seen texts", name, [value for one in rounds for value in one])
    report.target("embed / bare lookup", ratio(samples["Cache.embed"], samples["begin, get, abort and SHA-256"]), 5)


# 3. Memory.


def measure_memory(ledger: Path, dimension: int, sizes: Sizes, report: Report) -> None:
    """Beside a first worker, which is this process: what two map, is neither's own."""
    arguments = {"ledger": str(ledger), "dimension": dimension, "searches": sizes.searches}
    with connect(ledger) as cache:
        for query in queries_of(dimension):
            cache.search(query, k=K, model=imported_model(dimension))
        for threads in (None, 1):
            worker = Worker("memory", arguments, threads)
            found = json.loads(worker.finish())
            if "growth_mb" not in found:
                report.notes.append("psutil is not installed: memory is left out (make bench-search installs it)")
                return
            name = f"private memory, MB more, {threads_text(threads)}"
            report.target(name, found["growth_mb"], 5)
            report.notes.append(f"{name}: {found}")


def memory_worker(ledger: str, dimension: int, searches: int) -> None:
    try:
        import psutil
    except ImportError:
        print("{}")
        return
    process = psutil.Process()
    queries = queries_of(dimension)
    with connect(ledger) as cache:
        cache.metrics()
        process.memory_full_info()
        uss = [process.memory_full_info().uss]
        for number in range(searches):
            cache.search(queries[number % QUERIES], k=K, model=imported_model(dimension))
            if number in (0, searches - 1):
                uss.append(process.memory_full_info().uss)
    before, first, last = (value / 1e6 for value in uss)
    print(json.dumps({"before_mb": before, "first_search_mb": first - before, "growth_mb": last - before}))


# 4. Contention.


def measure_contention(ledger: Path, dimension: int, sizes: Sizes, report: Report) -> None:
    arguments = {"ledger": str(ledger), "dimension": dimension, "seconds": sizes.contention_s}
    for count in (1, CONTENDERS):
        samples: dict[int | None, list[float]] = {None: [], 1: []}
        for _ in range(sizes.contention_rounds):
            for threads, values in samples.items():
                values += contended(arguments, threads, count)
        for threads, values in samples.items():
            section = f"{count} process{'es' if count > 1 else ''} on 2 cores"
            report.times(section, f"Cache.search, {threads_text(threads)}", values)


def contended(arguments: dict[str, Any], threads: int | None, count: int) -> list[float]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:2])
    try:
        workers = [Worker("contention", arguments, threads) for _ in range(count)]
    finally:
        os.sched_setaffinity(0, allowed)
    for worker in workers:
        worker.wait_ready()
    for worker in workers:
        worker.go()
    return [value for worker in workers for value in json.loads(worker.finish())]


def contention_worker(ledger: str, dimension: int, seconds: float) -> None:
    queries = queries_of(dimension)
    samples: list[float] = []
    with connect(ledger) as cache:
        for query in queries:
            cache.search(query, k=K, model=imported_model(dimension))
        print("ready", flush=True)
        sys.stdin.readline()
        end = time.perf_counter() + seconds
        began = 0.0
        while began < end:
            began = time.perf_counter()
            cache.search(queries[len(samples) % QUERIES], k=K, model=imported_model(dimension))
            samples.append((time.perf_counter() - began) * 1e6)
    print(json.dumps(samples))


# 5. An ordinary ledger.


def measure_ordinary(ledger: Path, sizes: Sizes, report: Report) -> None:
    marks = ", ".join("?" * len(DEFAULT_KINDS))
    with closing(sqlite3.connect(ledger)) as connection:
        sql = f"SELECT id, content, kind FROM events WHERE kind IN ({marks}) ORDER BY id"
        rows = connection.execute(sql, DEFAULT_KINDS).fetchall()
    ids = np.array([row[0] for row in rows])
    wide = np.array([local_bow.vector(row[1]) for row in rows], np.float32).astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    texts = sorted({row[1] for row in rows if row[2] == "user"})[:200]
    with connect(ledger) as cache:
        vectors = dict(zip(texts, cache.embed_many(texts), strict=True))
        for text, vector in vectors.items():
            query = vector.astype(np.float64)
            check(list(cache.search(text, k=5)), wide @ (query / np.linalg.norm(query)), ids, 5, 1e-12)
        misses = cache.stats()["embeddings"]["misses"]
        sides: dict[str, Callable[[Any], Any]] = {
            "Cache.search, a seen text": lambda text: cache.search(text, k=5),
            "Cache.search, a vector": lambda text: cache.search(vectors[text], k=5),
            "Cache.embed": cache.embed,
        }
        samples = interleaved(sides, texts, sizes, calls=len(texts))
        assert cache.stats()["embeddings"]["misses"] == misses
    section = f"{sizes.events:,} events, {len(rows):,} vectors"
    for name, rounds in samples.items():
        report.times(section, name, [value for one in rounds for value in one])
    text_us = [value for one in samples["Cache.search, a seen text"] for value in one]
    report.target("search of a seen text, ms, ordinary ledger", statistics.median(text_us) / 1e3, 1)


# 6. Words.


def measure_words(ledger: Path, sizes: Sizes, report: Report) -> None:
    """Sentences of eight words that are in the log; all of them are common there, which is the hardest case."""
    queries = sentences(ledger)
    modes: tuple[SearchMode, ...] = ("words", "meaning", "hybrid")
    with connect(ledger) as cache, connect(ledger) as other:
        for query in queries:
            for mode in modes:
                hits = cache.search(query, k=K, mode=mode)
                assert hits.is_complete
                assert hits == other.search(query, k=K, mode=mode)
        sides: dict[str, Callable[[str], Any]] = {mode: partial(cache.search, k=K, mode=mode) for mode in modes}
        samples = interleaved(sides, queries, sizes, calls=len(queries))
    section = f"{sizes.word_events:,} events, 8 words"
    for name, rounds in samples.items():
        report.times(section, name, [value for one in rounds for value in one])
    words_us = [value for one in samples["words"] for value in one]
    report.target(f"search by words, p50 in ms, {section}", statistics.median(words_us) / 1e3, 2)
    parts = [
        [statistics.median(words) + statistics.median(meaning)]
        for words, meaning in zip(samples["words"], samples["meaning"], strict=True)
    ]
    report.target(f"hybrid / sum of its parts, {section}", ratio(samples["hybrid"], parts), 1.1)


def sentences(ledger: Path, count: int = 50, words: int = 8) -> list[str]:
    """Parts of messages, the same for the same ledger."""
    with closing(sqlite3.connect(ledger)) as connection:
        rows = connection.execute(
            "SELECT content FROM events WHERE kind IN ('user', 'response') ORDER BY id"
        ).fetchall()
    pool = " ".join(row[0] for row in rows[:: max(1, len(rows) // 1_000)]).split()
    return [" ".join(pool[start : start + words]) for start in range(0, len(pool) - words, max(1, len(pool) // count))]


# Shared by all parts.


def queries_of(dimension: int) -> list[np.ndarray]:
    """(dimension,) float64 each."""
    return list(np.random.default_rng(99).standard_normal((QUERIES, dimension)))


def check(found: Found, exact: np.ndarray, ids: np.ndarray, k: int, tolerance: float) -> None:
    """That these are the `k` best of the exact similarities, within what the arithmetic allows."""
    places = np.searchsorted(ids, [event_id for event_id, _ in found])
    assert len(found) == k == len(set(places.tolist()))
    best = np.sort(exact)[::-1][:k]
    similarities = np.array([similarity for _, similarity in found])
    assert np.abs(exact[places] - best).max() <= tolerance, "not the best"
    assert np.abs(similarities - best).max() <= tolerance, "not their similarities"


def interleaved(
    sides: dict[str, Callable[[Any], Any]],
    arguments: Sequence[Any],
    sizes: Sizes,
    calls_of: dict[str, int] | None = None,
    calls: int | None = None,
) -> dict[str, list[list[float]]]:
    """Microseconds of each call, round by round in turns; each side has the same arguments."""
    results: dict[str, list[list[float]]] = {name: [] for name in sides}
    clock = time.perf_counter
    for number in range(sizes.rounds):
        for name, action in sides.items():
            samples = []
            for call in range((calls_of or {}).get(name, calls or sizes.calls)):
                argument = arguments[(number + call) % len(arguments)]
                began = clock()
                action(argument)
                samples.append((clock() - began) * 1e6)
            results[name].append(samples)
    return results


def ratio(over: list[list[float]], under: list[list[float]]) -> float:
    """The median of the rounds' ratios of medians."""
    pairs = zip(over, under, strict=True)
    return statistics.median(statistics.median(one) / statistics.median(other) for one, other in pairs)


def imported_model(dimension: int) -> str:
    return local_bow.NAME if dimension == local_bow.DIMENSION else f"imported-{dimension}"


def make_ledger(directory: Path, matrix: np.ndarray) -> Path:
    """A ledger with as many events as the matrix has rows, and each row as the embedding of its event."""
    path = directory / f"{len(matrix)}-{matrix.shape[1]}.db"
    generate(path, len(matrix), seed=1)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, embedding BLOB, created_at REAL)")
        connection.executemany(_INSERT, ((number, row.tobytes()) for number, row in enumerate(matrix, 1)))
    return path


@contextmanager
def serving(path: Path, *options: str) -> Iterator[None]:
    """A daemon, and everything published: the folds and the vectors."""
    command = [*daemon_command(), "--verify-every", "0", *options, str(path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    instance = Instance.of(path)
    try:
        while not is_running(instance):
            assert process.poll() is None, "the daemon did not start"
            time.sleep(0.01)
        with connect(path) as cache:
            cache.wait_for(cache.metrics().as_of, timeout=600.0)
        commands.call(instance, protocol.INDEX, {}, limits.LONG_COMMAND_TIMEOUT_S)
        yield
    finally:
        process.terminate()
        process.wait()


class Worker:
    """Another process that runs one of `WORKERS`, with that many threads of OpenBLAS; None for what it takes itself."""

    def __init__(self, name: str, arguments: dict[str, Any], threads: int | None) -> None:
        env = {key: value for key, value in os.environ.items() if key != BLAS_THREADS}
        if threads is not None:
            env[BLAS_THREADS] = str(threads)
        command = [sys.executable, "-m", "bench.search", "--worker", name, json.dumps(arguments)]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def finish(self) -> str:
        """Its output."""
        output, _ = self._process.communicate(timeout=600)
        assert self._process.returncode == 0, "a worker failed"
        return output


def threads_text(threads: int | None) -> str:
    return "OpenBLAS as it comes" if threads is None else f"{BLAS_THREADS}={threads}"


def machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        BLAS_THREADS: os.environ.get(BLAS_THREADS),
    }


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


WORKERS: dict[str, Callable[..., None]] = {"memory": memory_worker, "contention": contention_worker}


if __name__ == "__main__":
    main()
