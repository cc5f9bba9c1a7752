"""The counters of a cache's reads."""

from __future__ import annotations

from typing import Any


class ReadCounter:
    """Reads of one group, as this process sees them."""

    __slots__ = ("hits", "last_id", "misses", "recomputations")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.recomputations = 0
        self.last_id = 0

    def as_dict(self) -> dict[str, Any]:
        total = self.hits + self.misses
        return {
            "cache_hits": self.hits,
            "cache_misses": self.misses,
            "hit_rate": self.hits / total if total else 0.0,
        }
