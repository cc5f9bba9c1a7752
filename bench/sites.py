"""Ledgers to measure on: made once by the code of `pmm-shm generate` and kept; copied for each run, with daemons.

Kept under a digest of the code that makes them: a changed generator makes new ones, and removes the old.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import daemons
from bench.daemons import Daemon
from pmm_shm.ledger import chain, schema
from pmm_shm.vectors import local_bow
from pmm_shm.wire import protocol
from pmm_shm_cli import synthetic
from pmm_shm_client import connect

SEED = 1
_BUILD_S = 3_600.0


def generator_digest() -> str:
    """Of the code that decides what a generated ledger holds."""
    sources = (synthetic, chain, schema, local_bow)
    return hashlib.sha256(b"".join(Path(str(one.__file__)).read_bytes() for one in sources)).hexdigest()[:12]


class Ledgers:
    """Generated ledgers that are kept between runs; never written after they were made."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory / generator_digest()
        self._say = say
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.iterdir():
            if old != self._directory:
                shutil.rmtree(old)
        self._directory.mkdir(exist_ok=True)

    def path(self, events: int) -> Path:
        path = self._directory / f"{events}.db"
        if not path.exists():
            self._say(f"generating a ledger of {events:,} events")
            # In rollback mode it is one file, and a copy of it is a copy.
            synthetic.generate(path, events, SEED, "delete")
        return path


class Site:
    """A copy of a ledger, and a daemon for it where one is wanted."""

    def __init__(self, ledger: Path, events: int) -> None:
        self.ledger = ledger
        self.events = events
        self.daemon: Daemon | None = None

    def start(self) -> Daemon:
        """The daemon, with everything published; it stays."""
        if self.daemon is None:
            self.daemon = Daemon(str(self.ledger), "--verify-every", "0", "--embedder", "none")
            self.wait_published()
        return self.daemon

    def wait_published(self) -> int:
        """Until the daemon has published what the ledger's head is now."""
        assert self.daemon is not None
        head: int = self.head()
        self.daemon.wait_answering(_BUILD_S)
        answer = self.daemon.call(
            protocol.WAIT, {"event_id": head, "timeout_ms": int(_BUILD_S * 1_000)}, timeout_s=_BUILD_S
        )
        assert answer["reached"], "the daemon did not publish"
        return head

    def head(self) -> int:
        head: int = daemons.execute(self.ledger, "SELECT coalesce(max(id), 0) FROM events")[0][0]
        return head

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = None

    def kill(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon = None


class Sites:
    """Hands out sites; small ledgers are copied anew for each row, large ones serve the whole run.

    What rows append to a large one is under 5 % of it.
    """

    def __init__(self, kept: Ledgers, directory: Path, shared_events_min: int) -> None:
        self._kept = kept
        self._directory = directory
        self._shared_events_min = shared_events_min
        self._shared: dict[int, Site] = {}
        self._count = 0

    @contextlib.contextmanager
    def site(self, events: int, *, fresh: bool = False, journal: str = "wal") -> Iterator[Site]:
        """A ledger of about so many events; `fresh`: of exactly so many, for this row alone, with nothing published."""
        if fresh or events < self._shared_events_min:
            made = self._copy(events, journal)
            try:
                yield made
            finally:
                made.kill()
                shutil.rmtree(made.ledger.parent)
            return
        if events not in self._shared:
            self._shared[events] = self._copy(events, journal)
        yield self._shared[events]

    def empty(self) -> Path:
        """An empty directory of this run."""
        self._count += 1
        directory = self._directory / str(self._count)
        directory.mkdir()
        return directory

    def close(self) -> None:
        for one in self._shared.values():
            one.kill()
        self._shared.clear()

    def _copy(self, events: int, journal: str) -> Site:
        target = self.empty() / "ledger.db"
        # Nobody in this process has either file open, so that no lock goes with a descriptor.
        shutil.copyfile(self._kept.path(events), target)
        daemons.execute(target, f"PRAGMA journal_mode = {journal}")
        return Site(target, events)


def published_as_of(site: Site) -> int:
    """The position of a site's snapshot."""
    with connect(site.ledger, consistency="snapshot") as cache:
        return cache.metrics().as_of
