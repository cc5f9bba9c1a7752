"""PMM's EventLog on the shared cache: appends, reads, the live list and listeners, as PMM's code uses them."""

from __future__ import annotations

import inspect
import itertools
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import LedgerUnwritableError
from pmm_shm.ledger.eventlog import EventLog as Writer
from pmm_shm_client.cache import Cache
from pmm_shm_pmm import installing
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.log import log_of
from pmm_shm_pmm.patching import Patcher
from pmm_shm_pmm.settings import RunSettings
from tests.support import standin_package
from tests.support.standin_ab import append_as_another

Make = Callable[..., Any]


@pytest.fixture(params=["plain lists", "lazy lists"])
def patcher(request: pytest.FixtureRequest) -> Iterator[Patcher]:
    parts = {"log", "snapshot"} | ({"lazy"} if request.param == "lazy lists" else set())
    with standin_package.importable():
        made = installing.install(RunSettings(parts=frozenset(parts), starts_daemon=False), standin_package.hashes())
        assert made is not None
        yield made
        installing.uninstall()


@pytest.fixture
def new_log(patcher: Patcher, tmp_path: Path) -> Make:
    """`EventLog` of the launched stand-in; the default path is one ledger."""
    from pmm.storage.eventlog import EventLog

    return lambda path=tmp_path / "log.db": EventLog(str(path))


@pytest.fixture
def log(new_log: Make) -> Any:
    return new_log()


@pytest.fixture
def plain(patcher: Patcher, log: Any) -> Any:
    """PMM's own EventLog on a ledger of its own."""
    return patcher.original("pmm.storage.eventlog", "EventLog")(log.path + "-plain")


def foreign(log: Any, kind: str = "note", content: str = "foreign", meta: dict[str, Any] | None = None) -> None:
    append_as_another(Path(log.path), kind, content, meta or {})


def rows(log: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(log.path) as connection:
        return connection.execute(
            "SELECT id, ts, kind, content, meta, prev_hash, hash FROM events ORDER BY id"
        ).fetchall()


def ids(events: Any) -> list[int]:
    return [event["id"] for event in events]


# Appends.

VALUES = [
    ("user", "hello", None),
    ("user", "hello", {}),
    ("user", "h\u00e9llo \U0001f600", {"b": 1, "a": [1.5, None, True, {"x": "\u00e9"}]}),
    ("user", "nan", {"x": float("nan"), "y": float("-inf")}),
    ("user", "keys", {1: "one", None: "none", False: "false"}),
    ("user", "tuple", {"x": (1, 2)}),
    ("", "no kind", {}),
    ("user", "", []),
    ("user", "a list", [1, 2]),
    ("user", "a text", "meta"),
    ("user", 5, {}),
    ("user", "many", {"n": 10**25}),
    ("user", "deep", json.loads('{"a":' * 80 + "1" + "}" * 80)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value[1])[:8])
def test_an_append_stores_what_pmm_stores(log: Any, plain: Any, value: tuple[Any, ...]) -> None:
    for one in (log, plain):
        one.append("user", "first")
        assert one.append(kind=value[0], content=value[1], meta=value[2]) == 2
    mine, theirs = (json.dumps([row[2:5] for row in rows(one)]) for one in (log, plain))
    assert mine == theirs
    assert json.dumps(log.read_all()[1]["meta"]) == json.dumps(plain.read_all()[1]["meta"])
    # PMM hashes a content that is no text as it is, and stores it as text.
    assert log.verify_chain() == plain.verify_chain() == isinstance(value[1], str)


REFUSED = [
    ("user", "x", {"x": object()}, TypeError),
    ("user", "x", {(1,): 1}, TypeError),
    ("user", "x", type("M", (), {"keys": lambda self: []})(), TypeError),
    (None, "x", {}, sqlite3.IntegrityError),
    ("user", None, {}, sqlite3.IntegrityError),
    ("user", "\ud800", {}, UnicodeEncodeError),
    ("user", b"x", {}, TypeError),
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: value[-1].__name__)
def test_what_pmm_refuses_leaves_nothing(log: Any, plain: Any, value: tuple[Any, ...]) -> None:
    heard: list[Any] = []
    for one in (log, plain):
        one.append("user", "first")
        one.register_append_listener(heard.append)
        with pytest.raises(value[3]):
            one.append(*value[:3])
        assert len(rows(one)) == 1
        assert not one._conn.in_transaction
        assert one.append("user", "next") == 2
    assert ids(heard) == [2, 2]
    assert ids(log.read_all()) == [1, 2]


def test_appends_of_all_ways_and_writers_are_one_chain(log: Any, new_log: Make) -> None:
    other = new_log()
    with Writer(log.path) as writer:
        for number in range(5):
            log.append("user", f"own {number}")
            log.append("", f"by PMM's own append {number}")
            other.append("user", f"other {number}", {"n": number})
            writer.append("user", f"library {number}")
            foreign(log)
    found = rows(log)
    assert [row[5] for row in found] == [None, *(row[6] for row in found[:-1])]
    assert log.verify_chain()
    assert ids(log.read_all()) == ids(other.read_all()) == list(range(1, 26))


def test_a_busy_ledger_is_waited_for_in_pmm_s_own_way(log: Any) -> None:
    log.append("user", "first")
    blocker = sqlite3.connect(log.path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, lambda: blocker.execute("COMMIT"))
    timer.start()
    assert log.append("", "stored by PMM's own append") == 2
    timer.join()
    blocker.close()
    assert log.verify_chain()


def test_where_the_library_fails_pmm_appends(log: Any, monkeypatch: pytest.MonkeyPatch, patcher: Patcher) -> None:
    heard: list[Any] = []
    log.register_append_listener(heard.append)
    log.append("user", "first")

    def fails(*_: Any, **__: Any) -> Any:
        raise LedgerUnwritableError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "append", fails)
        assert log.append("user", "second") == 2
    assert log.append("user", "third") == 3
    assert ids(heard) == ids(log.read_all()) == [1, 2, 3]
    assert log.verify_chain()
    assert patcher.counts["pmm.storage.eventlog:EventLog"].fallbacks == {"error: LedgerUnwritableError": 1}


