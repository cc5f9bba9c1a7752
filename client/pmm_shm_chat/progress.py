"""A turn while it runs: the answer so far, the events so far, and the time of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.vectors.embedder import encodable
from pmm_shm_client.thinking import ThinkingFilter


class FollowUp(NamedTuple):
    """An event that follows from the statements in a message."""

    id: int
    kind: str
    content: str
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Timings:
    """The time spent on the parts of a turn, in ms."""

    append_ms: float
    context_ms: float
    model_ms: float

    @property
    def without_model_ms(self) -> float:
        """The time of the turn except for the model."""
        return self.append_ms + self.context_ms


class PartialAnswer(ThinkingFilter):
    """The answer so far."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.is_interrupted = False

    def read(self, pieces: Iterable[str]) -> Iterator[str]:
        """What each of the pieces adds to the answer."""
        for piece in pieces:
            added = self.add(piece)
            self.size = len(added) + (0 if self.is_retracted else self.size)
            yield added
        yield self.end()

    @property
    def text(self) -> str:
        """The answer as it is stored."""
        return encodable(self.answer[: limits.TEXT_CHARS_MAX]).strip()


class TurnProgress:
    """The events and timings of a turn so far."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.event_ids: list[int] = []
        self.follow_ups: list[FollowUp] = []
        self._clock_ns = clock_ns
        self._spent_ns = {"append": 0, "context": 0, "model": 0}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of a `with` block to a part."""
        began = self._clock_ns()
        try:
            yield
        finally:
            self._spent_ns[part] += self._clock_ns() - began

    def timings(self) -> Timings:
        return Timings(**{f"{part}_ms": spent / 1e6 for part, spent in self._spent_ns.items()})
