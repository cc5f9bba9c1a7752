"""What one server serves: its ledger's parts, made once and shared by pages and API."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from pmm_shm import limits
from pmm_shm.errors import PmmShmError
from pmm_shm_web.facets import KindCounter
from pmm_shm_web.folds import UserFolds
from pmm_shm_web.jobs import Jobs
from pmm_shm_web.ledger import LedgerQueries
from pmm_shm_web.live import Live
from pmm_shm_web.mind import Mind, WatchingCache
from pmm_shm_web.operations import Operations
from pmm_shm_web.stream import Stream, StreamQuery


@dataclass(frozen=True)
class Site:
    """The parts of one ledger's pages."""

    path: str
    ledger: LedgerQueries
    mind: Mind
    stream: Stream
    kinds: KindCounter
    jobs: Jobs
    live: Live
    operations: Operations
    caches: tuple[WatchingCache, ...]
    shape: str | None
    """By which the log of another program is read; None for a ledger."""

    @classmethod
    def of(cls, path: str, folds: Iterable[str] = ()) -> Site:
        """Open a ledger to look at it.

        Parameters:
            folds: names of users' folds to show beside the registered ones, as package.module:attribute.

        Raises:
            ConfigError: a name means nothing.
            FoldError: a named fold does not load, or breaks the contract.
            LedgerError: there is no usable ledger.
        """
        cache = WatchingCache(path)
        listening = WatchingCache(path)
        ledger = LedgerQueries(cache.path, limits.LEDGER_TIMEOUT_S)
        jobs = Jobs()
        return cls(
            cache.path,
            ledger,
            Mind(cache, ledger, jobs, UserFolds(folds, ledger.connection)),
            Stream(ledger),
            KindCounter(ledger),
            jobs,
            Live(listening, ledger),
            Operations(cache.path),
            (cache, listening),
            None if cache.shape is None else str(cache.shape),
        )

    def warm_up(self) -> None:
        """Make what the first page needs, as far as that is quick; a replay goes on in its thread."""
        with contextlib.suppress(PmmShmError):
            self.mind.frame(None)
            self.stream.page(StreamQuery())
            self.kinds.counts()
            self.operations.glance()

    def close(self) -> None:
        """End jobs and streams, and close the ledger."""
        self.jobs.cancel_all()
        self.live.close()
        for cache in self.caches:
            cache.close()
        self.ledger.close()
