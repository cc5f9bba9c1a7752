"""The exact read, finding by finding: each test fails without what it speaks of (see `docs/RELIABILITY.md`)."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pmm_cached.follower import Follower, all_folds
from pmm_cached.status import Status
from pmm_shm import errors, limits
from pmm_shm.folds import registry
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.state import State
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.rows import Event
from pmm_shm.ledger.tail import TailReader
from pmm_shm.store.snapshot import Snapshot
from pmm_shm_client import connect
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.polling import until
from tests.support.publishing import MARKS, Publisher, fill, foreign

READS = ("identity", "commitments", "metrics", "stage", "recent", "history", "self_model", "directives", "frame")


def after_each_tail(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    original = TailReader.read

    def read(self: TailReader, *arguments: Any, **options: Any) -> Any:
        tail = original(self, *arguments, **options)
        action()
        return tail

    monkeypatch.setattr(TailReader, "read", read)


def at_most(count: int, action: Callable[[], None]) -> Callable[[], None]:
    left = iter(range(count))

    def run() -> None:
        if next(left, None) is not None:
            action()

    return run


# The mark, and the connection that reads.


@pytest.mark.parametrize("freshness", MARKS)
def test_the_mark_is_taken_before_the_rows(ledger: str, freshness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit behind the last row, while the answer is made, is in the next read."""
    fill(ledger, 8)
    with connect(ledger, freshness=freshness) as cache:
        after_each_tail(monkeypatch, at_most(1, lambda: foreign(ledger)))
        assert cache.metrics().as_of == 8
        assert cache.metrics().as_of == 9
        assert everything(cache) == replayed(ledger)


@pytest.mark.parametrize("freshness", MARKS)
def test_every_foreign_commit_is_in_the_next_read(ledger: str, freshness: Any) -> None:
    fill(ledger, 8)
    with connect(ledger, freshness=freshness) as cache:
        for number in range(50):
            foreign(ledger)
            for method in READS[number % 4 : number % 4 + 3]:
                answer = getattr(cache, method)()
                assert getattr(answer, "as_of", 9 + number) == 9 + number
            assert cache.append("user", "own") == 10 + number
            assert cache.recent().messages[-1].content == "own"
            ledgers.execute(ledger, "DELETE FROM events WHERE id = ?", 10 + number)
            ledgers.execute(ledger, "UPDATE sqlite_sequence SET seq = ?", 9 + number)


def test_no_statement_is_open_while_rows_are_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a catch-up of many statements a rollback-journal writer commits without waiting."""
    path = ledgers.build(tmp_path / "ledger.db", 300, journal="delete")
    monkeypatch.setattr(limits, "TAIL_BYTES_MAX", 500)
    batches: list[int] = []
    original = Engine.apply

    def apply(self: Engine, rows: Any, *others: Any) -> int:
        batches.append(len(rows))
        if len(batches) < 20:
            foreign(path)
        return original(self, rows, *others)

    monkeypatch.setattr(Engine, "apply", apply)
    monkeypatch.setattr(MetricsFold, "kinds", {**MetricsFold.kinds, "note": (), "other": ()})
    monkeypatch.setattr(MetricsFold, "apply_batch", lambda self, events, state: None)
    with connect(path) as cache:
        # Several statements, each cut short by its bound on bytes, with rows still to come.
        assert cache.metrics().as_of > 300
        assert len(batches) >= 2


@pytest.mark.parametrize("freshness", MARKS)
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_read_leaves_no_statement_open(
    ledger: str, tmp_path: Path, freshness: Any, journal: str, publish: Callable[[str], Publisher]
) -> None:
    """Behind each read the WAL can be emptied, and a rollback journal's writer does not wait."""
    fill(ledger, 40)
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    publish(ledger)
    with connect(ledger, freshness=freshness) as cache:
        for method in READS:
            getattr(cache, method)()
            foreign(ledger)
            getattr(cache, method)()
            if journal == "wal":
                assert ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
            else:
                foreign(ledger)
        # Caught in the act, too: a statement ends with the call that made it, not when its cursor is collected.
        handle = cache._reader.connection.handle()
        handle.execute("PRAGMA query_only = 1").fetchall()
        assert not handle.in_transaction


