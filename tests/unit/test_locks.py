"""The system's table of locks comes in pieces, and may lack one that is held: nobody is suspected for that."""

from __future__ import annotations

import pytest

from pmm_shm.ledger import locks
from pmm_shm.ledger.locks import WAL_DMS_BYTE, holders_of


def test_a_long_table_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One piece is of one moment; of several, the second look may have what the first lacked."""
    line = b"1: POSIX  ADVISORY  READ %d fe:00:7 128 128"
    looks = [([line % 11], False), ([line % 12], False), ([line % 13], True)]
    monkeypatch.setattr(locks, "_table", lambda: looks.pop(0))
    assert holders_of(7, WAL_DMS_BYTE) == {(11, b"fe:00"), (12, b"fe:00")}
    assert holders_of(7, WAL_DMS_BYTE) == {(13, b"fe:00")}
