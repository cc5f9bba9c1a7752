"""State helpers: counters, last values, leaders, time buckets, first and last events, and indexes for a fold's state.

Each helper is a view of one table of a `State`, made where it is needed; it keeps nothing itself:

    def apply(self, event, state):
        Counter(state, "calls").add(event.meta["tool"])

    def view(self, state):
        return Counter(state, "calls").view()

    def patch(self, view, state, touched):
        return Counter(state, "calls").patched(view, touched)

A step reads and writes the keys of its event alone, however large the table is. With `patched` in the fold's `patch`,
so does a read behind a few new events.

Invariant: values in the state are never changed in place.
Invariant: the result depends only on the order of the calls.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from pmm_shm.codec import Key
from pmm_shm.folds.state import State, Table, Touched
from pmm_shm.frozen import FrozenDict, frozen
from pmm_shm.ledger.instants import instant_us, text_of_instant
from pmm_shm.ledger.rows import Event

Width = Literal["minute", "hour", "day", "month", "year"]
_WIDTH_CHARS: Mapping[str, int] = {"minute": 16, "hour": 13, "day": 10, "month": 7, "year": 4}
PAGE_IDS = 64
"""How many event ids one entry of an `EventIndex` holds."""


class Helper:
    """Base of the helpers: one table of a state, as a read-only mapping, sorted by its keys.

    Parameters:
        state: that of the fold.
        name: of the table; two helpers of one fold need different names.
    """

    __slots__ = ("_state", "name", "table")

    def __init__(self, state: State, name: str) -> None:
        self._state = state
        self.name = name
        self.table: Table = state.table(name)

    def view(self) -> Mapping[Any, Any]:
        """All entries. Decodes the whole table: use `patched` in `Fold.patch`."""
        return _sorted({key: self.shown(value) for key, value in self.table.items()})

    def patched(self, view: Mapping[Any, Any], touched: Touched) -> Mapping[Any, Any]:
        """`view()`, given the one before; decodes the keys that were written since then."""
        keys = touched.tables.get(self.name)
        if not keys:
            return view
        entries = dict(view)
        for key in keys:
            value = self.table.get(key)
            if value is None:
                entries.pop(key, None)
            else:
                entries[key] = self.shown(value)
        return FrozenDict(entries) if entries.keys() == view.keys() else _sorted(entries)

    def shown(self, value: Any) -> Any:
        """An entry of the table as the view has it."""
        return frozen(value)


class Counter(Helper):
    """How often, or how much, per key."""

    __slots__ = ()

    def add(self, key: Key, amount: int | float = 1) -> int | float:
        """Add to a key, and return its new count. A count of 0 stays in the table."""
        count: int | float = self.table.get(key, 0) + amount
        self.table[key] = count
        return count

    def get(self, key: Key) -> int | float:
        """The count of a key; 0 if it was never added to."""
        count: int | float = self.table.get(key, 0)
        return count


class LastEntry(NamedTuple):
    """A value, and the event that set it."""

    value: Any
    event_id: int


class LastValue(Helper):
    """The newest value per key, with the event that set it."""

    __slots__ = ()

    def put(self, key: Key, value: Any, event: Event) -> None:
        """Set the value of a key."""
        self.table[key] = [value, event.id]

    def get(self, key: Key) -> LastEntry | None:
        """The newest value of a key; None if it has none."""
        entry = self.table.get(key)
        return None if entry is None else LastEntry(*entry)

    def remove(self, key: Key) -> None:
        """Forget a key, if it is there."""
        if key in self.table:
            del self.table[key]

    def shown(self, value: Any) -> LastEntry:
        return LastEntry(frozen(value[0]), value[1])


class SeenEntry(NamedTuple):
    """The first and the last event of a key, and their number."""

    first_id: int
    last_id: int
    times: int


class Seen(Helper):
    """A set of keys, each with its first and last event."""

    __slots__ = ()

    def add(self, key: Key, event: Event) -> bool:
        """Note a key; returns whether it is new."""
        entry = self.table.get(key)
        self.table[key] = [event.id, event.id, 1] if entry is None else [entry[0], event.id, entry[2] + 1]
        return entry is None

    def __contains__(self, key: Key) -> bool:
        return key in self.table

    def get(self, key: Key) -> SeenEntry | None:
        """First event, last event and number of a key; None if it was never seen."""
        entry = self.table.get(key)
        return None if entry is None else SeenEntry(*entry)

    def shown(self, value: Any) -> SeenEntry:
        return SeenEntry(*value)


class Top:
    """The keys with the highest counts, exactly; of equal counts, the key that reached it first.

    Counts only grow. Those of all keys are kept, in the table `name`; the leaders are in the cell `name`.

    Parameters:
        state: that of the fold.
        name: of the table and the cell.
        size: how many keys lead; the same in each call of one fold.
    """

    __slots__ = ("_counter", "_size", "_state", "name")

    def __init__(self, state: State, name: str, size: int) -> None:
        self._state = state
        self._counter = Counter(state, name)
        self._size = size
        self.name = name

    def add(self, key: Key, amount: int | float = 1) -> None:
        """Add to a key.

        Raises:
            ValueError: the amount is not positive.
        """
        if not amount > 0:
            raise ValueError(f"the counts of a top list only grow, got {amount!r:.80}")
        count = self._counter.add(key, amount)
        leaders = [entry for entry in self._state.get(self.name, ()) if entry[0] != key]
        place = len(leaders)
        while place and leaders[place - 1][1] < count:
            place -= 1
        if place < self._size:
            leaders.insert(place, [key, count])
            self._state[self.name] = leaders[: self._size]

    def get(self, key: Key) -> int | float:
        """The count of any key."""
        return self._counter.get(key)

    def view(self) -> Mapping[Any, Any]:
        """The leaders with their counts, the highest first."""
        return FrozenDict(self._state.get(self.name, ()))


class TimeBuckets(Helper):
    """An amount per minute, hour, day, month or year of `event.ts`, in UTC; the newest buckets are kept.

    A bucket is named by the beginning of its time: `2026-11-30T14` is an hour, `2026-11-30` a day. The cell `name` has
    the names of all buckets, in order.

    Parameters:
        width: of a bucket.
        size: how many buckets are kept, those of the latest times; the same in each call of one fold.
    """

    __slots__ = ("_chars", "_size")

    def __init__(self, state: State, name: str, width: Width, size: int) -> None:
        super().__init__(state, name)
        self._chars = _WIDTH_CHARS[width]
        self._size = size

    def add(self, event: Event, amount: int | float = 1) -> str | None:
        """Add to the bucket of the event; returns the bucket's name, or None if it is older than those that are kept.

        Raises:
            ValueError: `event.ts` is no date or time in ISO 8601.
        """
        instant = instant_us(event.ts)
        if instant is None:
            raise ValueError(f"ts is no time: {event.ts!r:.80}")
        bucket = text_of_instant(instant)[: self._chars]
        before = self.table.get(bucket)
        if before is None:
            names = list(self._state.get(self.name, ()))
            insort(names, bucket)
            if len(names) > self._size:
                oldest = names.pop(0)
                if oldest == bucket:
                    return None
                del self.table[oldest]
            self._state[self.name] = names
        self.table[bucket] = (before or 0) + amount
        return bucket

    def get(self, bucket: str) -> int | float:
        """The amount in a bucket; 0 if it is not kept."""
        amount: int | float = self.table.get(bucket, 0)
        return amount


class EventIndex:
    """Key to the ids of its events, in the order in which they were added: kind to newest ids, or key to all events.

    The ids are in pages of `PAGE_IDS`, so that one more rewrites one page.

    Parameters:
        state: that of the fold.
        name: of the table; its keys are (key, page), and (key,) for the number of ids.
        newest_max: of each key, only so many of the newest ids are kept; None for all. The same in each call of one
            fold.
    """

    __slots__ = ("_newest_max", "_table", "name")

    def __init__(self, state: State, name: str, newest_max: int | None = None) -> None:
        self._table = state.table(name)
        self._newest_max = newest_max
        self.name = name

    def add(self, key: Key, event: Event) -> None:
        """Add an event to a key."""
        count = self._table.get((key,), 0)
        page = count // PAGE_IDS
        self._table[key, page] = [*self._table.get((key, page), ()), event.id]
        self._table[key,] = count + 1
        if self._newest_max is not None and count % PAGE_IDS == PAGE_IDS - 1:
            # The page is full: those behind the newest are not read any more.
            old = (count + 1 - self._newest_max) // PAGE_IDS - 1
            if old >= 0 and (key, old) in self._table:
                del self._table[key, old]

    def count(self, key: Key) -> int:
        """How many events were added to a key, kept or not."""
        count: int = self._table.get((key,), 0)
        return count

    def newest(self, key: Key, limit: int | None = None) -> list[int]:
        """The newest ids of a key, at most `limit` of those that are kept, oldest first."""
        count = self.count(key)
        wanted = min(bound for bound in (count, self._newest_max, limit) if bound is not None)
        first = count - wanted
        ids = [
            event_id
            for page in range(first // PAGE_IDS, -(-count // PAGE_IDS))
            for event_id in self._table.get((key, page), ())
        ]
        return ids[len(ids) - wanted :]

    def keys(self) -> list[Any]:
        """All keys, sorted. Decodes the whole table."""
        return _in_order(key[0] for key, _ in self._table.items() if isinstance(key, tuple) and len(key) == 1)


def _sorted(entries: dict[Any, Any]) -> FrozenDict:
    return FrozenDict({key: entries[key] for key in _in_order(entries)})


def _in_order(keys: Iterable[Any]) -> list[Any]:
    """Keys in one order: by their values, or, of several types, by type and text."""
    found = list(keys)
    try:
        return sorted(found)
    except TypeError:
        return sorted(found, key=lambda key: (type(key).__name__, repr(key)))