def test_within_a_transaction_of_the_caller_pmm_appends(log: Any) -> None:
    heard: list[Any] = []
    log.register_append_listener(heard.append)
    live = log.read_all()
    with log._lock:
        log._conn.execute("INSERT INTO event_embeddings (eid) VALUES (1)")
        assert log._conn.in_transaction
        assert log.append("user", "x") == 1
        assert not log._conn.in_transaction
    assert ids(live) == ids(heard) == [1]


def test_an_append_within_the_lock_of_the_log(log: Any) -> None:
    with log._lock:
        log.append("user", "x")
        log.append("", "x")
    assert ids(log.read_all()) == [1, 2]


# Reads.


def test_the_live_list_is_one_object_that_grows(log: Any) -> None:
    assert log._events_cache is None
    live = log.read_all()
    assert isinstance(live, list)
    assert not live
    assert log.read_all() is live is log._events_cache
    log.append("user", "own")
    foreign(log)
    log.append("", "by PMM's own append")
    assert log.read_all() is live is log._events_cache
    assert [event["content"] for event in live] == ["own", "foreign", "by PMM's own append"]
    assert log._cache_last_id == 3
    assert list(live[0]) == ["id", "ts", "kind", "content", "meta"]
    assert log.read_tail(limit=2)[0] is live[1]
    assert log.read_after_id(after_id=1, limit=1)[0] is live[1]


def test_a_tail_that_was_read_before_the_whole_has_the_same_dicts(log: Any, new_log: Make) -> None:
    for number in range(700):
        log.append("user", str(number))
    other = new_log()
    tail = other.read_tail(limit=300)
    after = other.read_after_id(after_id=100, limit=5)
    live = other.read_all()
    assert all(mine is theirs for mine, theirs in zip(tail, live[-300:], strict=True))
    assert all(mine is theirs for mine, theirs in zip(after, live[100:105], strict=True))
    assert ids(live) == list(range(1, 701))


