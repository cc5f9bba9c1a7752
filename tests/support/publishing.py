"""A publisher in this process, and events of every kind that a fold reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pmm_cached.follower import Follower, all_folds
from pmm_cached.rebuild import Rebuild
from pmm_cached.status import Status
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.store.writer import StoreWriter

MARKS = ("auto", "data_version")


class Publisher:
    """What the daemon publishes, in this process: the test says when."""

    def __init__(self, path: str) -> None:
        instance = Instance.of(path)
        instance.directory.mkdir(exist_ok=True)
        self._path = path
        self._is_closed = False
        self.writer = StoreWriter(instance)
        self._status = Status(path)
        self._folds = all_folds()
        self.follower = Follower(path, self.writer, self._folds, self._status)
        self.rebuild()

    def rebuild(self) -> None:
        """Every fold anew, into a new generation."""
        rebuild = Rebuild(self._path, self.writer, self._folds, lambda: None)
        rebuild.run()
        rebuild.finish(self.follower)
        while self.writer.delete_old_generation():
            pass

    def publish(self) -> None:
        """Up to the head that its connection sees."""
        while not self.follower.step().is_complete:
            pass

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.follower.close()
            self.writer.close()


@pytest.fixture
def publish() -> Iterator[Callable[[str], Publisher]]:
    publishers: list[Publisher] = []

    def make(path: str) -> Publisher:
        publishers.append(Publisher(path))
        return publishers[-1]

    yield make
    for publisher in publishers:
        publisher.close()


def event(number: int) -> dict[str, Any]:
    """One event of each kind that a built-in fold reads, in turns."""
    cid = f"c{number // 8}"
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("trait_update", "", {"trait": "o", "delta": 0.01 * (number % 5)}),
        ("commitment_open", f"promise {number}", {"cid": cid, "text": f"text {number}"}),
        ("user", f"message {number}", {}),
        ("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": number % 7 / 10}, "stage": "S1"}),
        ("evidence_candidate", "", {"cid": cid}),
        ("autonomy_directive", f"directive {number % 40}", {"source": "reply"}),
        ("reflection", "my name is Echo and identity persists", {}),
        ("commitment_close" if number % 16 < 8 else "invariant_violation", "", {"cid": cid, "code": str(number)}),
    ]
    kind, content, meta = kinds[number % 8]
    return {"kind": kind, "content": content, "meta": meta}


def fill(path: str, count: int, start: int = 0) -> None:
    with EventLog(path) as log:
        log.append_many([event(number) for number in range(start, start + count)])


def foreign(path: str, kind: str = "user", content: str = "from elsewhere", meta: str = "{}") -> None:
    """One event through a connection of its own, as another program would; never waits."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute(
            "INSERT INTO events (ts, kind, content, meta) VALUES ('2026-01-01T00:00:00Z', ?, ?, ?)",
            (kind, content, meta),
        )
    finally:
        connection.close()
