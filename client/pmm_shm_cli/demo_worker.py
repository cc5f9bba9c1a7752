"""One worker process of `pmm-shm demo`: appends, reads at once, and checks the answers.

Arguments: ledger, seed. Prints a report as one line of JSON several times a second, and a last one when its stdin ends,
which it also does when the parent dies.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
from itertools import cycle, islice
from typing import Any

from pmm_shm_cli.agent_life import AgentLife
from pmm_shm_client.cache import Cache

_READS_PER_APPEND = 1_000
_REPORT_S = 0.1
_PAUSE_S = 0.004
_SAMPLES_MAX = 20_000
_MESSAGES = frozenset({"user", "response"})


class DemoWorker:
    """Counts what one worker does; `violations` are the promises that were broken, at most ten."""

    def __init__(self, ledger: str, seed: int) -> None:
        self._cache = Cache(ledger)
        self._events = AgentLife(seed).events()
        self._reads = cycle((self._cache.metrics, self._cache.identity, self._cache.stage, self._cache.recent))
        self._last: dict[str, Any] = {}
        self._random = random.Random(seed)
        self._samples_us: list[float] = []
        self.appends = 0
        self.reads = 0
        self.hits = 0
        self.as_of = 0
        self.violations: list[str] = []

    def turn(self) -> None:
        """One append, and many reads."""
        _, kind, content, meta = next(event for event in self._events if not event[1].startswith("identity_"))
        event_id = self._cache.append(kind, content, meta)
        self.appends += 1
        recent = self._cache.recent()
        if recent.as_of < event_id:
            self._violated(f"event {event_id} was appended, and the next read stood at {recent.as_of}")
        elif kind in _MESSAGES and event_id > recent.messages[0].id and all(e.id != event_id for e in recent.messages):
            self._violated(f"message {event_id} was appended, and the next read did not have it")
        for read in islice(self._reads, _READS_PER_APPEND):
            self._read(read)

    def _read(self, read: Any) -> None:
        start = time.perf_counter_ns()
        result = read()
        elapsed_ns = time.perf_counter_ns() - start
        self.reads += 1
        # A hit returns the same object as the read before: nothing was looked up or built.
        name = read.__name__
        self.hits += result is self._last.get(name)
        self._last[name] = result
        if result.as_of < self.as_of:
            self._violated(f"{name} went back from event {self.as_of} to {result.as_of}")
        self.as_of = result.as_of
        if len(self._samples_us) < _SAMPLES_MAX:
            self._samples_us.append(elapsed_ns / 1_000)
        elif self._random.random() < _SAMPLES_MAX / self.reads:
            self._samples_us[self._random.randrange(_SAMPLES_MAX)] = elapsed_ns / 1_000

    def report(self) -> dict[str, Any]:
        """The numbers so far; the percentiles are over a random sample of all reads."""
        ordered = sorted(self._samples_us)
        return {
            "appends": self.appends,
            "reads": self.reads,
            "hits": self.hits,
            "as_of": self.as_of,
            "p50_us": ordered[len(ordered) // 2] if ordered else 0.0,
            "p99_us": ordered[len(ordered) * 99 // 100] if ordered else 0.0,
            "violations": self.violations,
        }

    def close(self) -> None:
        self._cache.close()

    def _violated(self, text: str) -> None:
        if len(self.violations) < 10:
            self.violations.append(text)


def main(ledger: str, seed: str) -> None:
    """Work until stdin ends."""
    worker = DemoWorker(ledger, int(seed))
    next_report = 0.0
    try:
        while not select.select([sys.stdin], [], [], 0)[0]:
            worker.turn()
            if time.monotonic() >= next_report:
                _print({**worker.report(), "is_final": False})
                next_report = time.monotonic() + _REPORT_S
            time.sleep(_PAUSE_S)
        _print({**worker.report(), "is_final": True})
    finally:
        worker.close()


def _print(report: dict[str, Any]) -> None:
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
