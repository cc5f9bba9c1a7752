"""Each fold of a cache is given its events when it is asked for: in any order, behind appends, commits of the daemon,
edits and rollbacks, every answer is that of a full replay."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm import limits
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.recent import RecentFold
from pmm_shm.folds.self_model import SelfModelFold
from pmm_shm.ledger.tail import TailReader
from pmm_shm_client import Cache, connect
from tests.support import ledgers
from tests.support.answers import FLAGS_OFF, everything, replayed
from tests.support.profiles import examples
from tests.support.publishing import Publisher, event, fill, foreign

_FIRST = 24
_READS = ("metrics", "self_model", "identity", "stage", "recent", "directives", "history")
_STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 4)),
    st.tuples(st.just("append"), st.just(limits.TAIL_FEW_ROWS + 3)),
    st.tuples(st.sampled_from(["pin", "publish", "edit", "frame"]), st.just(0)),
    st.tuples(st.just("roll back"), st.integers(1, 3)),
    *[st.tuples(st.just("read"), st.sampled_from(_READS)) for _ in range(4)],
)


class _Log:
    """A ledger that grows, is edited and is rolled back behind what is published; no two rows are alike."""

    def __init__(self, path: str) -> None:
        fill(path, _FIRST)
        self.path, self._number = path, _FIRST
        self.publisher = Publisher(path)

    def append(self, count: int) -> None:
        handle = ledgers.connect(self.path)
        try:
            handle.execute("BEGIN")
            for _ in range(count):
                self._number += 1
                one = event(self._number)
                ts = f"2026-01-01T00:00:00.{self._number:06}Z"
                handle.execute(
                    "INSERT INTO events (ts, kind, content, meta) VALUES (?, ?, ?, ?)",
                    (ts, one["kind"], one["content"], json.dumps(one["meta"])),
                )
            handle.execute("COMMIT")
        finally:
            handle.close()

    def edit(self) -> None:
        """The newest row, if the daemon has not seen it."""
        self._change(
            "UPDATE events SET kind = 'user', content = 'edited ' || ? WHERE id = (SELECT max(id) FROM events)"
        )

    def roll_back(self, count: int) -> None:
        self._change("DELETE FROM events WHERE ? AND id > (SELECT max(id) FROM events) - ?", count)

    def pin(self) -> None:
        """Let the daemon see the log as it is now, until it has published it."""
        handle = self.publisher.follower.connection.handle()
        if not handle.in_transaction:
            handle.execute("BEGIN")
            handle.execute("SELECT count(*) FROM events").fetchall()

    def publish(self) -> None:
        self.publisher.publish()
        handle = self.publisher.follower.connection.handle()
        if handle.in_transaction:
            handle.execute("COMMIT")

    def _change(self, statement: str, *parameters: int) -> None:
        if self.publisher.follower.connection.handle().in_transaction:
            # The daemon may publish what is changed, and would not follow the log any more.
            return
        self._number += 1
        as_of = self.publisher.writer.header.position.as_of
        ledgers.execute(self.path, f"{statement} AND id > {as_of}", self._number, *parameters)


def _answer(cache: Cache, name: str) -> str:
    return repr(getattr(cache, name)())


@settings(max_examples=examples(100))
@given(st.lists(_STEPS, min_size=4, max_size=24))
def test_answers_are_those_of_a_replay_whichever_fold_is_asked_for(steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = _Log(str(Path(folder) / "ledger.db"))
        with mock.patch.dict(os.environ, FLAGS_OFF):
            oracle = connect(log.path)
        with oracle, connect(log.path) as cache:
            moves: dict[str, Callable[[Any], None]] = {
                "append": log.append,
                "edit": lambda _: log.edit(),
                "pin": lambda _: log.pin(),
                "publish": lambda _: log.publish(),
                "roll back": log.roll_back,
            }
            for step, argument in steps:
                if step == "read":
                    assert _answer(cache, argument) == _answer(oracle, argument)
                elif step == "frame":
                    assert everything(cache.frame()) == everything(oracle.frame())
                else:
                    moves[step](argument)
            for name in _READS:
                assert _answer(cache, name) == _answer(oracle, name)
        log.publisher.close()


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folds that were given events, in order."""
    seen: list[str] = []
    for fold in (MetricsFold, RecentFold, SelfModelFold):
        apply = fold.apply_batch

        def counted(self: Any, events: Any, state: Any, apply: Any = apply) -> None:
            seen.append(self.name)
            apply(self, events, state)

        monkeypatch.setattr(fold, "apply_batch", counted)
    return seen


def test_a_fold_that_nobody_asks_for_is_given_nothing(
    ledger: str, publish: Callable[[str], Publisher], applied: list[str]
) -> None:
    fill(ledger, _FIRST)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        everything(cache)
        applied.clear()
        fill(ledger, 8, _FIRST)
        cache.metrics()
        assert applied == ["metrics"]
        # What the daemon has published meanwhile is not folded any more.
        publisher.publish()
        applied.clear()
        foreign(ledger)
        cache.self_model()
        assert applied == []
        cache.recent()
        assert applied == ["recent"]
        assert everything(cache) == replayed(ledger)


