"""A daemon for the time of a `with` block."""

from __future__ import annotations

import os

from tests.support.crash import DiesAt
from tests.support.daemons import Daemon


class ForkedDaemon(Daemon):
    """A daemon of one test or module: a context manager that leaves nothing behind, not even a log.

    Parameters:
        waits: until it answers; not for one that is to die.
    """

    def __init__(
        self,
        ledger: str | os.PathLike[str],
        *options: str,
        dies_at: DiesAt | None = None,
        log: str | os.PathLike[str] = os.devnull,
        waits: bool = True,
    ) -> None:
        super().__init__(ledger, *options, log=log, dies_at=dies_at)
        if waits and dies_at is None:
            self.wait_answering()

    def __enter__(self) -> ForkedDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
