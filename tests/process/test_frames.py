"""Frames: the same object while nothing is new, kept ones by their position, and those of earlier events."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pmm_shm import errors, limits
from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.state import State
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from pmm_shm.ledger.rows import Event
from pmm_shm.projection.cursor import Cursor
from pmm_shm_client import Cache, connect
from tests.support import answers, ledgers


def fill(path: str, count: int) -> list[int]:
    """Events of kinds that answers depend on, one commit each; their ids."""
    with EventLog(path) as log:
        return [log.append(*_event(n)) for n in range(count)]


def _event(n: int) -> tuple[str, str, dict[str, Any]]:
    cid = f"c{n // 4}"
    if n % 4 == 0:
        return "commitment_open", "", {"cid": cid, "text": f"do {n}"}
    if n % 4 == 1:
        return "identity_adopt", f"Echo{n}", {"name": f"Echo{n}", "confidence": 0.9}
    if n % 4 == 2:
        return "reflection", f"thought {n}", {}
    if n % 8 == 3:
        return "commitment_close", "", {"cid": cid}
    return "trait_update", "", {"trait": "openness", "delta": 0.03}


def replayed_at(path: str, folder: Path, event_id: int) -> dict[str, Any]:
    """Every answer of a log that ends with an event, by a plain full replay of a copy."""
    copy = str(folder / f"until-{event_id}.db")
    if not os.path.exists(copy):
        # Not a copy of the file: to open and close it would drop SQLite's locks of this process.
        ledgers.execute(path, "VACUUM INTO ?", copy)
        ledgers.execute(copy, "DELETE FROM events WHERE id > ?", event_id)
    return answers.replayed(copy)


# The newest.


@pytest.mark.parametrize("freshness", ["auto", "data_version"])
def test_a_frame_is_the_same_object_while_nothing_is_new(ledger: str, freshness: Any) -> None:
    with connect(ledger, freshness=freshness) as cache:
        first = cache.frame()
        assert cache.frame() is first
        assert cache.frame(consistency="exact") == cache.frame(consistency="exact")
        cache.append("user", "hello")
        second = cache.frame()
        assert (first.as_of, second.as_of) == (0, 1)
        assert cache.frame() is second
        with EventLog(ledger) as other:
            other.append("identity_adopt", "Ada", {})
        third = cache.frame()
        assert (third.as_of, third.identity().name) == (2, "Ada")
        assert (second.identity().name, first.as_of) == (None, 0)


def test_each_frame_is_counted(ledger: str) -> None:
    with connect(ledger) as cache:
        for _ in range(5):
            cache.frame()
        numbers = cache.stats()["projection"]
        assert (numbers["cache_hits"], numbers["cache_misses"]) == (4, 1)
        cache.append("user", "hello")
        cache.frame(), cache.frame()
        numbers = cache.stats()["projection"]
        assert (numbers["cache_hits"], numbers["cache_misses"], numbers["last_id"]) == (5, 2, 1)


def test_a_repeated_frame_reads_nothing(ledger: str) -> None:
    with connect(ledger) as cache:
        frame = cache.frame()
        if cache._freshness.header is None:
            pytest.skip("no wal-index mark here")
        with mock.patch.object(cache._reader, "exact", side_effect=AssertionError):
            cache._freshness.trusted_until += 60.0
            assert cache.frame() is frame


class Counting(Fold):
    name = "counting"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"user": ()}

    def apply(self, event: Event, state: State) -> None:
        state["count"] = state.get("count", 0) + 1

    def view(self, state: State) -> int:
        count: int = state.get("count", 0)
        return count


def test_a_fold_that_is_added_is_in_the_next_frame(ledger: str) -> None:
    with connect(ledger) as cache:
        cache.append("user", "hello")
        early = cache.frame()
        cache.add_fold(Counting)
        late = cache.frame()
        cache.append("user", "hello")
        assert late is not early
        # Without a replay of what came later.
        with mock.patch.object(cache._reader, "with_ledger", side_effect=AssertionError):
            assert late.fold("counting") == 1
        assert cache.frame().fold("counting") == cache.fold("counting") == 2
        assert early.fold("counting") == 1


@pytest.mark.parametrize("late", [("recent", "history"), ("metrics", "stage", "directives", "recent", "history")])
def test_late_folds_answer_as_the_others(ledger: str, tmp_path: Path, late: tuple[str, ...]) -> None:
    fill(ledger, 8)
    with Cache(ledger, late_folds=late) as cache:
        early = cache.frame()
        assert not set(late) & set(cache._reader.folds)
        cache.append("commitment_open", "", {"cid": "new", "text": "later"})
        assert answers.everything(early) == replayed_at(ledger, tmp_path, 8)
        assert answers.everything(cache.frame_at(5)) == replayed_at(ledger, tmp_path, 5)
        assert not set(late) & set(cache._reader.folds)
        assert answers.everything(cache) == answers.replayed(ledger)
        assert set(late) <= set(cache._reader.folds)
        cache.append("reflection", "later still", {})
        assert answers.everything(cache.frame()) == answers.everything(cache) == answers.replayed(ledger)


def test_folds_that_are_given_share_one_replay(ledger: str) -> None:
    fill(ledger, 8)
    with connect(ledger, folds=[Counting]) as cache:
        cache.append("user", "hello")
        assert cache.fold("counting") == 1
        assert answers.everything(cache) == answers.replayed(ledger)
        assert len(cache._reader._read_models) == 1
        assert cache._reader.events_folded == 9


def test_a_cache_is_freed_with_its_last_reference(ledger: str) -> None:
    fill(ledger, 8)
    gc.collect()
    gc.disable()
    try:
        cache = connect(ledger)
        frame = cache.frame()
        cache.frame_at(3), cache.model(), cache.mark(), cache.newest("user")
        gone = weakref.ref(cache)
        del cache
        assert gone() is None
        with pytest.raises(errors.ProjectionInvariantError):
            frame.self_model(strict=True, max_trait_delta=0.01)
    finally:
        gc.enable()


# Kept ones.


def test_the_newest_frames_are_kept_by_their_positions(ledger: str) -> None:
    with connect(ledger) as cache:
        made = [cache.frame()]
        for n in range(12):
            cache.append("user", f"message {n}")
            made.append(cache.frame())
        for frame in made:
            kept = cache.kept_frame(frame.as_of)
            assert kept is (frame if frame.as_of > 12 - limits.FRAMES_KEPT else None)
        assert cache.kept_frame(13) is None
    with pytest.raises(errors.ClosedError):
        cache.kept_frame(12)


@pytest.mark.parametrize("how", ["restored", "replaced", "cut", "edited"])
def test_frames_of_another_history_are_dropped(ledger: str, tmp_path: Path, how: str) -> None:
    with connect(ledger) as cache:
        cache.append("user", "one")
        backup = str(tmp_path / "backup.db")
        ledgers.execute(ledger, "VACUUM INTO ?", backup)
        for _ in range(3):
            cache.append("identity_adopt", "Ada", {})
            cache.frame()
        assert cache.kept_frame(3) is not None
        if how == "restored":
            restore(backup, ledger, keep=False)
        elif how == "replaced":
            ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)")
            os.replace(backup, ledger)
            cache._freshness.distrust()
        elif how == "cut":
            ledgers.execute(ledger, "DELETE FROM events WHERE id > 1")
        else:
            ledgers.execute(ledger, "UPDATE events SET content = 'Eve' WHERE id = 4")
        insert = "INSERT INTO events (ts, kind, content, meta) VALUES ('2026-01-01', 'identity_adopt', 'Bea', '{}')"
        ledgers.execute(ledger, insert)
        frame = cache.frame()
        assert frame.identity().name == "Bea"
        for event_id in range(1, frame.as_of):
            assert cache.kept_frame(event_id) is None
        assert answers.everything(cache.frame_at(1)) == replayed_at(ledger, tmp_path, 1)


def test_frames_stay_kept_when_the_connection_was_opened_anew(ledger: str) -> None:
    with connect(ledger) as cache:
        cache.append("user", "one")
        frame = cache.frame()
        cache._reader.connection.close()  # as before a fork
        assert cache.kept_frame(1) is None
        assert cache.frame() is frame
        assert cache.kept_frame(1) is frame


# Earlier events.


def test_a_frame_of_an_earlier_event_equals_a_replay_of_the_log_until_there(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAST_DISTANCES", (9, 4, 0))
    ids = fill(ledger, 24)
    with connect(ledger) as cache:
        for event_id in [*ids, *ids[::-1], 12, 3, 20, 0, -7]:
            frame = cache.frame_at(event_id)
            assert frame.as_of == max(event_id, 0)
            assert answers.everything(frame) == replayed_at(ledger, tmp_path, event_id)
            assert answers.everything(cache.frame_at(event_id)) == answers.everything(frame)


def test_a_frame_between_two_ids_and_behind_the_newest(ledger: str, tmp_path: Path) -> None:
    fill(ledger, 6)
    ledgers.execute(ledger, "DELETE FROM events WHERE id IN (3, 4)")
    with connect(ledger) as cache:
        assert cache.frame_at(4).as_of == cache.frame_at(3).as_of == 2
        assert cache.frame_at(6) is cache.frame_at(1 << 80) is cache.frame()
        assert cache.frame_at(-(1 << 63)).as_of == cache.frame_at(-(1 << 80)).as_of == 0
        cache.append("user", "seven")
        assert cache.frame_at(7).as_of == 7
        # That of an earlier call is kept.
        assert cache.frame_at(6) is cache.kept_frame(6) is not None
        for wrong in (None, "6", 6.0, True):
            with pytest.raises(errors.ConfigError, match="event_id"):
                cache.frame_at(wrong)  # type: ignore[arg-type]


def test_steps_along_the_log_fold_few_events(ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append_many([("user", f"message {n}", {}) for n in range(3_000)])
    with connect(ledger) as cache:
        cache.frame(), cache.frame_at(2_000)
        folded: list[int] = []

        def moved(self: Any, *arguments: Any) -> Any:
            tail = advance(self, *arguments)
            folded.append(len(tail.rows))
            return tail

        advance = Cursor.advance
        with mock.patch.object(Cursor, "advance", moved):
            for event_id in (2_001, 2_002, 2_001, 1_999, 1_990, 1_900):
                assert cache.frame_at(event_id).as_of == event_id
        assert sum(folded) < 6 * 300


def test_frames_of_earlier_events_of_a_log_that_was_edited(ledger: str, tmp_path: Path) -> None:
    fill(ledger, 12)
    with connect(ledger) as cache:
        assert cache.frame_at(10).identity().name == "Echo9"
        ledgers.execute(ledger, "UPDATE events SET content = 'Eve', meta = '{}' WHERE id IN (2, 10)")
        for event_id in (10, 11):
            assert answers.everything(cache.frame_at(event_id)) == replayed_at(ledger, tmp_path, event_id)


def test_frames_of_earlier_events_have_added_folds_and_other_limits(ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append_many([("user", "hello", {}), ("trait_update", "", {"trait": "openness", "delta": 0.2})] * 3)
    with connect(ledger) as cache:
        assert cache.frame_at(3).as_of == 3
        cache.add_fold(Counting())
        assert [cache.frame_at(n).fold("counting") for n in range(7)] == [0, 1, 1, 2, 2, 3, 3]
        early = cache.frame_at(4)
        assert early.self_model(strict=True, max_trait_delta=0.1)["identity"]["traits"]["openness"] == 0.7
        warnings: list[Any] = []
        log.append("commitment_open", "", {"cid": "c", "text": "t"})
        log.append("commitment_close", "", {"cid": "c"})
        log.append("user", "later")
        cache.frame_at(7).self_model(on_warn=warnings.append)
        assert warnings == []
        cache.frame_at(8).self_model(on_warn=warnings.append)
        assert [one["meta"]["eid"] for one in warnings] == [8]


def test_frames_of_earlier_events_with_the_flags_off(ledger: str, tmp_path: Path) -> None:
    fill(ledger, 8)
    with mock.patch.dict(os.environ, answers.FLAGS_OFF), connect(ledger) as cache:
        assert answers.everything(cache.frame_at(5)) == replayed_at(ledger, tmp_path, 5)
        assert cache.kept_frame(8) is None
        with Cache(ledger, heeds_flags=False) as sharing:
            first = sharing.metrics()
            assert sharing.metrics() is first
            assert sharing.frame() is sharing.frame()


def test_threads_share_frames_of_earlier_events(ledger: str, tmp_path: Path) -> None:
    ids = fill(ledger, 24)
    with connect(ledger) as cache:
        wanted = {event_id: replayed_at(ledger, tmp_path, event_id) for event_id in ids}
        wrong: list[Any] = []

        def walk(steps: list[int]) -> None:
            for event_id in steps:
                try:
                    if answers.everything(cache.frame_at(event_id)) != wanted[event_id]:
                        wrong.append(event_id)
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=walk, args=(steps,)) for steps in (ids, ids[::-1], ids[::3] * 3)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert wrong == []


def test_the_progress_of_a_frame_of_an_earlier_event(ledger: str, tmp_path: Path) -> None:
    """It is told positions on the way; an exception out of it ends the call, and the next call is exact."""
    fill(ledger, 40)
    seen: list[int] = []
    with connect(ledger) as cache:

        def stop(position: Any) -> None:
            raise InterruptedError(position.as_of)

        with pytest.raises(InterruptedError):
            cache.frame_at(30, stop)
        frame = cache.frame_at(30, lambda position: seen.append(position.as_of))
        assert seen
        assert seen == sorted(seen)
        assert seen[-1] == 30
        assert answers.everything(frame) == replayed_at(ledger, tmp_path, 30)


def test_a_walk_along_the_events_and_back_folds_few_of_them(ledger: str, tmp_path: Path) -> None:
    count = 900
    fill(ledger, count)
    with connect(ledger) as cache:
        cache.frame_at(600)
        for event_id in [*range(601, 630), *range(628, 570, -1)]:
            seen: list[int] = []
            frame = cache.frame_at(event_id, lambda position, seen=seen: seen.append(position.as_of))
            assert frame.as_of == event_id
            # Never from the start of the log.
            assert not seen or seen[0] > 300, event_id
        assert answers.everything(frame) == replayed_at(ledger, tmp_path, 571)