def test_the_mark_leaves_no_statement_open(ledger: str) -> None:
    """An unfinished `PRAGMA data_version` would pin the old rows under the new mark."""
    fill(ledger, 8)
    with connect(ledger, freshness="data_version") as cache:
        marks, counts = [], []
        for _ in range(4):
            foreign(ledger)
            with cache._reader.connection.lock:
                marks.append(cache._freshness.take())
                counts.append(cache._reader.connection.handle().execute("SELECT count(*) FROM events").fetchone()[0])
            assert ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
        assert len(set(marks)) == 4
        assert counts == [9, 10, 11, 12]


def test_the_connection_that_reads_cannot_append(ledger: str) -> None:
    fill(ledger, 8)
    with connect(ledger) as cache:
        statements: list[str] = []
        handle = cache._reader.connection.handle()
        handle.set_trace_callback(statements.append)
        for _ in range(3):
            cache.append("user", "own")
            everything(cache)
        assert cache._reader.connection.handle() is handle
        assert {statement.split()[0] for statement in statements} <= {"SELECT", "WITH", "PRAGMA", "BEGIN", "COMMIT"}
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            handle.execute("DELETE FROM events")


# The overlay.


def test_an_edit_of_the_overlays_tip_is_noticed(ledger: str, publish: Callable[[str], Publisher]) -> None:
    """The anchor is that of the newest event folded: the snapshot's own is still in place."""
    fill(ledger, 16)
    publish(ledger)
    with connect(ledger) as cache:
        for content in ("one", "two"):
            foreign(ledger, content=content)
        assert cache.recent().messages[-1].content == "two"
        ledgers.execute(ledger, "UPDATE events SET content = 'edited' WHERE id = 18")
        foreign(ledger, content="three")
        assert [entry.content for entry in cache.recent().messages[-3:]] == ["one", "edited", "three"]
        assert everything(cache) == replayed(ledger)
        assert cache._reader.replays == 0


def test_an_edit_of_the_snapshots_newest_event_is_noticed(ledger: str, publish: Callable[[str], Publisher]) -> None:
    fill(ledger, 15)
    foreign(ledger, content="published")
    publish(ledger)
    with connect(ledger) as cache:
        assert cache.recent().messages[-1].content == "published"
        ledgers.execute(ledger, "UPDATE events SET content = 'edited' WHERE id = 16")
        assert cache.recent().messages[-1].content == "edited"
        assert everything(cache) == replayed(ledger)
        assert cache._reader.replays == 1


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_catch_up_over_the_base_is_extended_not_repeated(
    ledger: str, journal: str, publish: Callable[[str], Publisher]
) -> None:
    fill(ledger, 100)
    ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
    publish(ledger)
    with connect(ledger) as cache:
        everything(cache)
        assert cache._reader.events_folded == 0
        for number in range(10):
            foreign(ledger)
            everything(cache)
            assert cache._reader.events_folded == number + 1
        assert cache._reader.replays == 0
        assert everything(cache) == replayed(ledger)


def test_a_catch_up_without_a_base_is_kept_and_extended(ledger: str) -> None:
    count = limits.TAIL_ROWS_MAX + 1_000
    fill(ledger, count)
    with connect(ledger) as cache:
        for number in range(10):
            everything(cache)
            assert cache._reader.events_folded == count + number
            foreign(ledger)
        assert cache._reader.replays == 1
        assert everything(cache) == replayed(ledger)


