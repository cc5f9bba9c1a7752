"""What the command line can set."""

from __future__ import annotations

from dataclasses import dataclass

from pmm_shm import limits
from pmm_shm.vectors.events import DEFAULT_KINDS


@dataclass(frozen=True)
class Settings:
    """Settings of one daemon.

    Attributes:
        verify_every_events: a verification after so many events; 0 for none.
        verify_cpu_budget: share of one core that verification may take, above 0 and up to 1.
        slow_poll_s: how long to sleep at most without an event from the system.
        map_size_bytes: size of the LMDB map to begin with.
        text_vectors_max: how many text vectors are kept, at least 1.
        embedder: name of the embedder of events; None for none.
        embed_kinds: kinds of the events whose content it embeds.
        metrics_port: where Prometheus may ask, on loopback; 0 for any free port, None for nowhere.
    """

    verify_every_events: int = limits.VERIFY_EVERY_EVENTS
    verify_cpu_budget: float = limits.VERIFY_CPU_BUDGET
    slow_poll_s: float = limits.SLOW_POLL_S
    map_size_bytes: int = limits.MAP_SIZE_BYTES
    text_vectors_max: int = limits.TEXT_VECTORS_MAX
    embedder: str | None = "local-bow"
    embed_kinds: tuple[str, ...] = DEFAULT_KINDS
    metrics_port: int | None = None
