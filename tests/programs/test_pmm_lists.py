"""Lists that are the log: which are recognised, and what a list gives that loads when it is looked at."""

from __future__ import annotations

import collections
import copy
import gc
import itertools
import json
import pickle
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_pmm import installing, lists
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.lists import frame_of, recognised
from pmm_shm_pmm.loaded import whole_logs
from pmm_shm_pmm.log import log_of
from pmm_shm_pmm.log_list import LazyList, LogList
from pmm_shm_pmm.settings import RunSettings
from tests.support import run_golden, standin_package
from tests.support.standin_ab import append_as_another

Make = Callable[..., Any]
COUNT = 700


@pytest.fixture(params=[False, True], ids=["plain", "lazy"])
def is_lazy(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def new_log(is_lazy: bool, tmp_path: Path) -> Iterator[Make]:
    parts = {"log"} | ({"lazy"} if is_lazy else set())
    with standin_package.importable():
        installing.install(RunSettings(parts=frozenset(parts), starts_daemon=False), standin_package.hashes())
        from pmm.storage.eventlog import EventLog

        yield lambda path=tmp_path / "log.db": EventLog(str(path))
        installing.uninstall()


@pytest.fixture
def log(new_log: Make) -> Any:
    log = new_log()
    log_of(log).cache.append_many(("user", f"event {number}", {"n": number}) for number in range(COUNT))
    return log


def position(events: Any) -> int | None:
    try:
        return recognised(events)[1]
    except Fallback:
        return None


def by_identity(events: Any, live: Any) -> int | None:
    same = len(events) <= len(live) and all(mine is theirs for mine, theirs in zip(events, live, strict=False))
    return (events[-1]["id"] if events else 0) if same else None


# Recognition.


@pytest.mark.parametrize("count", [0, 1, 2, 200])
def test_every_prefix_is_the_log_and_nothing_else(new_log: Make, count: int) -> None:
    log = new_log()
    log_of(log).cache.append_many(("user", str(number), {}) for number in range(count))
    live = log.read_all()
    assert position(live) == count
    made = [
        list(live),
        live[:],
        [*live],
        live.copy(),
        live[: count // 2],
        [event for event in live if event["id"] <= count - 1],
        list(reversed(live)),
        live[1:],
        live[-5:],
        log.read_tail(limit=5),
        copy.deepcopy(live),
        [*live, *live[-1:]],
        [*live, {"id": 999}],
        live[: count // 2] + live[count // 2 + 1 :],
        tuple(live),
        sorted(live, key=lambda event: -event["id"]),
    ]
    if count > 2:
        swapped = list(live)
        swapped[1], swapped[2] = swapped[2], swapped[1]
        replaced = list(live)
        replaced[1] = {**replaced[1], "content": "another"}
        made += [swapped, replaced]
    for events in made:
        # Looked at twice: it is remembered by then.
        for _ in range(2):
            expected = None if isinstance(events, tuple) else by_identity(events, live)
            assert position(events) == expected


@pytest.mark.parametrize("name", [f"run-1-{number:03}" for number in (0, 1, 40, 41, 48)])
def test_the_golden_lists_are_recognised(new_log: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / "golden").mkdir()
    differences = run_golden.replay(name, tmp_path / "golden", as_of=lambda events, live: position(events))
    assert list(map(str, differences)) == []


def test_a_copy_stays_where_it_was_made(log: Any) -> None:
    live = log.read_all()
    before = list(live)
    append_as_another(Path(log.path), "note", "x", {})
    log.append("user", "y")
    assert position(before) == COUNT
    assert position(live) == COUNT + 2
    assert frame_of(live).as_of == COUNT + 2
    assert frame_of(before).as_of == COUNT


def test_a_known_list_that_changes_is_looked_at_again(log: Any) -> None:
    events = list(log.read_all())
    assert position(events) == COUNT
    last = events.pop()
    assert position(events) == COUNT - 1
    events.append({**last})
    assert position(events) is None
    events[-1] = last
    assert position(events) == COUNT
    events.insert(0, events[1])
    assert position(events) is None


def test_a_changed_live_list_is_no_log(log: Any) -> None:
    live = log.read_all()
    live.append(live[-1])
    assert position(live) is None


def test_logs_are_told_apart(new_log: Make, tmp_path: Path) -> None:
    logs = [new_log(tmp_path / name) for name in ("a.db", "b.db")]
    for log in logs:
        log.append("user", "x")
        log.append("user", "y")
    found = [recognised(list(log.read_all()))[0] for log in logs]
    assert found == [log_of(log).ledger for log in logs]
    mixed = [logs[0].read_all()[0], logs[1].read_all()[1]]
    assert position(mixed) is None


def test_an_empty_list_needs_no_log() -> None:
    assert recognised([]) == (None, 0)
    frame = frame_of([])
    assert frame.as_of == 0
    assert frame.identity().name is None
    assert frame.metrics()[:2] == (0.0, 0.0)


def test_a_list_of_a_log_that_was_loaded_outlives_it(log: Any) -> None:
    events = list(log.read_all())
    shared = log_of(log)
    listing = shared.listing()
    # As a restore does it: in place.
    with sqlite3.connect(log.path) as other:
        other.execute("DELETE FROM events WHERE id > 1")
        other.execute("UPDATE events SET content = 'another'")
    assert shared.sync() == 1
    assert list(listing) == events


@pytest.mark.parametrize(
    "other", [None, 5, "text", {}, iter([]), collections.deque()], ids=lambda one: type(one).__name__
)
def test_what_is_no_list_is_not_the_log(other: Any) -> None:
    assert position(other) is None


class _Hostile(list[Any]):
    def __len__(self) -> int:
        raise RuntimeError


def test_lists_of_other_classes_are_not_the_log(log: Any) -> None:
    assert position(_Hostile(log.read_all())) is None


def test_a_list_of_a_log_that_was_read_anew_is_none(log: Any) -> None:
    before = list(log.read_all())
    assert position(before) == COUNT
    log._events_cache = None
    log.read_all()
    assert position(before) is None


def test_few_lists_are_kept_and_none_of_a_log_that_is_gone(new_log: Make, tmp_path: Path, log: Any) -> None:
    live = log.read_all()
    for _ in range(9):
        assert position(list(live)) == COUNT
    assert len(lists._known) <= 4
    del live
    log._events_cache = None
    log.read_tail(limit=1)
    gc.collect()
    assert not lists._known
    assert log_of(log).ledger not in [loaded.ledger for loaded in whole_logs.values()]


# Lists that load when they are looked at.

LOOKS: dict[str, Callable[[Any], Any]] = {
    "last": lambda x: x[-1],
    "first": lambda x: x[0],
    "one of the last": lambda x: x[-300],
    "one": lambda x: x[5],
    "tail": lambda x: x[-200:],
    "longer tail": lambda x: x[-9999:],
    "tail with a stop": lambda x: x[-200:-100],
    "tail with a step": lambda x: x[-200::2],
    "backwards": lambda x: x[::-1],
    "prefix": lambda x: x[:7],
    "all": lambda x: x[:],
    "len": len,
    "bool": bool,
    "list": list,
    "tuple": tuple,
    "starred": lambda x: [*x],
    "arguments": lambda x: (lambda *all_: all_)(*x),
    "unpacked": lambda x: (lambda first, *others: others)(*x),
    "set": lambda x: {event["id"] for event in x},
    "reversed": lambda x: list(reversed(x)),
    "reversed, broken off": lambda x: next(event for event in reversed(x) if event["id"] < COUNT - 300),
    "json": json.dumps,
    "json of it within": lambda x: json.dumps({"x": x}),
    "sorted": lambda x: sorted(x, key=lambda event: -event["id"]),
    "sum": lambda x: sum(event["id"] for event in x),
    "max": lambda x: max(x, key=lambda event: event["id"]),
    "any": lambda x: any(event["id"] == 3 for event in x),
    "zip": lambda x: list(zip(x, x, strict=True)),
    "enumerate": lambda x: list(enumerate(x)),
    "islice": lambda x: list(itertools.islice(x, 5)),
    "deque": lambda x: list(collections.deque(x, maxlen=3)),
    "plus": lambda x: x + [{}],  # noqa: RUF005
    "plus on the left": lambda x: [{}] + x,  # noqa: RUF005
    "plus itself": lambda x: x + x,
    "added in place": lambda x: _added([{}], x),
    "in a slice": lambda x: _in_slice([1, 2, 3], x),
    "times": lambda x: x * 2,
    "times on the left": lambda x: 2 * x,
    "copy": lambda x: x.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "pickle of the first protocol": lambda x: pickle.loads(pickle.dumps(x, 0)),
    "in": lambda x: {"id": 3} in x,
    "index": lambda x: x.index(x[-1]),
    "count": lambda x: x.count(x[-1]),
    "equal": lambda x: x == list(x),
    "equal to a list": lambda x: list(x) == x,
    "unequal": lambda x: x != [],
    "repr": repr,
    "str": str,
    "choice": lambda x: random.Random(1).choice(x),
    "joined": lambda x: ",".join(event["content"] for event in x),
    "isinstance": lambda x: isinstance(x, list),
    "no such place": lambda x: x[COUNT],
    "no such place from the end": lambda x: x[-COUNT - 1],
    "text as a place": lambda x: x["id"],
    "hash": hash,
    "less": lambda x: x < [],
    "match": lambda x: _matched(x),
}


def _added(into: list[Any], events: Any) -> list[Any]:
    into += events
    into.extend(events)
    return into


def _in_slice(into: list[Any], events: Any) -> list[Any]:
    into[1:2] = events
    return into


def _matched(events: Any) -> Any:
    match events:
        case [first, *_, last]:
            return first, last


def _looked(look: Callable[[Any], Any], events: Any) -> Any:
    try:
        return look(events)
    except Exception as error:
        return type(error), str(error).replace("LazyList", "list").replace("LogList", "list")


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize("is_lazy", [True], ids=["lazy"], indirect=True)
@pytest.mark.parametrize("kind", ["live", "snapshot"])
def test_a_lazy_list_is_like_a_list(log: Any, new_log: Make, name: str, kind: str) -> None:
    shared = log_of(log)
    expected = list(shared.ledger.cache._log.read_all())
    events = log.read_all() if kind == "live" else shared.listing()
    assert type(events) is LazyList
    answer, plain = _looked(LOOKS[name], events), _looked(LOOKS[name], expected)
    assert type(answer) is type(plain)
    assert answer == plain
    # And after that look.
    assert list(events) == expected
    assert type(events) is LogList
    assert _looked(LOOKS[name], events) == plain
    assert position(list(events)) == COUNT
    log.append("user", "one more")
    assert len(events) == COUNT + (kind == "live")


@pytest.mark.parametrize("is_lazy", [True], ids=["lazy"], indirect=True)
def test_looks_at_the_end_load_the_end(log: Any) -> None:
    live = log.read_all()
    snapshot = log_of(log).listing()
    for events in (live, snapshot):
        assert events[-1]["id"] == COUNT
        assert len(events[-100:]) == 100
        assert len(events) == COUNT
        assert events
        assert next(event for event in reversed(events) if event["id"] < COUNT - 50)["id"] == COUNT - 51
        assert position(events) == COUNT
    log.append("user", "x")
    assert live[-2] is snapshot[-1]
    assert len(log.read_tail(limit=200)) == 200
    assert type(live) is type(snapshot) is LazyList
    assert len(log_of(log).ledger.loaded.events) < COUNT


@pytest.mark.parametrize("is_lazy", [True], ids=["lazy"], indirect=True)
def test_a_list_is_walked_while_it_grows(log: Any) -> None:
    live = log.read_all()
    backwards = reversed(live)
    first = next(backwards)
    log.append("user", "x")
    assert [first["id"], *(event["id"] for event in backwards)] == list(range(COUNT, 0, -1))
    seen = []
    for event in live:
        seen.append(event["id"])
        if event["id"] < COUNT + 4:
            log.append("user", "x") if event["id"] > COUNT else None
    assert seen == list(range(1, len(live) + 1))


@pytest.mark.parametrize(
    "change", ["append", "pop", "clear", "sort", "reverse", "insert", "extend", "set", "del", "add"]
)
@pytest.mark.parametrize("is_lazy", [True], ids=["lazy"], indirect=True)
def test_a_lazy_list_that_is_changed_is_a_list_like_any_other(log: Any, change: str) -> None:
    plain = list(log_of(log).ledger.cache._log.read_all())
    events = log_of(log).listing()
    changes: dict[str, Callable[[Any], Any]] = {
        "append": lambda x: x.append({}),
        "pop": lambda x: x.pop(),
        "clear": lambda x: x.clear(),
        "sort": lambda x: x.sort(key=lambda event: -event["id"]),
        "reverse": lambda x: x.reverse(),
        "insert": lambda x: x.insert(0, {}),
        "extend": lambda x: x.extend([{}]),
        "set": lambda x: x.__setitem__(3, {}),
        "del": lambda x: x.__delitem__(3),
        "add": lambda x: x.__iadd__([{}]),
    }
    for one in (events, plain):
        changes[change](one)
    assert events == plain
    assert position(events) == {"pop": COUNT - 1, "clear": 0}.get(change)


@pytest.mark.parametrize("is_lazy", [True], ids=["lazy"], indirect=True)
def test_code_that_looks_past_the_methods_finds_no_shorter_log(log: Any) -> None:
    live = log.read_all()
    live[-1]
    with pytest.raises((TypeError, AttributeError)):
        [event["id"] for event in list.__iter__(live)]