def test_an_overlay_stays_over_a_base_behind_its_tip_and_goes_when_the_base_is_ahead(
    ledger: str, publish: Callable[[str], Publisher]
) -> None:
    fill(ledger, 100)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        reader = cache._reader
        fill(ledger, 5, 100)
        handle = publisher.follower.connection.handle()
        handle.execute("BEGIN")
        handle.execute("SELECT count(*) FROM events").fetchall()
        fill(ledger, 5, 105)
        everything(cache)
        assert reader.events_folded == 10

        # The daemon publishes 105 of 110: what was folded up to 110 goes on counting.
        publisher.publish()
        handle.execute("COMMIT")
        assert publisher.writer.header.position.as_of == 105
        foreign(ledger)
        assert everything(cache) == replayed(ledger)
        assert reader.events_folded == 11

        # It reaches the tip, and then leaves it behind: nothing is left on top of the base.
        publisher.publish()
        assert publisher.writer.header.position.as_of == 111
        foreign(ledger)
        assert everything(cache) == replayed(ledger)
        assert reader.events_folded == 12
        fill(ledger, 20, 112)
        publisher.publish()
        with connect(ledger) as other:
            assert cache.recent() == other.recent()
        assert everything(cache) == replayed(ledger)
        assert reader.events_folded == 12
        assert reader.replays == 0


# What does not fit is replayed.


def test_another_ledger_behind_the_same_path_is_replayed(
    ledger: str, tmp_path: Path, publish: Callable[[str], Publisher]
) -> None:
    fill(ledger, 50)
    publish(ledger).close()
    other = str(tmp_path / "other.db")
    fill(other, 60, 7)
    os.replace(other, ledger)
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        assert cache.metrics().as_of == 60
        assert cache._reader.replays == 1
        foreign(ledger)
        assert everything(cache) == replayed(ledger)
        assert cache._reader.events_folded == 61


