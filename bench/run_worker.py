"""A process of the stand-in for PMM that a benchmark drives: `python -m bench.run_worker`, plain or with `--launched`.

It reads commands from its standard input, a JSON list a line, and answers each with a JSON value and the microseconds
that it took, and of the processor.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

STANDIN = Path(__file__).resolve().parent.parent / "tests" / "support" / "standin"


class Worker:
    """The commands."""

    def open(self, path: str) -> None:
        self._log = import_module("pmm.storage.eventlog").EventLog(path)
        loop = import_module("pmm.runtime.loop")
        self._runtime = loop.Runtime(self._log)
        self._autonomy = loop.AutonomyLoop(self._log, self._runtime)

    def close(self) -> None:
        self._log._conn.close()
        del self._log, self._runtime, self._autonomy

    def message(self, text: str) -> int:
        """The length of the reply."""
        return len(self._runtime.handle_user(text))

    def tick(self) -> int:
        return int(self._autonomy.tick())

    def head(self) -> int:
        events = self._log.read_all()
        return int(events[-1]["id"])

    def start_daemon(self, path: str) -> None:
        """In the background, as the first read of a message does."""
        import_module("pmm_shm_pmm.ledgers").ledger_at(path).cache  # noqa: B018

    def appends(self, count: int) -> float:
        """Microseconds of one append with the listeners of PMM: the median."""
        samples = []
        for number in range(count):
            began = perf_counter()
            self._log.append(kind="note", content="A note of some length", meta={"number": number})
            samples.append((perf_counter() - began) * 1e6)
        return statistics.median(samples)

    def recognition(self, calls: int) -> dict[str, float]:
        """Microseconds of recognising the live list, one that was recognised before, and a new one: medians."""
        recognised = import_module("pmm_shm_pmm.lists").recognised
        live = self._log.read_all()
        known = list(live)
        samples: dict[str, list[float]] = {"the live list": [], "a recognised list": [], "a new list": []}
        copies = (list(live) for _ in range(calls))
        # One after the other: a copy of a long list drives all else out of the processor's caches.
        for name, lists in zip(samples, ([live] * calls, [known] * calls, copies), strict=True):
            for number, events in enumerate(lists):
                began = perf_counter()
                recognised(events)
                if number > 0:
                    samples[name].append((perf_counter() - began) * 1e6)
        return {name: statistics.median(values) for name, values in samples.items()}

    def memory(self) -> int:
        """Bytes that only this process uses."""
        private = b"Private_Clean", b"Private_Dirty"
        with open("/proc/self/smaps_rollup", "rb") as lines:
            return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(private))

    def looked_at(self) -> int:
        """Events that folds and loops of the stand-in have looked at since the last call."""
        counts = import_module("pmm.work").looked_at
        total = sum(counts.values())
        counts.clear()
        return int(total)


class Process:
    """A worker in a process; a context manager that ends it.

    Parameters:
        variables: the environment.
    """

    def __init__(self, variables: Mapping[str, str], *, is_launched: bool) -> None:
        command = [sys.executable, "-m", "bench.run_worker", *(["--launched"] if is_launched else [])]
        self._process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.last_us = self.last_cpu_us = 0.0

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def do(self, name: str, *arguments: Any) -> Any:
        """One command; `last_us` is the time it took, `last_cpu_us` that of the processor."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, *arguments]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "a worker has ended"
        value, self.last_us, self.last_cpu_us = json.loads(line)
        return value


def main() -> None:
    sys.path.insert(0, str(STANDIN))
    if "--launched" in sys.argv:
        import_module("pmm_shm_pmm.auto")
    worker = Worker()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        began, used = perf_counter(), process_time()
        value = getattr(worker, name)(*arguments)
        took = perf_counter() - began, process_time() - used
        print(json.dumps([value, *(seconds * 1e6 for seconds in took)]), flush=True)


if __name__ == "__main__":
    main()
