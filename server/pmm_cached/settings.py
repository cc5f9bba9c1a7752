"""The settings of a daemon, from its command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pmm_cached.replication import Source
from pmm_shm import limits
from pmm_shm.vectors.events import DEFAULT_KINDS
from pmm_shm.words.texts import WORD_KINDS

if TYPE_CHECKING:
    from pmm_shm.ledger.shape import Shape


@dataclass(frozen=True)
class Settings:
    """Settings of one daemon.

    Attributes:
        verify_every_events: number of events between two periodic verifications; 0 for none.
        verify_cpu_budget: share of one core for periodic verification, above 0 and up to 1.
        slow_poll_s: longest sleep without a file system event.
        map_size_bytes: initial size of the LMDB map.
        text_vectors_max: number of text vectors to keep, at least 1.
        embedder: name of the embedder for events; None for none.
        embed_kinds: event kinds whose content is embedded.
        word_kinds: event kinds whose texts are in the index of words, ascending; empty for no index.
        idle_exit_s: end after so many seconds without an append, a command, or a worker's report; None for never.
        folds: further folds, as `package.module:attribute`.
        only_folds: the folds in place of the built-in and the registered ones, or of the shape's; None for those.
        shape: how a table of another program is the log; None for the recorded shape, if there is one.
        metrics_port: port for Prometheus on 127.0.0.1; 0 for any free port, None for off.
        source: the ledger in PostgreSQL that this one is a replica of, and is to follow; None for none.
    """

    verify_every_events: int = limits.VERIFY_EVERY_EVENTS
    verify_cpu_budget: float = limits.VERIFY_CPU_BUDGET
    slow_poll_s: float = limits.SLOW_POLL_S
    map_size_bytes: int = limits.MAP_SIZE_BYTES
    text_vectors_max: int = limits.TEXT_VECTORS_MAX
    embedder: str | None = "local-bow"
    embed_kinds: tuple[str, ...] = DEFAULT_KINDS
    word_kinds: tuple[str, ...] = tuple(sorted(WORD_KINDS))
    idle_exit_s: float | None = None
    folds: tuple[str, ...] = ()
    only_folds: tuple[str, ...] | None = None
    shape: Shape | None = None
    metrics_port: int | None = None
    source: Source | None = None
