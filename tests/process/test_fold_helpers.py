"""State helpers: equal to plain Python over the whole log, bounded, and O(touched keys) per event."""

from __future__ import annotations

from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.helpers import PAGE_IDS, Counter, EventIndex, LastValue, Seen, TimeBuckets, Top
from pmm_shm.folds.state import State, Touched
from pmm_shm.ledger.rows import Event
from pmm_shm.testing import check_fold
from pmm_shm.testing.watching import StoredBase

BUCKETS, LEADERS, NEWEST = 5, 3, 100


class Everything(Fold):
    """All helpers at once."""

    name = "everything"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"call": ("content", "meta")}

    def apply(self, event: Event, state: State) -> None:
        key, amount = event.content, event.meta.get("amount", 1)
        Counter(state, "counter").add(key, amount)
        LastValue(state, "last").put(key, event.meta, event)
        Seen(state, "seen").add(key, event)
        Top(state, "top", LEADERS).add(key, amount)
        TimeBuckets(state, "days", "day", BUCKETS).add(event, amount)
        EventIndex(state, "index").add(key, event)
        EventIndex(state, "newest", NEWEST).add(key, event)

    def view(self, state: State) -> Any:
        return tuple(helper.view() for helper in self._helpers(state)), Top(state, "top", LEADERS).view()

    def patch(self, view: Any, state: State, touched: Touched) -> Any:
        pairs = zip(self._helpers(state), view[0], strict=True)
        return tuple(helper.patched(old, touched) for helper, old in pairs), Top(state, "top", LEADERS).view()

    def _helpers(self, state: State) -> list[Any]:
        days = TimeBuckets(state, "days", "day", BUCKETS)
        return [Counter(state, "counter"), LastValue(state, "last"), Seen(state, "seen"), days]


def test_they_keep_the_laws_of_a_fold() -> None:
    check_fold(Everything)
    check_fold(Everything, [("call", str(number % 7), {"amount": number % 4 + 1}) for number in range(60)])


def event(event_id: int, key: str = "a", ts: str = "2026-01-01T00:00:00Z") -> Event:
    return Event(event_id, ts, "call", key, {})


CALLS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 4), st.integers(1, 28)), max_size=80)


@given(calls=CALLS)
def test_they_equal_plain_python(calls: list[tuple[str, int, int]]) -> None:
    state = State()
    counts: Counts[str] = Counts()
    reached: dict[tuple[str, int], int] = {}
    first: dict[str, int] = {}
    ids: dict[str, list[int]] = defaultdict(list)
    days: dict[str, int] = {}
    for number, (key, amount, day) in enumerate(calls, 1):
        one = event(number, key, f"2026-02-{day:02}T23:30:00-01:00")
        Counter(state, "counter").add(key, amount)
        LastValue(state, "last").put(key, amount, one)
        assert Seen(state, "seen").add(key, one) == (key not in first)
        Top(state, "top", LEADERS).add(key, amount)
        bucket = TimeBuckets(state, "days", "day", BUCKETS).add(one, amount)
        EventIndex(state, "index").add(key, one)
        EventIndex(state, "newest", 3).add(key, one)
        counts[key] += amount
        reached[key, counts[key]] = number
        first.setdefault(key, number)
        ids[key].append(number)
        name = f"2026-02-{day + 1:02}" if day < 28 else "2026-03-01"
        days[name] = days.get(name, 0) + amount
        for old in sorted(days)[:-BUCKETS]:
            del days[old]
        assert bucket == (name if name in days else None)
    assert Counter(state, "counter").view() == dict(counts)
    best = sorted(counts, key=lambda key: (-counts[key], reached[key, counts[key]]))[:LEADERS]
    assert list(Top(state, "top", LEADERS).view().items()) == [(key, counts[key]) for key in best]
    assert dict(TimeBuckets(state, "days", "day", BUCKETS).view()) == days
    for key, found in ids.items():
        assert Seen(state, "seen").get(key) == (found[0], found[-1], len(found))
        entry = LastValue(state, "last").get(key)
        assert entry is not None
        assert entry.event_id == found[-1]
        assert EventIndex(state, "index").newest(key) == found
        assert EventIndex(state, "newest", 3).newest(key) == found[-3:]
        assert EventIndex(state, "index").newest(key, 2) == found[-2:]
    assert EventIndex(state, "index").keys() == sorted(ids)


@pytest.mark.parametrize("newest_max", [1, 5, PAGE_IDS - 1, PAGE_IDS, PAGE_IDS + 1, 200])
def test_an_index_of_the_newest_stays_bounded(newest_max: int) -> None:
    state = State()
    for number in range(1, 1_001):
        EventIndex(state, "newest", newest_max).add("k", event(number))
        assert EventIndex(state, "newest", newest_max).newest("k") == [
            *range(max(1, number - newest_max + 1), number + 1)
        ]
    assert state.key_count() <= 3 + newest_max // PAGE_IDS + 1


class Watched(StoredBase):
    """Counts what is read of a stored state."""

    gets = scans = 0

    def get(self, key: bytes, /) -> bytes | None:
        self.gets += 1
        return super().get(key)

    def scan(self, prefix: bytes, /) -> Iterator[tuple[bytes, bytes]]:
        self.scans += 1
        return super().scan(prefix)


def test_three_events_behind_ten_thousand_keys_read_a_few() -> None:
    fold, engine = Everything(), Engine([Everything()])
    state = State()
    rows = [(number, "2026-01-01", "call", str(number), "{}") for number in range(1, 10_001)]
    engine.apply(rows, {fold.name: state})
    base = Watched({key: value for key, value in state.changes() if value is not None})
    state = State(base)
    view = fold.view(state)
    base.gets = base.scans = 0
    engine.apply(
        [(10_000 + number, "2026-01-02", "call", f"new {number}", "{}") for number in range(3)], {fold.name: state}
    )
    patched = fold.patch(view, state, state.take_touched())
    assert base.scans == 0
    assert base.gets < 50
    assert patched == fold.view(state)


def test_what_they_refuse() -> None:
    state = State()
    with pytest.raises(ValueError, match="only grow"):
        Top(state, "top", 3).add("a", 0)
    with pytest.raises(ValueError, match="ts is no time: 'never'"):
        TimeBuckets(state, "days", "day", 3).add(event(1, ts="never"))
    with pytest.raises(TypeError):
        Counter(state, "counter").add("a", "1")  # type: ignore[arg-type]
    assert Counter(state, "counter").get("a") == TimeBuckets(state, "days", "day", 3).get("2026-01-01") == 0
    assert LastValue(state, "last").get("a") is Seen(state, "seen").get("a") is None
    assert EventIndex(state, "index").newest("a") == []
    assert not state.key_count()
    LastValue(state, "last").put("a", 1, event(1))
    LastValue(state, "last").remove("a")
    LastValue(state, "last").remove("b")
    assert not state.key_count()


@pytest.mark.parametrize(
    ("width", "bucket"),
    [
        ("minute", "2026-11-30T14:05"),
        ("hour", "2026-11-30T14"),
        ("day", "2026-11-30"),
        ("month", "2026-11"),
        ("year", "2026"),
    ],
)
def test_buckets_are_named_by_their_time_in_utc(width: Any, bucket: str) -> None:
    assert TimeBuckets(State(), "t", width, 9).add(event(1, ts="2026-11-30T16:05:09.5+02:00")) == bucket
