"""What one message reads, at one position of the log."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LedgerSnapshot:
    events: list
    identity: dict[str, Any]
    self_model: dict[str, Any]
    ias: float
    gas: float
    stage: str
    stage_snapshot: dict[str, Any]
    last_event_id: int