def test_another_fold_version_is_replayed(
    ledger: str, publish: Callable[[str], Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NewMetrics(MetricsFold):
        version = MetricsFold.version + 1

        def apply_batch(self, events: Sequence[Event], state: State) -> None:
            state["scores"] = [0.25, 0.5, 0, None, "", None, 0, 0]

    fill(ledger, 50)
    publish(ledger)
    monkeypatch.setattr(registry, "BUILT_IN", tuple(NewMetrics if f is MetricsFold else f for f in registry.BUILT_IN))
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        assert cache.metrics().ias == pytest.approx(0.25, abs=0.02)
        # The others stand on what is published.
        assert list(cache._reader._read_models["published"].folds) == [
            "self_model",
            "stage",
            "directives",
            "recent",
            "history",
        ]
        assert cache._reader.replays == 1


def test_a_fold_that_the_daemon_no_longer_keeps_is_not_published_with_a_newer_position(
    ledger: str, publish: Callable[[str], Publisher]
) -> None:
    """As a worker of the older version meets it, or of a fold that was taken away, until the rebuild has flipped."""
    fill(ledger, 50)
    publisher = publish(ledger)
    kept = [fold for fold in all_folds() if fold.name != "metrics"]
    follower = Follower(ledger, publisher.writer, kept, Status(ledger))
    try:
        foreign(ledger, "commitment_close", "")
        follower.step()
    finally:
        follower.close()
    assert publisher.writer.header.position.as_of == 51
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)


def test_another_parameter_is_replayed(
    ledger: str, publish: Callable[[str], Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger, 50)
    publish(ledger)
    monkeypatch.setattr(MetricsFold, "parameters", {"other": 1})
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        assert list(cache._reader._read_models) == ["published", "first"]


def test_a_void_snapshot_counts_for_nothing(ledger: str, publish: Callable[[str], Publisher]) -> None:
    fill(ledger, 50)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        everything(cache)
        ledgers.execute(ledger, "UPDATE events SET meta = ? WHERE id = 1", '{"trait": "o", "delta": 0.3}')
        publisher.writer.void()
        assert everything(cache) == replayed(ledger)
        assert cache._reader.replays == 1
        with pytest.raises(errors.SnapshotUnavailableError):
            cache.metrics(consistency="snapshot")


# Views.


@pytest.mark.parametrize("is_published", [False, True])
def test_a_view_is_rebuilt_only_when_its_own_state_changed(
    ledger: str, is_published: bool, publish: Callable[[str], Publisher]
) -> None:
    fill(ledger, 64)
    publisher = publish(ledger) if is_published else None
    with connect(ledger) as cache:
        # Small views are made anew.
        names = ("self_model", "directives", "recent", "history")
        before = {name: cache.fold(name) for name in names}
        for kind, changed in (("user", {"recent"}), ("autonomy_directive", {"directives"}), ("nobody_s", set())):
            for publish_now in (False, is_published):
                foreign(ledger, kind, f"{kind} {publish_now}")
                if publish_now:
                    assert publisher is not None
                    publisher.publish()
                views = {name: cache.fold(name) for name in names}
                assert {name for name in names if views[name] is not before[name]} == changed
                before = views
        assert everything(cache) == replayed(ledger)


# Lineage.


def test_a_lineage_is_data_file_environment_and_generations(ledger: str, publish: Callable[[str], Publisher]) -> None:
    fill(ledger, 8)
    writer = publish(ledger).writer
    folds = registry.built_in_folds()[:2]
    header = writer.header
    with writer.environment.read() as transaction:

        def lineage(identity: tuple[int, int], changed: Any) -> Any:
            return Snapshot(transaction, changed, identity).lineage(folds)

        version, parameters, generation = header.folds["metrics"]
        rebuilt = {**header.folds, "metrics": (version, parameters, generation + 1)}
        lineages = {
            lineage((1, 1), header),
            lineage((1, 2), header),
            lineage((2, 1), header),
            lineage((1, 1), header._replace(uuid=b"another uuid ...")),
            lineage((1, 1), header._replace(folds=rebuilt)),
        }
        assert len(lineages) == 5
        assert lineage((1, 1), header) == lineage((1, 1), header._replace(sequence=header.sequence + 1))


@pytest.mark.parametrize("consistency", ["exact", "snapshot"])
def test_a_rebuilt_generation_drops_what_was_made_of_the_old_one(
    ledger: str, consistency: Any, publish: Callable[[str], Publisher]
) -> None:
    """The position, its anchor and the environment are those of before; only the generation tells."""
    fill(ledger, 64)
    publisher = publish(ledger)
    with connect(ledger, consistency=consistency) as cache:
        assert everything(cache) == replayed(ledger)
        ledgers.execute(ledger, "UPDATE events SET meta = ? WHERE id = 1", '{"trait": "o", "delta": 0.3}')
        position = publisher.writer.header.position
        publisher.rebuild()
        assert publisher.writer.header.position == position
        assert everything(cache) == replayed(ledger)


@pytest.mark.parametrize("consistency", ["exact", "snapshot"])
def test_an_environment_made_anew_drops_what_was_made_of_the_old_one(
    ledger: str, consistency: Any, publish: Callable[[str], Publisher]
) -> None:
    """The same generations, sequence and transaction ids at the same position: only file and UUID tell."""
    fill(ledger, 64)
    publisher = publish(ledger)
    with connect(ledger, consistency=consistency) as cache:
        assert everything(cache) == replayed(ledger)
        before = publisher.writer.header, publisher.writer.last_transaction_id()
        publisher.close()
        ledgers.execute(ledger, "UPDATE events SET meta = ? WHERE id = 1", '{"trait": "o", "delta": 0.3}')
        for name in ("data.mdb", "lock.mdb"):
            os.unlink(Instance.of(ledger).directory / name)
        writer = publish(ledger).writer
        assert (writer.header._replace(uuid=before[0].uuid), writer.last_transaction_id()) == before
        # As after `limits.TRUST_PERIOD_S`: exact reads do not look at the path each time.
        cache._reader.snapshots.locator.trusted_until = 0.0
        assert everything(cache) == replayed(ledger)


def test_damage_is_no_state_that_nobody_has_published(ledger: str, publish: Callable[[str], Publisher]) -> None:
    fill(ledger, 64)
    publish(ledger).close()
    data = Instance.of(ledger).directory / "data.mdb"
    with data.open("r+b") as file:
        # All but the two meta pages.
        file.seek(2 * 4096)
        file.write(bytes(data.stat().st_size - file.tell()))
    with connect(ledger) as cache:
        for _ in range(2):
            report = cache.verify()
            assert (report.ok, report.folds) == (False, ())
            assert str(report.difference).startswith(f"what is published is damaged: {data.parent}: ")
            assert everything(cache) == replayed(ledger)
        data.unlink()
        assert cache.verify() == (True, 0, (), 64, 0, None)


# Frames and folds of one's own.


class EventCount(Fold):
    """How many events there are."""

    name = "event_count"
    version = 1

    def apply(self, event: Event, state: State) -> None:
        state["count"] = state.get("count", 0) + 1

    def view(self, state: State) -> int:
        return int(state.get("count", 0))


class _EntryPoint:
    name = "event_count"
    value = "tests:EventCount"

    def load(self) -> type[Fold]:
        return EventCount


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Registers `EventCount`; the list grows with each look-up of entry points."""
    found: list[str] = []

    def entry_points(*, group: str) -> list[_EntryPoint]:
        found.append(group)
        return [_EntryPoint()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return found


def test_a_frame_is_of_one_position_while_others_append(
    ledger: str, publish: Callable[[str], Publisher], look_ups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unregistered:
        unregistered.setattr(importlib.metadata, "entry_points", lambda *, group: [])
        fill(ledger, 64)
        publish(ledger)
    with connect(ledger) as cache:
        assert cache.fold("event_count") == 64
        after_each_tail(monkeypatch, at_most(8, lambda: foreign(ledger)))
        foreign(ledger)  # With nothing new, no tail is read.
        for _ in range(3):
            frame = cache.frame()
            assert frame.fold("event_count") == frame.as_of
            assert frame.recent().messages[-1].id == frame.as_of
            positions = {getattr(frame, name)().as_of for name in ("identity", "commitments", "metrics", "stage")}
            assert positions == {frame.as_of}


def test_a_frame_is_built_when_it_is_made(ledger: str, publish: Callable[[str], Publisher]) -> None:
    fill(ledger, 64)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        expected = replayed(ledger)
        frame = cache.frame()
        fill(ledger, 64, 64)
        publisher.publish()
        publisher.rebuild()
        everything(cache)
    assert everything(frame) == expected
    with pytest.raises(AttributeError):
        frame.as_of = 3


def test_a_fold_that_only_the_client_has_is_folded_alone(
    ledger: str, publish: Callable[[str], Publisher], look_ups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unregistered:
        unregistered.setattr(importlib.metadata, "entry_points", lambda *, group: [])
        fill(ledger, 200)
        publish(ledger)
    with connect(ledger) as cache:
        everything(cache)
        view = cache.fold("self_model")
        assert cache._reader.events_folded == 0
        assert cache.fold("event_count") == 200
        assert cache._reader.events_folded == 200
        foreign(ledger)
        assert cache.fold("event_count") == 201
        assert cache.metrics().as_of == 201
        assert cache._reader.events_folded == 202
        assert cache._reader.replays == 1
        assert cache.fold("self_model") is view
        assert everything(cache) == replayed(ledger)


def test_entry_points_are_looked_up_only_when_asked(ledger: str, look_ups: list[str]) -> None:
    fill(ledger, 8)
    with connect(ledger) as cache:
        everything(cache)
        everything(cache.frame())
        cache.verify()
        cache.stats()
        cache.fold("metrics")
        assert look_ups == []
        assert cache.fold("event_count") == 8
        assert look_ups == [registry.GROUP]
        cache.fold("event_count"), cache.frame(), everything(cache)
        assert look_ups == [registry.GROUP]
        with pytest.raises(errors.UnknownFoldError):
            cache.fold("nobody_s")


# Fork and threads.


def test_threads_read_and_append_through_one_cache(ledger: str, publish: Callable[[str], Publisher]) -> None:
    fill(ledger, 64)
    publisher = publish(ledger)
    failures: list[BaseException] = []
    with connect(ledger) as cache:

        def work(number: int) -> None:
            try:
                for turn in range(60):
                    appended = cache.append("user", f"{number}")
                    assert getattr(cache, READS[(turn + number) % 5])().as_of >= appended
                    frame = cache.frame()
                    assert frame.as_of >= appended
                    assert frame.recent().messages[-1].id == frame.as_of
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            publisher.publish()
        for thread in threads:
            thread.join()
        assert failures == []
        assert everything(cache) == replayed(ledger)


# Replacement, and the descriptor of the `-shm` file.


@pytest.mark.parametrize("freshness", MARKS)
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_replacement_is_noticed_within_one_second(ledger: str, tmp_path: Path, freshness: Any, journal: str) -> None:
    other = str(tmp_path / "other.db")
    fill(ledger, 30)
    fill(other, 20, 3)
    for path in (ledger, other):
        ledgers.execute(path, f"PRAGMA journal_mode = {journal}")
    with connect(ledger, freshness=freshness) as cache:
        everything(cache)
        expected = replayed(other)
        os.replace(other, ledger)
        until(lambda: cache.metrics().as_of == 20, deadline_s=limits.REPLACEMENT_NOTICED_S)
        assert everything(cache) == expected == replayed(ledger)


def test_an_append_notices_a_replacement_at_once(ledger: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.db")
    fill(ledger, 30)
    fill(other, 20, 3)
    with connect(ledger) as cache:
        assert cache.append("user", "old") == 31
        assert cache.metrics().as_of == 31
        ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)")
        os.replace(other, ledger)
        assert cache.append("user", "new") == 21
        assert ledgers.execute(ledger, "SELECT max(id) FROM events") == [(21,)]
        assert cache.metrics().as_of == 21
        assert everything(cache) == replayed(ledger)


def test_a_memo_is_swapped_whole_and_hits_are_counted(ledger: str) -> None:
    fill(ledger, 8)
    with connect(ledger) as cache:
        first = cache.metrics()
        memo = cache._memos["metrics"]
        with pytest.raises(AttributeError):
            memo.value = None  # type: ignore[misc]
        assert all(cache.metrics() is first for _ in range(10))
        assert cache.stats()["metrics"]["cache_hits"] == 10
        foreign(ledger)
        assert cache.metrics() is not first
        assert cache._memos["metrics"] is not memo
        assert memo.value is first


def test_a_snapshot_is_not_memoised_as_an_exact_answer(ledger: str, publish: Callable[[str], Publisher]) -> None:
    fill(ledger, 8)
    publish(ledger)
    with connect(ledger) as cache:
        foreign(ledger)
        assert cache.metrics(consistency="snapshot").as_of == 8
        assert cache.metrics().as_of == 9
        assert cache.metrics(consistency="snapshot").as_of == 8
        assert cache.metrics().as_of == 9


def test_the_store_is_left_alone_by_reads(ledger: str, publish: Callable[[str], Publisher]) -> None:
    """Clients never write LMDB: a missing instance directory is not made, and no transaction is added."""
    fill(ledger, 8)
    with connect(ledger) as cache:
        everything(cache)
        assert not Instance.of(ledger).directory.exists()
    writer = publish(ledger).writer
    before = writer.last_transaction_id()
    with connect(ledger) as cache:
        foreign(ledger)
        everything(cache)
        assert writer.readers() == []
    assert writer.last_transaction_id() == before


def test_a_copied_instance_directory_is_not_taken_for_ones_own(
    ledger: str, tmp_path: Path, publish: Callable[[str], Publisher]
) -> None:
    """Another ledger beside a copy of the first one's snapshot: the anchor is not found."""
    fill(ledger, 64)
    publish(ledger).close()
    other = str(tmp_path / "other.db")
    fill(other, 80, 9)
    shutil.copytree(Instance.of(ledger).directory, Instance.of(other).directory)
    with connect(other) as cache:
        assert everything(cache) == replayed(other)
        assert cache._reader.replays == 1


@pytest.mark.parametrize("unseen", [1, 3, 40])
@pytest.mark.parametrize("unpublished", [0, 1, 3, 40])
def test_a_tip_behind_what_is_published_which_is_behind_the_head(
    ledger: str, publish: Callable[[str], Publisher], unseen: int, unpublished: int
) -> None:
    """The cache stands before the snapshot, the snapshot before the log; few rows between them, or many."""
    fill(ledger, 10)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        fill(ledger, unseen, 10)
        publisher.publish()
        fill(ledger, unpublished, 10 + unseen)
        assert everything(cache) == replayed(ledger)
        assert cache.metrics().as_of == 10 + unseen + unpublished