@pytest.mark.parametrize("limit", [0, -1, 1, 3, 99, "2", 2.0, True])
def test_limits_as_pmm_takes_them(log: Any, plain: Any, limit: Any) -> None:
    answers = []
    for one in (log, plain):
        for number in range(4):
            one.append("user", str(number))
        found: list[Any] = []
        for read in (
            lambda one=one: one.read_tail(limit=limit),
            lambda one=one: one.read_after_id(after_id=1, limit=limit),
            lambda one=one: one.read_after_ts(after_ts="2020", limit=limit),
        ):
            try:
                found.append(ids(read()))
            except Exception as error:
                found.append(type(error))
        answers.append(found)
    assert answers[0] == answers[1]
    with pytest.raises(TypeError):
        log.read_tail(3)


def test_reads_see_what_others_have_appended(log: Any) -> None:
    log.append("user", "own")
    for number, read in enumerate(
        (
            lambda: log.read_all()[-1],
            lambda: log.read_tail(limit=1)[0],
            lambda: log.read_after_id(after_id=0, limit=9)[-1],
            lambda: log.read_after_ts(after_ts="", limit=9)[-1],
            lambda: log.query(limit=1)[0],
            lambda: log.get_event(7),
        ),
        2,
    ):
        foreign(log, content=str(number))
        assert read()["id"] == number


