"""Reports of workers."""

from __future__ import annotations

from typing import Any

from pmm_shm.instance.paths import FileId
from pmm_shm.wire import protocol
from pmm_shm.wire.protocol import COUNTERS, Request


def counters(**changes: int) -> dict[str, int]:
    return {**dict.fromkeys(COUNTERS, 0), **changes}


def packed(worker: Any = 1, is_last: Any = False, counted: Any = None, ledger: FileId | None = None) -> bytes:
    args = {"worker": worker, "counters": counters() if counted is None else counted, "is_last": is_last}
    return Request(0, protocol.REPORT, args, ledger).pack()
