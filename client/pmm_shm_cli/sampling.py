"""Rates from repeated samples. Pure: the clock is a parameter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pmm_shm import limits

SAMPLES_MAX = 600
# Workers report every few seconds: over a shorter time their rate would be a row of spikes.
_READS_WINDOW_S = 2 * limits.REPORT_EVERY_S
_READS = ("projection_hits", "projection_misses", "metrics_hits", "metrics_misses")
_HITS = ("projection_hits", "metrics_hits")
_SERVED = (*_HITS, "projection_caught_up", "metrics_caught_up")


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        at: monotonic seconds.
        head_id: the newest event; None if the ledger cannot be read.
        scores: (IAS, GAS), as of the head.
        daemon: its numbers; None without one.
        own_commands: number of commands that this program has sent to the daemon so far.
    """

    at: float
    head_id: int | None
    scores: tuple[float, float] | None
    daemon: Mapping[str, Any] | None
    own_commands: int = 0

    @property
    def reads(self) -> int | None:
        return None if self.daemon is None else sum(self.daemon["workers"][name] for name in _READS)

    @property
    def hits(self) -> int | None:
        return None if self.daemon is None else sum(self.daemon["workers"][name] for name in _HITS)

    @property
    def served(self) -> int | None:
        return None if self.daemon is None else sum(self.daemon["workers"][name] for name in _SERVED)


@dataclass
class Series:
    """The newest samples, bounded: rates per second, and the scores. None is unknown."""

    events: deque[float | None] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    reads: deque[float | None] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    commands: deque[float | None] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    commits: deque[float | None] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    ias: deque[float | None] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    gas: deque[float | None] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    hit_rate: float | None = None
    served_rate: float | None = None
    last: Sample | None = None
    _window: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))

    def begin_with(self, scores: Sequence[tuple[float, float]], event_rates: Sequence[float]) -> None:
        """Put what was before the first sample: (IAS, GAS), and events per second, the oldest first."""
        self.ias.extend(ias for ias, _ in scores)
        self.gas.extend(gas for _, gas in scores)
        self.events.extend(event_rates)

    def add(self, sample: Sample) -> None:
        """Add the next sample."""
        before = self.last
        self.ias.append(None if sample.scores is None else sample.scores[0])
        self.gas.append(None if sample.scores is None else sample.scores[1])
        self.events.append(None if before is None else _rate(before, sample, before.head_id, sample.head_id))
        if before is None or not _is_same_daemon(before, sample):
            self._window.clear()
            self.commands.append(None)
            self.commits.append(None)
        else:
            assert before.daemon is not None
            assert sample.daemon is not None
            own = sample.own_commands - before.own_commands
            commands = max(0, sample.daemon["commands"] - before.daemon["commands"] - own)
            self.commands.append(_rate(before, sample, 0, commands))
            self.commits.append(_rate(before, sample, before.daemon["commits"], sample.daemon["commits"]))
        self._add_reads(sample)
        self.last = sample

    def _add_reads(self, sample: Sample) -> None:
        if sample.daemon is None:
            self.reads.append(None)
            return
        window = self._window
        while len(window) > 1 and sample.at - window[1].at >= _READS_WINDOW_S:
            window.popleft()
        self.reads.append(_rate(window[0], sample, window[0].reads, sample.reads) if window else None)
        if window:
            first, grown = window[0], (sample.reads or 0) - (window[0].reads or 0)
            if grown > 0:
                self.hit_rate = ((sample.hits or 0) - (first.hits or 0)) / grown
                self.served_rate = ((sample.served or 0) - (first.served or 0)) / grown
        window.append(sample)


def _is_same_daemon(before: Sample, sample: Sample) -> bool:
    if before.daemon is None or sample.daemon is None:
        return False
    # A pid can be reused: a shorter uptime than before belongs to another process.
    same_pid = before.daemon["pid"] == sample.daemon["pid"]
    return bool(same_pid and before.daemon["uptime_ms"] <= sample.daemon["uptime_ms"])


def _rate(before: Sample, sample: Sample, start: int | None, end: int | None) -> float | None:
    if start is None or end is None or sample.at <= before.at:
        return None
    # Less than before: the ledger was replaced.
    return (end - start) / (sample.at - before.at) if end >= start else None


def event_rates(ages_s: Iterable[float], interval_s: float, is_all: bool) -> list[float]:
    """Events per second over successive intervals up to now, the oldest first.

    Parameters:
        ages_s: of the newest events, in seconds.
        is_all: whether there are no older events; otherwise intervals before the oldest age are left out.
    """
    numbers = [int(age_s // interval_s) for age_s in ages_s if age_s >= 0]
    known = SAMPLES_MAX if is_all else min(SAMPLES_MAX, max(numbers, default=0))
    counts = [0] * known
    for number in numbers:
        if number < known:
            counts[number] += 1
    return [count / interval_s for count in reversed(counts)]
