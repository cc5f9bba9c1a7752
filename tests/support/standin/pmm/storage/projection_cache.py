"""The self-model of the last read, kept until the log grows."""

import copy

from pmm.storage.projection import build_self_model


class ProjectionCache:
    def __init__(self, *, strict=False, max_trait_delta=0.05):
        self._strict = strict
        self._max_trait_delta = max_trait_delta
        self.clear()

    def clear(self):
        self._model = None
        self._last_id = 0
        self._hits = 0
        self._misses = 0
        self._events_processed = 0

    def get_model(self, eventlog, *, on_warn=None):
        """A copy that the caller may change."""
        events = eventlog.read_all()
        last_id = events[-1]["id"] if events else 0
        if self._model is not None and last_id == self._last_id:
            self._hits += 1
        else:
            self._model = build_self_model(
                events, strict=self._strict, max_trait_delta=self._max_trait_delta, on_warn=on_warn
            )
            self._misses += 1
            self._events_processed += sum(event["id"] > self._last_id for event in events)
            self._last_id = last_id
        return copy.deepcopy(self._model)

    def get_identity(self, eventlog):
        return self.get_model(eventlog)["identity"]

    def get_stats(self):
        reads = self._hits + self._misses
        return {
            "cache_hits": self._hits,
            "cache_misses": self._misses,
            "hit_rate": self._hits / reads if reads else 0.0,
            "events_processed": self._events_processed,
            "last_id": self._last_id,
            "verifications_passed": 0,
            "verifications_failed": 0,
            "cached": self._model is not None,
        }
