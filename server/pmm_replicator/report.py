"""What the follower reports to the daemon: one small file in the instance directory, replaced whole.

Never in the replica's own file: each report would void every reader's memo.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pmm_shm.instance.making import replace_file
from pmm_shm.ledger.source.report import REPORT_FILE

_INTERVAL_S = 0.1


class ReplicationReport:
    """The follower's numbers: changes are written at once, and looks at the source ten times a second at most.

    Parameters:
        directory: the instance directory; nothing is written while it does not exist.
        clock: monotonic seconds.
    """

    def __init__(self, directory: Path, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = directory / REPORT_FILE
        self._clock = clock
        before = self._read()
        self._values: dict[str, Any] = {
            "pid": os.getpid(),
            "name": name,
            "server": None,
            "timeline": 0,
            "head_id": 0,
            "source_head_id": 0,
            # A follower that ends again and again does not look, either.
            "started_monotonic": before.get("started_monotonic", self._clock()),
            "looked_monotonic": before.get("looked_monotonic"),
            "behind_since_monotonic": before.get("behind_since_monotonic"),
            "forks": 0,
            "lost_files": [],
            "difference": None,
            "problem": None,
        }
        self._next_s = 0.0

    def update(self, **values: Any) -> None:
        """Note values, and write them."""
        self._values.update(values)
        self._write()

    def looked(self, head_id: int, source_head_id: int) -> None:
        """Note a look at the source: the replica's newest event, and the source's.

        Of many looks in a row not each is written: the slow poll follows the last one.
        """
        now = self._clock()
        is_behind = source_head_id > head_id
        since = self._values["behind_since_monotonic"]
        had_problem = self._values["problem"] is not None
        self._values.update(
            head_id=head_id,
            source_head_id=source_head_id,
            looked_monotonic=now,
            behind_since_monotonic=(since or now) if is_behind else None,
            problem=None,
        )
        if had_problem or now >= self._next_s:
            self._write()

    def _read(self) -> dict[str, Any]:
        """What the follower before has reported; the daemon removes it at its start."""
        try:
            before: Any = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return before if isinstance(before, dict) else {}

    def _write(self) -> None:
        """Replace the file. A disk that is full, or a directory that is gone, stops nobody."""
        self._next_s = self._clock() + _INTERVAL_S
        try:
            replace_file(self._path, json.dumps(self._values))
        except OSError:
            pass
