"""The events of one log as the dicts that PMM gets: its newest ones, and older ones as they are looked at.

Invariant: they are a gapless suffix of the log, by ascending id; an event is always the same dict.
"""

from __future__ import annotations

import json
import weakref
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

from pmm_shm.ledger.rows import RawRow, text_or_empty

if TYPE_CHECKING:
    from pmm_shm_client.frame import Frame
    from pmm_shm_pmm.ledgers import Ledger

PmmEvent = dict[str, Any]
_CHUNK = 256
SHORT_IDS_MAX = 500
"""A log whose ids are not greater is short: cheap to load and to compare."""
_ID = "id"


class Loaded:
    """What is loaded of one log. Replaced by another where the ledger holds another log.

    Everything here changes with the ledger's lock held.

    Parameters:
        newest: the newest row; None in an empty log.

    Attributes:
        ledger: reads the older rows.
        events: a suffix of the log. Once it is whole, it is the live list.
        is_whole: whether `events` is the whole log.
        last_row: the newest row as it is in the ledger: a log that goes on has the same one in its place.
        live: the live list that PMM has got; None before.
        length: of `events`, if nobody else changes it.
        tick_frame: the frame at the newest `autonomy_tick`.
    """

    def __init__(self, ledger: Ledger, newest: RawRow | None) -> None:
        self.ledger = ledger
        self.events: list[PmmEvent] = [] if newest is None else [event_of(newest)]
        self.last_row = newest
        self.is_whole = newest is None
        self.live: list[PmmEvent] | None = None
        self.length = len(self.events)
        self.tick_frame: Frame | None = None
        self._older: int | None = 0 if newest is None else None
        # Kind to its events among `events`; None until somebody asks.
        self._by_kind: dict[str, list[PmmEvent]] | None = None

    @property
    def newest_id(self) -> int:
        """0 in an empty log."""
        return 0 if self.last_row is None else int(self.last_row[0])

    def extend(self, rows: list[RawRow]) -> None:
        """Add rows that were appended to the ledger."""
        if not rows:
            return
        grow = list.append
        events = self.events
        for row in rows:
            event = event_of(row)
            grow(events, event)
            if self._by_kind is not None:
                self._by_kind.setdefault(event["kind"], []).append(event)
        self.length += len(rows)
        self.last_row = rows[-1]
        if self.is_whole:
            whole_logs.setdefault(id(events[0]), self)

    def whole(self) -> list[PmmEvent]:
        """All events: `events` itself."""
        if not self.is_whole:
            self._take_older(self.ledger.fetch_older(self, None), is_all=True)
        return self.events

    def count(self, until_id: int | None = None) -> int:
        """How many events there are, or how many up to an id that is loaded."""
        loaded = len(self.events) if until_id is None else self._place(until_id)
        if self.is_whole:
            return loaded
        if self._older is None:
            self._older = self.ledger.count_older(self)
        return self._older + loaded

    def tail(self, count: int, until_id: int | None = None) -> list[PmmEvent]:
        """The newest `count` events, or of those up to an id; ascending, in a new list."""
        if count <= 0:
            return []
        end = len(self.events) if until_id is None else self._place(until_id)
        if end < count and not self.is_whole:
            end += self._take_older_than_first(max(count - end, _CHUNK))
        return self.events[max(0, end - count) : end]

    def after(self, event_id: int) -> list[PmmEvent]:
        """The events loaded with a greater id, in a new list."""
        events = self.events
        if not events or events[-1][_ID] <= event_id:
            return []
        if len(events) > 1 and events[-2][_ID] <= event_id:
            return [events[-1]]
        return events[self._place(event_id) :]

    def first_after(self, event_id: int, count: int) -> list[PmmEvent]:
        """The first `count` events of the log with a greater id; ascending, in a new list."""
        while not self.is_whole and self.events[0]["id"] > event_id:
            # From the end on, as far as needed: usually few events are asked for.
            self._take_older_than_first(len(self.events) + _CHUNK)
        start = self._place(event_id)
        return self.events[start : start + count]

    def event(self, event_id: int) -> PmmEvent | None:
        """The event with this id, if it is loaded."""
        place = self._place(event_id) - 1
        event = self.events[place] if place >= 0 else None
        return event if event is not None and event[_ID] == event_id else None

    def of_kind(self, kind: str, low: int, high: int, newest_first: bool, limit: int | None) -> list[PmmEvent] | None:
        """The first `limit` events of a kind with ids from `low` to `high`; None if not all of these are loaded."""
        if len(self.events) != self.length:
            # Somebody has changed the live list.
            return None
        if self._by_kind is None:
            self._by_kind = {}
            for event in self.events:
                self._by_kind.setdefault(event["kind"], []).append(event)
        own = self._by_kind.get(kind, [])
        end = bisect_right(own, high, key=_id_of) if own and own[-1][_ID] > high else len(own)
        start = bisect_left(own, low, hi=end, key=_id_of) if own and own[0][_ID] < low else 0
        is_all = self.is_whole or self.events[0][_ID] <= low
        if newest_first:
            if limit is not None and end - start >= limit:
                start, is_all = end - limit, True
            return own[start:end][::-1] if is_all else None
        return own[start:end][:limit] if is_all else None

    def _place(self, event_id: int) -> int:
        """How many of the events loaded have at most this id."""
        events = self.events
        if events and events[-1][_ID] <= event_id:
            return len(events)
        return bisect_right(events, event_id, key=_id_of)

    def _take_older_than_first(self, count: int) -> int:
        """Load up to `count` older events; returns how many there were."""
        older = self.ledger.fetch_older(self, count)
        self._take_older(older, is_all=len(older) < count)
        return len(older)

    def _take_older(self, older: list[PmmEvent], *, is_all: bool) -> None:
        if self._older is not None:
            self._older -= len(older)
        self.events[:0] = older
        self.length += len(older)
        self._by_kind = None
        self.is_whole = is_all
        if is_all:
            whole_logs[id(self.events[0])] = self


whole_logs: weakref.WeakValueDictionary[int, Loaded] = weakref.WeakValueDictionary()
"""`id` of a log's first event, which the log keeps, to the log."""


def _id_of(event: PmmEvent) -> int:
    return event[_ID]  # type: ignore[no-any-return]


def event_of(row: RawRow) -> PmmEvent:
    """The dict of a raw row. A `meta` that is no JSON is `{}`."""
    event_id, ts, kind, content, meta = row
    return {
        "id": event_id,
        "ts": ts if ts.__class__ is str else text_or_empty(ts),
        "kind": kind if kind.__class__ is str else text_or_empty(kind),
        "content": content if content.__class__ is str else _value(content),
        "meta": _parsed(meta),
    }


_decode = json.JSONDecoder().raw_decode


def _parsed(meta: Any) -> Any:
    if meta == "{}" or not meta:
        return {}
    try:
        # Half the time of `json.loads`, which also takes white space around the value, bytes and more.
        parsed, end = _decode(meta)
        if end == len(meta):
            return parsed
    except (ValueError, TypeError, RecursionError):
        pass
    try:
        return json.loads(meta)
    except (ValueError, TypeError, RecursionError):
        return {}


def _value(content: Any) -> Any:
    return content if isinstance(content, (str, int, float, bytes)) else ""