def test_events_do_not_pile_up_for_a_fold_that_nobody_asks_for(
    ledger: str, publish: Callable[[str], Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "QUEUED_EVENTS_MAX", 10)
    fill(ledger, _FIRST)
    publish(ledger)
    with connect(ledger) as cache:
        for number in range(30):
            foreign(ledger)
            cache.metrics()
            assert cache._reader._read_models["published"]._engine.queued <= 11, number
        assert everything(cache) == replayed(ledger)


@pytest.mark.parametrize("column", ["content", "meta"])
def test_a_long_event_does_not_wait_for_a_fold_that_nobody_asks_for(
    ledger: str, publish: Callable[[str], Publisher], column: str
) -> None:
    fill(ledger, _FIRST)
    publish(ledger)
    text = "x" * limits.QUEUED_CHARS_MAX
    with connect(ledger) as cache:
        foreign(ledger, content=text)
        cache.metrics()
        engine = cache._reader._read_models["published"]._engine
        assert engine.queued == 1
        if column == "content":
            foreign(ledger, content=text + "x")
        else:
            foreign(ledger, meta=json.dumps({"text": text}))
        cache.metrics()
        assert engine.queued == 0
        assert everything(cache) == replayed(ledger)


def test_a_second_read_under_the_same_mark_makes_no_statement(
    ledger: str, publish: Callable[[str], Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger, _FIRST)
    publish(ledger)
    with connect(ledger) as cache:
        cache.metrics()
        foreign(ledger, kind="identity_adopt", content="Echo", meta='{"name": "Echo"}')
        cache._freshness.distrust()
        cache.metrics()
        reads: list[object] = []
        read = TailReader.read
        monkeypatch.setattr(TailReader, "read", lambda *some, **more: reads.append(some) or read(*some, **more))
        assert cache.identity().name == "Echo"
        assert reads == []
        # Only as long as a memo is believed.
        cache._freshness.distrust()
        assert cache.stage().as_of == _FIRST + 1
        assert len(reads) == 1


def test_an_overlay_and_the_tail_behind_what_is_published_are_read_in_one_statement(
    ledger: str, publish: Callable[[str], Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger, _FIRST)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        foreign(ledger)
        cache.metrics()
        fill(ledger, 20, _FIRST)
        publisher.publish()
        foreign(ledger)
        statements: list[str] = []
        cache._reader.connection.handle().set_trace_callback(statements.append)
        assert cache.recent().as_of == _FIRST + 22
        assert len([one for one in statements if "FROM events" in one]) == 1
        cache._reader.connection.handle().set_trace_callback(None)
        assert everything(cache) == replayed(ledger)


def test_an_overlay_of_another_history_leaves_no_view_behind(ledger: str, publish: Callable[[str], Publisher]) -> None:
    fill(ledger, _FIRST)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        foreign(ledger, kind="commitment_open", meta='{"cid": "x", "text": "mine"}')
        assert "x" in cache.commitments().open
        cache.metrics()
        ledgers.execute(ledger, "UPDATE events SET kind = 'user' WHERE id = (SELECT max(id) FROM events)")
        foreign(ledger)
        publisher.publish()
        foreign(ledger)
        assert "x" not in cache.commitments().open
        assert everything(cache) == replayed(ledger)


def _published_below(ledger: str, publisher: Publisher, cache: Cache) -> None:
    """The daemon publishes event 40 of 48, which is ahead of what most folds were given."""
    fill(ledger, 8, _FIRST)
    everything(cache)
    fill(ledger, 8, 32)
    handle = publisher.follower.connection.handle()
    handle.execute("BEGIN")
    handle.execute("SELECT count(*) FROM events").fetchall()
    fill(ledger, 8, 40)
    assert cache.metrics().as_of == 48
    publisher.publish()
    handle.execute("COMMIT")
    assert publisher.writer.header.position.as_of == 40


@pytest.mark.parametrize("first", _READS)
def test_folds_go_on_from_a_base_that_has_some_of_the_events_that_they_wait_for(
    ledger: str, publish: Callable[[str], Publisher], first: str
) -> None:
    fill(ledger, _FIRST)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        _published_below(ledger, publisher, cache)
        getattr(cache, first)()
        assert everything(cache) == replayed(ledger)
        foreign(ledger)
        assert everything(cache) == replayed(ledger)
        assert cache._reader.replays == 0


def test_a_base_of_another_history_is_not_put_under_an_overlay(
    ledger: str, publish: Callable[[str], Publisher]
) -> None:
    fill(ledger, _FIRST)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        _published_below(ledger, publisher, cache)
        ledgers.execute(ledger, "UPDATE events SET kind = 'user', content = 'edited' WHERE id = 40")
        assert everything(cache) == replayed(ledger)
