"""Calls that come at a wrong moment or with a wrong argument: each is refused in one line, and nothing is damaged."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pmm_shm.errors import (
    ChainError,
    ConfigError,
    InvalidEventError,
    LedgerBusyError,
    LedgerUnwritableError,
    PmmShmError,
    UnknownFoldError,
)
from pmm_shm.folds.fields import to_int
from pmm_shm.ledger import new_events
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import Cache, build_self_model_cached, connect
from tests.support import ledgers
from tests.support.reentry import refused

ID_MAX = (1 << 63) - 1


# Re-entry.


@pytest.mark.parametrize("method", ["append", "append_many", "recover", "close"])
def test_a_call_within_an_append_of_the_same_thread_is_refused(log: EventLog, within: Any, method: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "append": lambda: log.append("nested"),
        "append_many": lambda: log.append_many([("nested", "", {})]),
        "recover": log.recover,
        "close": log.close,
    }
    log.append("first")
    outcome = within(calls[method])
    assert log.append_many([("outer", str(n), {}) for n in range(5)]) == [2, 3, 4, 5, 6]
    assert isinstance(outcome[0], LedgerBusyError)
    assert "of this thread is under way" in str(outcome[0])
    assert "\n" not in str(outcome[0])
    assert [event["kind"] for event in log.read_all()] == ["first"] + ["outer"] * 5
    assert log.verify_chain().ok
    assert log.append("after") == 7


def test_an_append_whose_handler_raises_writes_nothing(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> str:
        log.append("nested")
        raise AssertionError("not reached")

    with monkeypatch.context() as patched:
        patched.setattr(new_events, "hash_of_parts", fail)
        with pytest.raises(LedgerBusyError):
            log.append_many([("outer", "", {})] * 3)
    assert log.read_all() == []
    assert log.append("after") == 1


def test_reads_within_an_append_see_what_is_committed(log: EventLog, within: Any) -> None:
    log.append("first")
    seen: list[int] = []
    assert within(lambda: seen.append(len(log.read_all()))) == []
    log.append_many([("outer", "", {})] * 3)
    assert seen == [1]


def test_a_transaction_that_was_ended_from_outside_is_not_taken_for_committed(log: EventLog, within: Any) -> None:
    log.append("first")
    within(lambda: log._appender.connection.handle().execute("ROLLBACK"))
    with pytest.raises(LedgerUnwritableError, match="other code ended"):
        log.append("outer")


def test_a_transaction_that_was_left_open_is_not_committed_later(log: EventLog) -> None:
    log.append("first")
    handle = log._appender.connection.handle()
    handle.execute("BEGIN IMMEDIATE")
    handle.execute("INSERT INTO events (id, ts, kind, content, meta) VALUES (9, 't', 'left', '', '{}')")
    assert log.append("second") == 2
    assert [event["kind"] for event in log.read_all()] == ["first", "second"]


def test_appends_from_a_signal_handler_damage_nothing(log: EventLog) -> None:
    written = refused = 0

    def handler(*_: Any) -> None:
        nonlocal written, refused
        try:
            log.append("handler")
            written += 1
        except LedgerBusyError:
            refused += 1

    before = signal.signal(signal.SIGALRM, handler)
    try:
        batches = 0
        deadline = time.monotonic() + 5
        while batches < 50 or (not refused and time.monotonic() < deadline):
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + batches % 20 * 0.00005)
            log.append_many([("batch", str(batches), {})] * 50)
            batches += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    kinds = [event["kind"] for event in log.read_all()]
    assert kinds.count("batch") == batches * 50
    assert kinds.count("handler") == written
    assert log.verify_chain().ok


# The newest row was edited.


@pytest.mark.parametrize(
    "change",
    ["content = 'edited'", "ts = '2030-01-01T00:00:00Z'", "kind = 'else'", "meta = '{\"a\": 2}'", "hash = 'x'"],
)
def test_no_append_after_an_own_row_that_was_edited(log: EventLog, change: str) -> None:
    log.append_many([("a", "1", {}), ("b", "2", {"a": 1})])
    ledgers.execute(log.path, f"UPDATE events SET {change} WHERE id = 2")
    with pytest.raises(ChainError, match="event 2"):
        log.append("c")
    assert len(log.read_all()) == 2


def test_an_edit_that_the_hash_does_not_cover_stops_nobody(log: EventLog) -> None:
    log.append("a", "1", {"a": 1})
    ledgers.execute(log.path, "UPDATE events SET meta = '{ \"a\":1 }'")
    assert log.append("b") == 2
    assert log.verify_chain().ok


# Ids at both ends.


def test_the_least_id_is_read(log: EventLog) -> None:
    for event_id in (-(1 << 63), -5):
        ledgers.execute(
            log.path, "INSERT INTO events (id, ts, kind, content, meta) VALUES (?, 't', 'k', '', '{}')", event_id
        )
    log.append("x")
    ids = [-(1 << 63), -5, 1]
    assert [event["id"] for event in log.read_all()] == ids
    assert [event["id"] for event in log.read_after_id(after_id=-(1 << 70))] == ids
    assert [event["id"] for event in log.read_after_id(after_id=-(1 << 63))] == ids[1:]
    assert log.read_after_id(after_id=1 << 70) == []


def test_the_last_id_is_used_and_none_after_it(log: EventLog) -> None:
    ledgers.execute(
        log.path, "INSERT INTO events (id, ts, kind, content, meta) VALUES (?, 't', 'k', '', '{}')", ID_MAX - 3
    )
    with pytest.raises(LedgerUnwritableError, match="used up"):
        log.append_many([("x", "", {})] * 4)
    assert log.append_many([("x", "", {})] * 2) == [ID_MAX - 2, ID_MAX - 1]
    assert log.append("x") == ID_MAX
    with pytest.raises(LedgerUnwritableError, match="used up"):
        log.append("x")
    assert [event["id"] for event in log.read_all()] == [ID_MAX - 3, ID_MAX - 2, ID_MAX - 1, ID_MAX]
    assert log.verify_chain().ok


# Integers in text.


TEXTS = [
    ("7", 7),
    (" " * 5_000 + "7", 7),
    ("7" + "\u2003" * 5_000, 7),
    ("\x1c" * 700 + "7", None),
    ("\x1c" * 700 + "\u0667", None),
    ("1_" * 2_150 + "1", sum(10**n for n in range(2_151))),
    ("-" + "9" * 4_300, 1 - 10**4_300),
    ("+" + "0" * 4_299 + "5", 5),
    ("9" * 4_301, None),
    ("0" * 4_301, None),
    ("1_" * 4_300 + "1", None),
    ("\u0669" * 1_000, 10**1_000 - 1),
    ("1_" * 700, None),
    ("1__" * 700 + "1", None),
    ("- " + "1" * 700, None),
    ("1" * 350 + " " + "1" * 350, None),
    ("1" * 700 + "x", None),
    ("x" * 5_000, None),
]


@pytest.mark.parametrize("limit", [None, 0, 640])
@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=range(len(TEXTS)))
def test_text_reads_as_int_reads_it_under_every_limit_of_the_host(text: str, expected: int | None, limit: Any) -> None:
    set_limit: Any = getattr(sys, "set_int_max_str_digits", None)
    if limit is None or set_limit is None:
        assert (to_int(text) == expected) is True
        return
    before = sys.get_int_max_str_digits()
    set_limit(limit)
    try:
        assert (to_int(text) == expected) is True
    finally:
        set_limit(before)


# Arguments.


BAD: list[tuple[type[PmmShmError], Callable[[Cache], Any]]] = [
    (ConfigError, lambda cache: cache.wait_for(1 << 70)),
    (ConfigError, lambda cache: cache.wait_for("x")),  # type: ignore[arg-type]
    (ConfigError, lambda cache: cache.wait_for(None)),  # type: ignore[arg-type]
    (ConfigError, lambda cache: cache.wait_for(math.inf)),  # type: ignore[arg-type]
    (ConfigError, lambda cache: cache.wait_for(9, math.nan)),
    (ConfigError, lambda cache: cache.wait_for(9, "x")),  # type: ignore[arg-type]
    (ConfigError, lambda cache: cache.verify(timeout=math.nan)),
    (ConfigError, lambda cache: cache.invalidate(timeout=None)),  # type: ignore[arg-type]
    (UnknownFoldError, lambda cache: cache.invalidate("\ud800")),
    (UnknownFoldError, lambda cache: cache.invalidate(5)),  # type: ignore[arg-type]
    (UnknownFoldError, lambda cache: cache.invalidate("")),
    (UnknownFoldError, lambda cache: cache.invalidate("x" * 65)),
    (UnknownFoldError, lambda cache: cache.verify("\ud800")),
    (UnknownFoldError, lambda cache: cache.verify([])),  # type: ignore[arg-type]
    (UnknownFoldError, lambda cache: cache.fold({})),  # type: ignore[arg-type]
    (InvalidEventError, lambda cache: cache.append("k", "c", 5)),  # type: ignore[arg-type]
    (ConfigError, lambda cache: cache.self_model(strict=True, max_trait_delta="x")),  # type: ignore[arg-type]
    (ConfigError, lambda cache: cache.self_model(strict=True, max_trait_delta=None)),  # type: ignore[arg-type]
    (ConfigError, lambda cache: cache.frame().self_model(strict=True, max_trait_delta="x")),  # type: ignore[arg-type]
    (ConfigError, lambda cache: build_self_model_cached(EventLog(cache.path), True, "x")),  # type: ignore[arg-type]
    (ConfigError, lambda cache: connect(cache.path, timeout="x")),  # type: ignore[arg-type]
    (ConfigError, lambda cache: connect(cache.path, timeout=None)),  # type: ignore[arg-type]
    (ConfigError, lambda cache: connect(cache.path, timeout=math.nan)),
    (ConfigError, lambda cache: connect(5)),  # type: ignore[arg-type]
    (ConfigError, lambda cache: connect("\ud800")),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_a_bad_argument_is_refused_by_name(ledger: str, case: int) -> None:
    error, action = BAD[case]
    with connect(ledger) as cache:
        refused(error, lambda: action(cache))


def test_an_endless_timeout_of_a_log(ledger: str) -> None:
    with EventLog(ledger, timeout=math.inf) as log:
        assert log.append("x") == 1
