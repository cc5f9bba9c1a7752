"""PMM's two caches, as its monitoring looks at them: the self-model and the metrics of the last read.

They call the folds of the patched module, for which a list that is the log is a look-up; so a log that the product does
not share is served, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from pmm_shm.frozen import thawed


class _LastRead:
    """The answer of the last read, as long as the log does not grow, and the counts of reads.

    Parameters:
        module: PMM's module with the fold.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.clear()

    def clear(self) -> None:
        """Forget the answer, and count from zero."""
        self._answer: Any = None
        self._log: Callable[[], Any] = _nobody
        self._at = (0, 0)
        self._hits = self._misses = self._events_processed = 0

    def _read(self, eventlog: Any, compute: Callable[[list[Any]], Any]) -> Any:
        events = eventlog.read_all()
        at = (events[-1]["id"], len(events)) if events else (0, 0)
        is_same_log = self._log() is eventlog
        if is_same_log and self._at == at and self._answer is not None:
            self._hits += 1
            return self._answer
        answer = compute(events)
        self._misses += 1
        self._events_processed += max(0, at[1] - self._at[1]) if is_same_log else at[1]
        self._answer, self._at, self._log = answer, at, weakref.ref(eventlog)
        return answer

    def _counts(self) -> dict[str, Any]:
        reads = self._hits + self._misses
        return {
            "cache_hits": self._hits,
            "cache_misses": self._misses,
            "hit_rate": self._hits / reads if reads else 0.0,
            "events_processed": self._events_processed,
            "last_id": self._at[0],
        }


def _nobody() -> None:
    return None


class SharedProjectionCache(_LastRead):
    """Takes the place of PMM's global `ProjectionCache`.

    Parameters:
        module: `pmm.storage.projection`.
        strict, max_trait_delta: of all its models.
    """

    def __init__(self, module: Any, *, strict: bool = False, max_trait_delta: float = 0.05) -> None:
        super().__init__(module)
        self._options = {"strict": strict, "max_trait_delta": max_trait_delta}

    def get_model(self, eventlog: Any, *, on_warn: Any = None) -> dict[str, Any]:
        """The self-model: the caller's own at every depth.

        Raises:
            Exception: what PMM's `build_self_model` raises.
        """

        def compute(events: list[Any]) -> Any:
            return self._module.build_self_model(events, **self._options, on_warn=on_warn)

        model: dict[str, Any] = thawed(self._read(eventlog, compute))
        return model

    def get_identity(self, eventlog: Any) -> dict[str, Any]:
        """The identity in `get_model`."""
        identity: dict[str, Any] = self.get_model(eventlog)["identity"]
        return identity

    def get_stats(self) -> dict[str, Any]:
        """Counts of reads. Verifications are the daemon's: none are made here."""
        return {
            **self._counts(),
            "verifications_passed": 0,
            "verifications_failed": 0,
            "cached": self._answer is not None,
        }


class SharedMetricsCache(_LastRead):
    """Takes the place of PMM's global `MetricsCache`.

    Parameters:
        module: `pmm.runtime.metrics`.
    """

    def get_metrics(self, eventlog: Any) -> tuple[float, float]:
        """(IAS, GAS).

        Raises:
            Exception: what PMM's `compute_ias_gas` raises.
        """
        metrics: tuple[float, float] = self._read(eventlog, self._module.compute_ias_gas)
        return metrics

    def get_stats(self) -> dict[str, Any]:
        """Counts of reads, and the last metrics; 0.0 before the first read."""
        ias, gas = self._answer or (0.0, 0.0)
        return {**self._counts(), "recomputations": self._misses, "ias": ias, "gas": gas}