def test_a_failing_read_is_pmm_s_own(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append("user", "one")
    live = log.read_all()
    from pmm_shm_pmm import followed

    def fails(*_: Any, **__: Any) -> Any:
        raise LedgerUnwritableError("cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(followed, "fetch_batch", fails)
        foreign(log)
        # By PMM's connection, which can read.
        assert log.read_all() is live
        assert ids(live) == [1, 2]
        assert log.append("user", "three") == 3
        assert ids(live) == [1, 2, 3]
    assert log.read_all() is live


def test_a_closed_connection_is_as_in_pmm(log: Any, plain: Any) -> None:
    for one in (log, plain):
        one.append("user", "x")
        live = one.read_all()
        one._conn.close()
        assert one.read_all() is live
        with pytest.raises(sqlite3.ProgrammingError):
            one.append("user", "x")
        with pytest.raises(sqlite3.ProgrammingError):
            one.query()
    with pytest.raises(Fallback, match="closed"):
        log_of(log)


def test_a_cache_that_is_set_to_none_is_read_anew(log: Any) -> None:
    log.append("user", "x")
    live = log.read_all()
    log._events_cache = None
    assert log._events_cache is None
    assert log.read_all() is not live
    assert log.read_all() == live


def test_a_method_of_pmm_that_keeps_what_it_has_read_gets_the_live_list(log: Any) -> None:
    foreign(log)
    log._events_cache = [{"id": 1}]
    live = log._events_cache
    foreign(log)
    assert log.read_all() is live is log._events_cache
    assert ids(live) == [1, 2]


# Places.


def test_without_a_file_all_is_pmm_s_own(new_log: Make) -> None:
    log = new_log(":memory:")
    heard: list[Any] = []
    log.register_append_listener(heard.append)
    log.append("user", "x")
    live = log.read_all()
    log.append("user", "y")
    assert type(live) is list
    assert log.read_all() is live is log._events_cache
    assert ids(heard) == ids(live) == [1, 2]
    assert log._cache_last_id == 2
    with pytest.raises(Fallback, match="no file"):
        log_of(log)


def test_a_relative_path_is_that_of_the_constructor(
    new_log: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    log = new_log("folder/log.db")
    monkeypatch.chdir("elsewhere")
    log.append("user", "x")
    assert ids(log.read_all()) == [1]
    assert log_of(log).path == str(tmp_path / "folder" / "log.db")
    assert not list(Path().iterdir())


def test_two_ledgers_with_the_same_events_are_two(new_log: Make, tmp_path: Path) -> None:
    logs = [new_log(tmp_path / name) for name in ("a.db", "b.db")]
    for log in logs:
        log.append("user", "x")
    logs[0].append("user", "y")
    assert [len(log.read_all()) for log in logs] == [2, 1]


def test_a_ledger_restored_in_place_is_another_log(log: Any, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    log.append("user", "old")
    live = log.read_all()
    log._conn.backup(other)
    log.append("user", "newer")
    log.append("user", "newest")
    # One that loads when it is looked at has no other log than that at the path.
    assert len(list(live)) == 3
    heard: list[Any] = []
    log.register_append_listener(heard.append)
    with sqlite3.connect(log.path) as connection:
        other.backup(connection)
    connection.close()
    now = log.read_all()
    assert now is not live
    assert ids(now) == [1]
    assert len(live) == 3
    log.append("user", "after")
    assert ids(log.read_all()) == ids([*now])
    assert [event["content"] for event in heard] == ["after"]


def test_a_log_made_again_and_again_reads_once(log: Any, new_log: Make) -> None:
    for number in range(5):
        log.append("user", str(number))
    live = log.read_all()
    assert new_log().read_all() is live


# Classes.


def test_the_class_has_the_names_of_pmm_s(log: Any, patcher: Patcher) -> None:
    ours, original = type(log), patcher.original("pmm.storage.eventlog", "EventLog")
    assert ours is not original
    assert issubclass(ours, original)
    assert isinstance(log, original)
    assert (ours.__module__, ours.__qualname__) == (original.__module__, original.__qualname__)
    assert ours.JOURNAL_MODE == "WAL"
    for name in ("append", "read_all", "read_tail", "read_after_id", "query", "get_event", "register_append_listener"):
        mine, theirs = getattr(ours, name), getattr(original, name)
        assert inspect.signature(mine) == inspect.signature(theirs)
        assert (mine.__module__, mine.__qualname__) == (theirs.__module__, theirs.__qualname__)


def test_methods_called_on_the_class(log: Any) -> None:
    assert type(log).append(log, "user", "x") == 1
    assert type(log).read_all(log) is log.read_all()


def test_a_subclass_with_methods_of_its_own(log: Any, new_log: Make, tmp_path: Path) -> None:
    class Loud(type(log)):  # type: ignore[misc]
        def append(self, kind: Any, content: Any, meta: Any = None) -> int:
            return int(super().append(kind, content.upper(), meta))

        def read_all(self) -> list[Any]:
            return [event for event in super().read_all() if event["kind"] == "user"]

    loud = Loud(str(tmp_path / "loud.db"))
    heard: list[Any] = []
    loud.register_append_listener(heard.append)
    loud.append("user", "a")
    loud.append("note", "b")
    assert [event["content"] for event in heard] == ["A", "B"]
    assert ids(loud.read_all()) == [1]
    # What such a log reads is not what is in the file.
    with pytest.raises(Fallback, match="read_all of its own"):
        log_of(loud)
    del Loud.read_all
    assert log_of(loud).append_checked("user", "c", {}, lambda: True) == 3
    assert loud.read_all()[-1]["content"] == "C"


def test_something_else_in_place_of_a_log() -> None:
    for other in (object(), None, {"_pmm_shm": 1}):
        with pytest.raises(Fallback, match="stand-in"):
            log_of(other)


# Listeners.


def test_listeners_hear_each_event_once_in_order(log: Any) -> None:
    log.append("user", "before")
    heard: list[tuple[str, int]] = []

    def fails(event: Any) -> None:
        heard.append(("fails", event["id"]))
        raise ValueError

    log.register_append_listener(lambda event: heard.append(("a", event["id"])))
    log.register_append_listener(fails)
    log.register_append_listener(lambda event: heard.append(("b", event["id"])))
    foreign(log)
    log.append("user", "own")
    foreign(log)
    foreign(log)
    log.append("", "by PMM's own append")
    assert [event for name, event in heard if name == "a"] == [2, 3, 4, 5, 6]
    assert heard == [(name, event) for event in range(2, 7) for name in ("a", "fails", "b")]


def test_a_read_tells_the_listeners(log: Any) -> None:
    heard: list[Any] = []
    log.register_append_listener(heard.append)
    for read in (log.read_all, lambda: log.read_tail(limit=1), log.query, lambda: log.get_event(1)):
        foreign(log)
        read()
        foreign(log)
        read()
    assert ids(heard) == list(range(1, 9))
    assert heard[-1] is log.read_all()[-1]


def test_nothing_older_than_the_registration_is_heard(log: Any) -> None:
    heard: list[Any] = []
    log.read_all()
    log.append("user", "old")
    foreign(log)
    log.register_append_listener(heard.append)
    log.append("user", "new")
    assert ids(heard) == [3]


def test_a_listener_appends(log: Any) -> None:
    heard: list[tuple[str, int]] = []

    def appends(event: Any) -> None:
        heard.append(("appends", event["id"]))
        if event["id"] < 4:
            log.append("note", f"after {event['id']}")

    log.register_append_listener(appends)
    log.register_append_listener(lambda event: heard.append(("hears", event["id"])))
    assert log.append("user", "x") == 1
    assert heard == [(name, event) for event in range(1, 5) for name in ("appends", "hears")]
    assert ids(log.read_all()) == [1, 2, 3, 4]


def test_a_listener_registers_another(log: Any) -> None:
    heard: list[tuple[str, int]] = []

    def registers(event: Any) -> None:
        heard.append(("first", event["id"]))
        if event["id"] == 1:
            log.append("note", "older than the registration")
            log.register_append_listener(lambda event: heard.append(("second", event["id"])))

    log.register_append_listener(registers)
    log.append("user", "x")
    log.append("user", "y")
    assert heard == [("first", 1), ("first", 2), ("first", 3), ("second", 3)]


def test_a_listener_that_is_registered_twice_hears_twice(log: Any) -> None:
    heard: list[int] = []

    def listener(event: Any) -> None:
        heard.append(event["id"])

    log.register_append_listener(listener)
    log.append("user", "x")
    log.register_append_listener(listener)
    log.append("user", "y")
    assert heard == [1, 2, 2]
    log._append_listeners.remove(listener)
    log.append("user", "z")
    log._append_listeners.clear()
    log.append("user", "nobody")
    log._append_listeners.append(listener)
    log.append("user", "put there by hand")
    assert heard == [1, 2, 2, 3, 5]


def test_a_listener_that_waits_for_another_append_does_not_stop_both(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmm_shm_pmm.delivery.WAIT_S", 0.1)
    heard: list[int] = []

    def waits(event: Any) -> None:
        heard.append(event["id"])
        if event["id"] == 1:
            thread = threading.Thread(target=log.append, args=("user", "from another thread"))
            thread.start()
            thread.join(10)
            assert not thread.is_alive()

    log.register_append_listener(waits)
    log.append("user", "x")
    assert heard == [1, 2]


def test_a_thread_that_has_delivered_leaves_the_turn_of_the_next_alone(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmm_shm_pmm.delivery.WAIT_S", 0.1)
    heard: list[int] = []
    listens, may_end = threading.Event(), threading.Event()

    def listener(event: Any) -> None:
        if event["id"] == 2:
            listens.set()
            may_end.wait(10)
        heard.append(event["id"])

    log.register_append_listener(listener)
    delivery = log_of(log).delivery
    goes_on = delivery._goes_on
    others: list[threading.Thread] = []

    def then_another(*args: Any) -> bool:
        """The next thread appends right after this one has given up its turn."""
        is_left = goes_on(*args)
        if not is_left and not others:
            others.append(threading.Thread(target=log.append, args=("user", "second")))
            others[0].start()
            assert listens.wait(10)
        return is_left

    monkeypatch.setattr(delivery, "_goes_on", then_another)
    log.append("user", "first")
    log.append("user", "third")
    assert heard == [1]
    may_end.set()
    others[0].join(10)
    assert heard == [1, 2, 3]


def test_no_listener_runs_within_a_read_of_its_owner(patcher: Patcher, log: Any) -> None:
    import pmm.runtime.loop as module

    code = """
import threading
class Owner:
    def __init__(self, log):
        self.log, self.lock, self.heard = log, threading.Lock(), []
        log.register_append_listener(self.hears)
    def hears(self, event):
        assert self.lock.acquire(timeout=1)
        self.heard.append(event["id"])
        self.lock.release()
    def looks(self):
        with self.lock:
            return len(self.log.read_all())
"""
    exec(code, vars(module))
    owner = module.Owner(log)
    foreign(log)
    assert owner.looks() == 1
    log.read_all()
    assert owner.heard == [1]


# For other replacements.


def test_events_by_kind(log: Any) -> None:
    for number in range(6):
        log.append("user" if number % 2 else "note", str(number), {"n": number})
    shared = log_of(log)
    assert ids(shared.newest("user", 2)) == [6, 4]
    assert shared.newest("user")[0] == log.read_all()[5]
    assert ids(shared.newest("user", 9, before=5)) == [4, 2]
    assert ids(shared.events_of("note")) == [1, 3, 5]
    assert ids(shared.events_of("note", after=1, limit=1)) == [3]
    assert ids(shared.events_of("note", newest_first=True, limit=2)) == [5, 3]
    assert shared.event(3) == log.read_all()[2]
    assert shared.event(7) is None
    assert shared.newest("nothing") == []
    foreign(log, kind="user")
    assert ids(shared.newest("user")) == [7]
    assert shared.sync() == 7
    assert shared.frame().as_of == 7


@pytest.mark.parametrize("is_whole", [True, False])
def test_events_of_a_kind_in_a_range(log: Any, is_whole: bool) -> None:
    log._conn.executemany(
        "INSERT INTO events (ts, kind, content, meta) VALUES ('', ?, ?, '{}')",
        [("rare" if number % 250 == 7 else "often", str(number)) for number in range(600)],
    )
    log._conn.commit()
    events = list(log.read_all())
    log._events_cache = None
    shared = log_of(log)
    len(list(log.read_all()) if is_whole else log.read_tail(limit=300))
    for kind in ("rare", "often", "never"):
        for after, before in ((None, None), (100, None), (None, 320), (100, 320), (590, None), (700, None), (None, 0)):
            fitting = [
                event
                for event in events
                if event["kind"] == kind and (after or 0) < event["id"] < (10_000 if before is None else before)
            ]
            for limit in (None, 1, 3):
                assert shared.ledger.events_of(kind, after, before, False, limit) == fitting[:limit]
                assert shared.ledger.events_of(kind, after, before, True, limit) == fitting[::-1][:limit]
    assert shared.ledger.loaded.is_whole == is_whole
    assert [shared.event(number) for number in (1, 320, 600)] == [events[0], events[319], events[599]]
    assert shared.event(0) is shared.event(601) is None


def test_an_own_append_is_not_read_again(log: Any) -> None:
    log.append("note", "first", {})
    log.read_all()
    statements: list[str] = []
    log_of(log).ledger._connection.handle().set_trace_callback(statements.append)
    log.append("note", "second", {"a": [1, {"b": 2.5}]})
    assert not statements
    row = rows(log)[-1]
    assert log.read_all()[-1] == dict(zip(("id", "ts", "kind", "content"), row, strict=False), meta=json.loads(row[4]))
    foreign(log)
    log.append("note", "third", {})
    assert statements
    assert [event["content"] for event in log.read_all()] == ["first", "second", "foreign", "third"]


def test_a_row_that_was_edited_before_an_own_append_is_seen(log: Any) -> None:
    log.append("note", "first", {})
    assert log.read_all()[0]["content"] == "first"
    digest = log._hash_event(1, log.read_all()[0]["ts"], "note", "edited", {}, None)
    with sqlite3.connect(log.path) as other:
        other.execute("UPDATE events SET content = 'edited', hash = ?", (digest,))
    log.append("note", "second", {})
    assert log.verify_chain()
    assert [event["content"] for event in log.read_all()] == ["edited", "second"]


def test_a_checked_append_looks_again(log: Any) -> None:
    shared = log_of(log)
    looks = itertools.count()

    def still() -> bool:
        if next(looks) == 0:
            foreign(log)
        return len(log.read_all()) < 2

    assert shared.append_checked("user", "x", {"a": 1}, still) == 2
    assert next(looks) == 2
    assert shared.append_checked("user", "x", {}, still) is None
    assert ids(log.read_all()) == [1, 2]


def test_a_checked_append_where_the_library_cannot(log: Any) -> None:
    shared = log_of(log)
    assert shared.append_checked("", "stored by PMM's own append", {}, lambda: True) == 1
    assert shared.append_checked("", "x", {}, lambda: False) is None
    with pytest.raises(TypeError):
        shared.append_checked("user", "x", {"x": object()}, lambda: True)
