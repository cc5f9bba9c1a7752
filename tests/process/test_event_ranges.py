"""`events` and `event`: which events they return, in which order, and how much of the ledger they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pmm_shm import errors, limits
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.support import ledgers

KINDS = ("user", "response", "reflection")


@pytest.fixture(params=["indexed", "plain", "other collation"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Ids 10, 20, ... 300, of three kinds in turn."""
    path = str(tmp_path / "agent.db")
    with EventLog(path) as log:
        log.append("user", "first")
    ledgers.execute(path, "DELETE FROM events")
    rows = ", ".join(f"({10 * n}, '2026-01-01', '{KINDS[n % 3]}', 'n{n}', '{{\"n\": {n}}}')" for n in range(1, 31))
    ledgers.execute(path, f"INSERT INTO events (id, ts, kind, content, meta) VALUES {rows}")
    if request.param != "indexed":
        ledgers.execute(path, "DROP INDEX idx_events_kind_id")
    if request.param == "other collation":
        ledgers.execute(path, "CREATE INDEX by_kind ON events (kind COLLATE NOCASE)")
    return path


@pytest.mark.parametrize("few", [False, True])
def test_a_range_of_events_by_kind_in_both_directions(path: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if few:
        monkeypatch.setattr(limits, "TAIL_ROWS_MAX", 2)
        monkeypatch.setattr(limits, "TAIL_SPAN_IDS", 25)
    everything = [(10 * n, KINDS[n % 3]) for n in range(1, 31)]
    with connect(path) as cache:
        for kind in (None, *KINDS, "absent", "USER"):
            for after in (None, -5, 0, 10, 95, 290, 300, 1 << 70, -(1 << 70)):
                for before in (None, 0, 11, 150, 301, 1 << 70, -(1 << 70)):
                    for limit in (0, 1, 3, None):
                        wanted = [
                            event_id
                            for event_id, own in everything
                            if (kind is None or own == kind)
                            and (after is None or event_id > after)
                            and (before is None or event_id < before)
                        ]
                        found = [event.id for event in cache.events(kind, after, before, limit)]
                        assert found == wanted[:limit]
                        found = [event.id for event in cache.events(kind, after, before, limit, newest_first=True)]
                        assert found == wanted[::-1][:limit]


def test_events_are_typed_and_the_first_hundred_by_default(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.db")
    with EventLog(path) as log:
        log.append_many([("user", f"n{n}", {"n": n}) for n in range(150)])
        assert [event.content for event in log.events()] == [f"n{n}" for n in range(100)]
    with connect(path) as cache:
        assert cache.events() == cache.events(limit=100)
        event = cache.event(7)
        assert event is not None
        assert (event.id, event.kind, event.content, event.meta) == (7, "user", "n6", {"n": 6})
        assert cache.events(after=6, limit=1) == [event]
        event.meta["n"] = "changed"
        again = cache.event(7)
        assert again is not None
        assert again.meta == {"n": 6}
        assert cache.event(151) is None
        assert cache.event(1 << 70) is None
    with pytest.raises(errors.ClosedError):
        cache.events()
    with pytest.raises(errors.ClosedError):
        cache.event(1)


@pytest.mark.parametrize(
    "arguments",
    [{"kind": 3}, {"after": "5"}, {"before": 2.0}, {"after": True}, {"limit": -1}, {"limit": "9"}, {"limit": True}],
)
def test_arguments_without_meaning(path: str, arguments: dict[str, Any]) -> None:
    with connect(path) as cache, pytest.raises(errors.ConfigError, match=next(iter(arguments))):
        cache.events(**arguments)


def test_a_kind_that_is_no_unicode_has_no_events(path: str) -> None:
    with connect(path) as cache:
        assert cache.events(kind="\ud800") == []


def test_rows_that_nobody_could_append_are_read_as_every_read_has_them(path: str) -> None:
    ledgers.execute(path, "UPDATE events SET content = x'ff', meta = '[1]' WHERE id = 20")
    with connect(path) as cache:
        [event] = cache.events(after=10, limit=1)
        assert (event.content, event.meta) == ("", {})


def test_an_empty_ledger_has_no_events(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.db")
    EventLog(path).close()
    with connect(path) as cache:
        assert cache.events() == cache.events("user") == cache.events(newest_first=True) == []


def test_the_index_by_kind_is_used_and_a_scan_without_it_is_in_short_statements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in the steps of SQLite's virtual machine: the longest statement of a call."""
    path = str(tmp_path / "agent.db")
    with EventLog(path) as log:
        log.append_many([("rare", "first", {}), *[("user", "x", {})] * 20_000, ("rare", "last", {})])
    monkeypatch.setattr(limits, "TAIL_SPAN_IDS", 1_000)

    def steps(newest_first: bool) -> tuple[int, int]:
        with connect(path) as cache:
            handle = cache._log._reader.handle()
            counts: list[int] = [0]
            handle.set_progress_handler(lambda: counts.__setitem__(-1, counts[-1] + 1), 100)
            handle.set_trace_callback(lambda _: counts.append(0))
            found = cache.events("rare", newest_first=newest_first)
            assert [event.content for event in found] == (["last", "first"] if newest_first else ["first", "last"])
            return 100 * max(counts), 100 * sum(counts)

    for newest_first in (False, True):
        assert steps(newest_first)[1] < 2_000
    ledgers.execute(path, "DROP INDEX idx_events_kind_id")
    for newest_first in (False, True):
        longest, total = steps(newest_first)
        assert longest < 20_000 < 60_000 < total


def test_events_appended_during_the_call_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "agent.db")
    with EventLog(path) as log, connect(path) as cache:
        log.append_many([("user", "x", {})] * 10)
        monkeypatch.setattr(limits, "TAIL_ROWS_MAX", 3)
        reader = cache._log._reader
        reader.handle().set_trace_callback(lambda sql: sql.startswith("SELECT id,") and log.append("user", "later"))
        assert [event.id for event in cache.events(limit=None)] == list(range(1, 11))
        reader.handle().set_trace_callback(None)
        assert len(cache.events(limit=None)) == 14


def test_the_newest_event_of_a_kind(path: str) -> None:
    with connect(path) as cache:
        for kind in KINDS:
            newest = cache.newest(kind)
            assert newest is not None
            assert newest == cache.events(kind, newest_first=True, limit=1)[0] == cache.event(newest.id)
        for absent in ("absent", "", "USER", "\ud800"):
            assert cache.newest(absent) is None
        with pytest.raises(errors.ConfigError, match="kind"):
            cache.newest(None)  # type: ignore[arg-type]
        ledgers.execute(path, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'user', 'last', '{}')")
        newest = cache.newest("user")
        assert newest is not None
        assert newest.content == "last"
    with pytest.raises(errors.ClosedError):
        cache.newest("user")


def test_whether_an_index_serves_is_asked_once_for_each_schema(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.db")
    with EventLog(path) as log:
        log.append_many([("user", "a", {}), ("response", "b", {})])
    with connect(path) as cache:
        assert cache.newest("user") == cache.event(1)
        connection = cache._log._reader
        with mock.patch.object(connection, "retry", wraps=connection.retry) as retry:
            cache.newest("user")
            once = retry.call_count
            ledgers.execute(path, "DROP INDEX idx_events_kind_id")
            connection.next_lock_check_s = 0.0
            for _ in range(3):
                retry.reset_mock()
                found = cache.newest("response")
                # Without an index it asks for the ends of its parts, too.
                assert retry.call_count > once
                assert found == cache.event(2)
                assert [one.content for one in cache.events("user", newest_first=True, limit=2)] == ["a"]
            ledgers.execute(path, "CREATE INDEX by_kind ON events (kind)")
            connection.next_lock_check_s = 0.0
            cache.newest("user")
            retry.reset_mock()
            cache.newest("user")
            assert retry.call_count == once
