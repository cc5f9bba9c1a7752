"""Interleaved timing: the sides take turns within one run, so that other load on the machine affects all alike.

Owns: samples, their medians and p99, and ratios of two sides. `pmm-shm bench` and `make bench` use nothing else. Times
are in microseconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")
Action = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """The durations of one side.

    Attributes:
        rounds_us: one number for each round: the median of its calls, or the mean of its loop.
        p50_us: the median of `rounds_us`.
        p99_us: of all calls that were timed one by one, including about 0.05 µs for reading the clock.
        calls: the number of those calls.
    """

    name: str
    rounds_us: tuple[float, ...]
    p50_us: float
    p99_us: float
    calls: int

    def as_dict(self) -> dict[str, Any]:
        """As a JSON object, without the single rounds."""
        return {"name": self.name, "p50_us": self.p50_us, "p99_us": self.p99_us, "calls": self.calls}


class Ratio(NamedTuple):
    """One side over another: the median of the rounds' ratios, and the ratio of the two p99."""

    p50: float
    p99: float


def ratio(over: Timing, under: Timing) -> Ratio:
    """The durations of `over` divided by those of `under`, round by round."""
    pairs = zip(over.rounds_us, under.rounds_us, strict=True)
    return Ratio(statistics.median(one / other for one, other in pairs), over.p99_us / under.p99_us)


def p99(samples: Sequence[float]) -> float:
    """The value that 99 of 100 samples do not exceed."""
    return quantile(samples, 0.99)


def quantile(samples: Sequence[float], share: float) -> float:
    """The lowest value that this share of the samples does not exceed."""
    return sorted(samples)[max(0, math.ceil(round(len(samples) * share, 6)) - 1)]


class RoundTimer:
    """Samples of several sides, taken one by one, in rounds."""

    def __init__(self) -> None:
        self._now: dict[str, list[float]] = {}
        self._all: dict[str, list[float]] = {}
        self._rounds: dict[str, list[float]] = {}

    def time(self, name: str, action: Callable[..., _T], *arguments: Any) -> _T:
        """Call `action` once for this side; returns what it returned."""
        began = perf_counter()
        value = action(*arguments)
        self.add(name, (perf_counter() - began) * 1e6)
        return value

    def add(self, name: str, sample_us: float) -> None:
        """Add a sample that was taken elsewhere."""
        self._now.setdefault(name, []).append(sample_us)

    def end_round(self) -> None:
        """Close a round: the samples since the last call, at least one of every side."""
        for name, samples in self._now.items():
            self._all.setdefault(name, []).extend(samples)
            self._rounds.setdefault(name, []).append(statistics.median(samples))
        self._now = {}

    def timings(self) -> dict[str, Timing]:
        """The timing of each side."""
        return {name: timing(name, self._rounds[name], samples) for name, samples in self._all.items()}


def timing(name: str, rounds_us: Sequence[float], samples_us: Sequence[float]) -> Timing:
    """The timing of one side, from one number per round and all calls timed one by one."""
    return Timing(name, tuple(rounds_us), statistics.median(rounds_us), p99(samples_us), len(samples_us))


def interleaved(sides: Mapping[str, Action], rounds: int, calls: int | Mapping[str, int]) -> dict[str, Timing]:
    """Each side's calls, round by round in turns; each round begins with another side.

    In a round a side first runs in a plain loop. Its mean counts for the median, because reading the clock would be a
    large part of a short call. Then the same calls are timed one by one, for p99. A side with one call per round is
    timed once.

    Parameters:
        calls: per side and round.
    """
    names = list(sides)
    loops: dict[str, list[float]] = {name: [] for name in names}
    singles: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            count = calls if isinstance(calls, int) else calls[name]
            single = _timed_one_by_one(sides[name], count)
            loops[name].append(_timed_in_a_loop(sides[name], count) if count > 1 else single[0])
            singles[name] += single
    return {name: timing(name, loops[name], singles[name]) for name in names}


def _timed_in_a_loop(action: Action, calls: int) -> float:
    began = perf_counter()
    for _ in range(calls):
        action()
    return (perf_counter() - began) / calls * 1e6


def _timed_one_by_one(action: Action, calls: int) -> list[float]:
    samples = []
    for _ in range(calls):
        began = perf_counter()
        action()
        samples.append((perf_counter() - began) * 1e6)
    return samples
