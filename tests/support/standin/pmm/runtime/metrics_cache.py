"""IAS and GAS of the last read, kept until the log grows."""

from pmm.runtime.metrics import compute_ias_gas


class MetricsCache:
    def __init__(self):
        self.clear()

    def clear(self):
        self._metrics = None
        self._last_id = 0
        self._hits = 0
        self._misses = 0
        self._events_processed = 0

    def get_metrics(self, eventlog):
        events = eventlog.read_all()
        last_id = events[-1]["id"] if events else 0
        if self._metrics is not None and last_id == self._last_id:
            self._hits += 1
        else:
            self._metrics = compute_ias_gas(events)
            self._misses += 1
            self._events_processed += sum(event["id"] > self._last_id for event in events)
            self._last_id = last_id
        return self._metrics

    def get_stats(self):
        reads = self._hits + self._misses
        ias, gas = self._metrics or (0.0, 0.0)
        return {
            "cache_hits": self._hits,
            "cache_misses": self._misses,
            "hit_rate": self._hits / reads if reads else 0.0,
            "events_processed": self._events_processed,
            "last_id": self._last_id,
            "recomputations": self._misses,
            "ias": ias,
            "gas": gas,
        }
