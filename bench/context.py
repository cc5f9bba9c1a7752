"""The surroundings of a row: the amount of work, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.scale import Scale
from bench.sites import Sites


@dataclass(frozen=True)
class Bench:
    """One run.

    Attributes:
        say: tells whoever waits what is under way.
    """

    scale: Scale
    sites: Sites
    say: Callable[[str], None]

    @property
    def largest(self) -> int:
        """The size of the largest ledger."""
        return max(self.scale.events)

    @property
    def naive_largest(self) -> int:
        """The size of the largest ledger that is replayed for every answer."""
        return max(events for events in self.scale.events if events <= self.scale.naive_events_max)
