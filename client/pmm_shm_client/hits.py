"""The results of searches: immutable, best first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

from pmm_shm.frozen import json_text, plain, plain_dict, result
from pmm_shm.ledger.eventlog import EventDict


@result
class Hit(NamedTuple):
    """An event and its similarity to the query, -1.0 to 1.0."""

    event_id: int
    similarity: float

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class Recollection(NamedTuple):
    """As `Hit`, with the event as returned by `EventLog.get_event`."""

    event_id: int
    similarity: float
    event: EventDict

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


FoundBy = Literal["meaning", "words", "both"]


@result
class Match(NamedTuple):
    """An event that a search by words, or by words and meaning, has found.

    Attributes:
        similarity: to the query, -1.0 to 1.0; None if the event has no vector, or none was compared.
        word_score: BM25 of the query's words, above 0; None if the event holds none of them.
        found_by: which of the two searches had it among its first hits.
    """

    event_id: int
    similarity: float | None
    word_score: float | None
    found_by: FoundBy

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class MatchedEvent(NamedTuple):
    """As `Match`, with the event as returned by `EventLog.get_event`."""

    event_id: int
    similarity: float | None
    word_score: float | None
    found_by: FoundBy
    event: EventDict

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


_H = TypeVar("_H", bound="Hit | Recollection | Match | MatchedEvent")


class Hits(tuple[_H, ...]):
    """The result of a search, best first, ties by ascending event id; immutable.

    Attributes:
        as_of: every event up to this one was taken into account.
        is_complete: whether that was the head of the log when the search read it.
        embedded_here: the number of events that the published table did not have, and that this process embedded.
        model: whose vectors were compared; "" if none were.
        mode: `"meaning"`, `"words"`, `"hybrid"` or `"auto"`.
        indexed_here: the number of events that were searched by words, and that the published index did not have.
        problem: why an `"auto"` search compared no vectors; otherwise None.
    """

    as_of: int
    is_complete: bool
    embedded_here: int
    model: str
    mode: str
    indexed_here: int
    problem: str | None

    def __new__(
        cls,
        hits: Iterable[_H],
        as_of: int,
        is_complete: bool,
        embedded_here: int,
        model: str,
        mode: str = "meaning",
        indexed_here: int = 0,
        problem: str | None = None,
    ) -> Hits[_H]:
        made = super().__new__(cls, hits)
        made.as_of, made.is_complete, made.embedded_here, made.model = as_of, is_complete, embedded_here, model
        made.mode, made.indexed_here, made.problem = mode, indexed_here, problem
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        # The attributes are arguments: without them no tuple of this class can be made.
        return Hits, (tuple(self), *self._attributes())

    def __repr__(self) -> str:
        best = self[0] if self else None
        similarity = "" if best is None or best.similarity is None else f" ({best.similarity:.3f})"
        shown = "" if best is None else f", best {best.event_id}{similarity}"
        whole = "" if self.is_complete else ", incomplete"
        return f"<Hits of {self.model or self.mode}: {len(self)}{shown}, as_of={self.as_of}{whole}>"

    def to_dict(self) -> dict[str, Any]:
        """A new dict: the attributes, and `hits`, a list of dicts."""
        names = ("as_of", "is_complete", "embedded_here", "model", "mode", "indexed_here", "problem")
        return {"hits": plain(tuple(self)), **dict(zip(names, self._attributes(), strict=True))}

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(self.to_dict())

    def with_events(self, event_of: Callable[[int], EventDict | None]) -> Hits[Any]:
        """The same with the events, without those that are no longer in the log."""
        kept: list[Recollection | MatchedEvent] = []
        for hit in self:
            event = event_of(hit.event_id)
            if event is not None:
                if isinstance(hit, Match | MatchedEvent):
                    kept.append(MatchedEvent(*hit[:4], event))
                else:
                    kept.append(Recollection(*hit[:2], event))
        return Hits(kept, *self._attributes())

    def _attributes(self) -> tuple[int, bool, int, str, str, int, str | None]:
        return (
            self.as_of,
            self.is_complete,
            self.embedded_here,
            self.model,
            self.mode,
            self.indexed_here,
            self.problem,
        )
