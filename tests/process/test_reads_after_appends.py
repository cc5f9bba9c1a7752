"""What makes a read after an append cheap gives what a fresh look would give."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm import limits
from pmm_shm.codec import pack, unpack
from pmm_shm.errors import SnapshotUnavailableError, StoreError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.restore import restore
from pmm_shm.ledger.rows import InvalidText
from pmm_shm.ledger.tail import START, Position, Tail, TailReader, position_of
from pmm_shm.store.environment import close, open_reader
from pmm_shm.store.layout import Header, HeaderDecoder
from pmm_shm.store.snapshot import Snapshot
from pmm_shm_client import EventLog, connect
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.profiles import examples
from tests.support.publishing import Publisher, fill, foreign

_TIMEOUT_S = 30.0


# Headers.


positions = st.one_of(
    st.just(START),
    st.builds(Position, st.integers(-(1 << 63), (1 << 63) - 1), st.binary(min_size=16, max_size=16)),
)
headers = st.builds(
    Header,
    uuid=st.sampled_from([b"a" * 16, b"b" * 16]),
    position=positions,
    sequence=st.integers(0, 1 << 40),
    folds=st.sampled_from([{}, {"one": (1, b"\x80", 1)}, {"one": (1, b"\x80", 2), "two": (3, b"\x80", 4)}]),
    is_void=st.booleans(),
    next_generation=st.sampled_from([1, 300]),
    head_mark=st.sampled_from([b"", b"m" * 64]),
)


def damaged(data: bytes, how: int) -> bytes:
    """What is no header of ours, or one with a field more."""
    record = unpack(data)
    if how == 0:
        return data
    if how == 1:
        return data[: len(data) // 2] + data[-4:]
    if how == 2:
        return pack({**record, "new field": 1})
    if how == 3:
        return pack({**record, "sequence": "many"})
    if how == 4:
        return pack({**record, "format": record["format"] + 1})
    if how == 5:
        return pack({**record, "anchor": None})
    return pack({**record, "sequence": -1})


def outcome(decode: Any, data: bytes) -> Any:
    try:
        return decode(data)
    except StoreError as error:
        return str(error)


@settings(max_examples=examples(300))
@given(st.lists(st.tuples(headers, st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6])), min_size=1, max_size=8))
def test_headers_that_come_one_after_another_are_decoded_as_each_alone(seen: list[tuple[Header, int]]) -> None:
    decoder = HeaderDecoder()
    decoded: list[Header] = []
    for header, how in seen:
        data = damaged(header.pack(), how)
        found = outcome(decoder.unpack, data)
        assert found == outcome(Header.unpack, data)
        if isinstance(found, Header):
            # Readers keep what they made of a header as long as its `folds` are the same object.
            for other in decoded:
                if other.folds is found.folds:
                    assert other.uuid == found.uuid
                    assert other.is_void == found.is_void
            decoded.append(found)


def test_a_header_of_the_same_lineage_is_not_decoded_again() -> None:
    decoder = HeaderDecoder()
    header = Header(b"u" * 16, Position(1, b"a" * 16), 1, {"one": (1, b"\x80", 1)}, False, 2)
    first = decoder.unpack(header.pack())
    moved = header._replace(position=Position(1 << 40, b"b" * 16), sequence=1 << 20)
    assert decoder.unpack(moved.pack()) == moved
    assert decoder.unpack(moved.pack()).folds is first.folds


# The groups of folds, and their bases.


@pytest.fixture
def publisher(ledger: str) -> Iterator[Publisher]:
    fill(ledger, 64)
    made = Publisher(ledger)
    yield made
    made.close()


def test_an_environment_with_the_same_header_in_another_file_is_another_lineage(
    ledger: str, publisher: Publisher
) -> None:
    with connect(ledger) as cache:
        before = cache.metrics(), cache._reader._read_models["published"].lineage
        publisher.close()
        data = Instance.of(ledger).data_file
        shutil.copyfile(data, f"{data}.copy")
        os.replace(f"{data}.copy", data)
        # As after `limits.TRUST_PERIOD_S`.
        cache._reader.snapshots.locator.trusted_until = 0.0
        foreign(ledger)
        assert cache.metrics().as_of == before[0].as_of + 1
        lineage = cache._reader._read_models["published"].lineage
        status = data.stat()
        assert lineage is not None
        assert lineage[0] == (status.st_dev, status.st_ino)
        assert lineage != before[1]
        assert everything(cache) == replayed(ledger)


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_an_environment_that_is_gone_is_exact_until_it_is_missed(
    ledger: str, publish: Callable[[str], Publisher], monkeypatch: pytest.MonkeyPatch, is_made_anew: bool
) -> None:
    """The path is not looked at for each read: meanwhile an older snapshot stands below a longer tail."""
    monkeypatch.setattr(limits, "TRUST_PERIOD_S", 60.0)
    fill(ledger, 64)
    publisher = publish(ledger)
    with connect(ledger) as cache:
        before, environment = cache.metrics().as_of, cache._reader.snapshots.locator.environment
        publisher.close()
        directory = Instance.of(ledger).directory
        directory.rename(directory.with_name("elsewhere"))
        foreign(ledger)
        if is_made_anew:
            publish(ledger)
        for number in range(1, 4):
            foreign(ledger)
            assert cache.metrics().as_of == before + 1 + number
            assert everything(cache) == replayed(ledger)
        assert cache._reader.snapshots.locator.environment is environment
        # What is published is looked for each time.
        if is_made_anew:
            assert cache.metrics(consistency="snapshot").as_of == before + 1
        else:
            with pytest.raises(SnapshotUnavailableError):
                cache.metrics(consistency="snapshot")
        assert cache._reader.snapshots.locator.environment is not environment
        foreign(ledger)
        assert cache.metrics().as_of == before + 5
        assert everything(cache) == replayed(ledger)


def test_a_small_view_is_made_anew_and_counted_where_it_is_another(
    ledger: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(ledger) as cache:
        metrics, stage = cache.metrics(), cache.stage()
        monkeypatch.setattr(Snapshot, "add_touched", lambda *_: pytest.fail("the lists of touched keys are not needed"))
        foreign(ledger, kind="note")
        publisher.publish()
        assert (cache.metrics()[:2], cache.stage()[:2]) == (metrics[:2], stage[:2])
        assert cache.stats()["metrics"]["recomputations"] == 2
        for kind, meta in (("commitment_open", "{}"), ("reflection", '{"IAS": 0.9, "GAS": 0.9}')):
            foreign(ledger, kind, "something that nobody has promised before", meta)
            publisher.publish()
        assert cache.metrics()[:2] != metrics[:2]
        assert cache.stats()["metrics"]["recomputations"] == 3
        monkeypatch.undo()
        assert everything(cache) == replayed(ledger)


def test_what_was_rejected_once_is_used_again_when_it_fits(ledger: str, publisher: Publisher) -> None:
    """The daemon comes to another position, and readers go back to what it publishes, and stay there."""
    with connect(ledger) as cache:
        cache.metrics()
        # For a while, the head is another row than that which is published.
        content = ledgers.execute(ledger, "SELECT content FROM events WHERE id = 64")[0][0]
        ledgers.execute(ledger, "UPDATE events SET content = 'edited' WHERE id = 64")
        assert everything(cache) == replayed(ledger)
        assert list(cache._reader._read_models) == ["first"]
        ledgers.execute(ledger, "UPDATE events SET content = ? WHERE id = 64", content)
        for _ in range(3):
            foreign(ledger)
            publisher.publish()
            assert everything(cache) == replayed(ledger)
            assert list(cache._reader._read_models) == ["published"]


def test_no_state_is_read_between_two_reads(ledger: str, publisher: Publisher) -> None:
    with connect(ledger) as cache:
        cache.metrics()
        read_model = cache._reader._read_models["published"]
        for name in read_model.folds:
            with pytest.raises(AssertionError, match="outside its transaction"):
                read_model.state(name).get("a cell that nobody has read")
            with pytest.raises(AssertionError, match="outside its transaction"):
                list(read_model.state(name).table("a table").items())


def test_a_fold_that_nobody_has_read_for_many_commits_has_them_all(
    ledger: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOUCHED_KEYS_MAX", 8)
    with connect(ledger) as cache:
        assert cache.recent().as_of == 64
        for number in range(30):
            foreign(ledger, content=f"message {number}")
            publisher.publish()
            cache.metrics()
        assert cache.recent().messages[-1].content == "message 29"
        assert everything(cache) == replayed(ledger)


# The few rows behind a position.


def test_few_rows_are_those_of_a_careful_look(ledger: str) -> None:
    fill(ledger, 40)
    foreign(ledger, content="by hand")
    ledgers.execute(ledger, "UPDATE events SET content = CAST(x'ff' AS TEXT) WHERE id = 38")
    connection = Connection(ledger, "ro")
    reader, careful = TailReader(connection, None), TailReader(connection, None, whole_rows=True)
    with connection.lock:
        rows = careful.read(START).rows
        for position in [START, *map(position_of, rows)]:
            tail, whole = reader.read(position, limits.TAIL_FEW_ROWS), careful.read(position, limits.TAIL_FEW_ROWS)
            assert tail[1:] == whole[1:]
            assert [row[:5] for row in tail.rows] == [row[:5] for row in whole.rows]
            assert tail.rows == whole.rows or not tail.is_complete or position is START
            assert tail.is_anchored
            assert tail.is_complete == (tail.position == position_of(rows[-1]))
        assert InvalidText(b"\xff") in {row[3] for row in reader.read(position_of(rows[35])).rows}
        first = position_of(rows[0])
        assert not reader.read(first._replace(anchor=b"\0" * 16)).is_anchored
        assert not reader.read(first._replace(event_id=1_000)).is_anchored
        cut = careful.read(first, until_id=rows[4][0])
        assert (cut.rows, cut.position, cut.is_complete) == (rows[1:5], position_of(rows[4]), True)
        assert careful.read(first, until_id=rows[0][0] - 1) == Tail([], first, True, True)
    connection.close()


# The published position as the head of the log.


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[Position]:
    """The positions behind which the tail was read."""
    seen: list[Position] = []
    read = TailReader.read

    def counted(self: TailReader, after: Position, *arguments: Any, **options: Any) -> Any:
        seen.append(after)
        return read(self, after, *arguments, **options)

    monkeypatch.setattr(TailReader, "read", counted)
    return seen


def followed(cache: Any, ledger: str, publisher: Publisher) -> None:
    """A cache that has seen the daemon publish often enough to trust its marks."""
    for _ in range(3):
        foreign(ledger)
        publisher.publish()
        cache.metrics()


def test_a_read_of_what_is_published_with_the_same_mark_makes_no_statement(
    ledger: str, publisher: Publisher, statements: list[Position]
) -> None:
    with connect(ledger) as cache:
        followed(cache, ledger, publisher)
        for number in range(20):
            foreign(ledger, "commitment_open", meta=json.dumps({"cid": f"new {number}", "text": "x"}))
            publisher.publish()
            statements.clear()
            assert cache.metrics().as_of == 68 + number
            assert list(cache.commitments().open)[-1] == f"new {number}"
            assert statements == []
        assert everything(cache) == replayed(ledger)
        # Not published yet: a statement, and again where the overlay is passed.
        foreign(ledger)
        assert cache.metrics().as_of == 88
        assert len(statements) > 0
        publisher.publish()
        statements.clear()
        foreign(ledger)
        assert cache.metrics().as_of == 89
        assert len(statements) > 0
        assert everything(cache) == replayed(ledger)


def test_the_first_marks_of_an_epoch_prove_nothing(
    ledger: str, publisher: Publisher, statements: list[Position]
) -> None:
    with connect(ledger) as cache:
        for _ in range(2):
            needed = []
            for _ in range(4):
                foreign(ledger)
                publisher.publish()
                statements.clear()
                cache.metrics()
                needed.append(len(statements) > 0)
            assert needed == [True, True, False, False]
            cache._reader.connection.close()


def test_any_commit_since_the_mark_is_looked_at(ledger: str, publisher: Publisher, statements: list[Position]) -> None:
    with connect(ledger) as cache:
        followed(cache, ledger, publisher)
        foreign(ledger, "identity_adopt", "Echo", '{"name": "Echo", "confidence": 0.9}')
        publisher.publish()
        # The anchor itself is edited: the daemon has folded another row.
        ledgers.execute(ledger, "UPDATE events SET content = 'Nova', meta = '{}' WHERE id = 68")
        statements.clear()
        assert cache.identity().name == "Nova"
        assert len(statements) > 0
        assert everything(cache) == replayed(ledger)


def test_an_event_that_the_daemon_has_not_seen_is_not_behind_its_mark(
    ledger: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(ledger) as cache:
        followed(cache, ledger, publisher)
        # One that is committed right after the daemon has read the tail.
        foreign(ledger)
        with monkeypatch.context() as patches:
            read = TailReader.read

            def commit_behind(self: TailReader, *arguments: Any, **options: Any) -> Any:
                tail = read(self, *arguments, **options)
                foreign(ledger)
                return tail

            patches.setattr(TailReader, "read", commit_behind)
            assert publisher.follower.step().is_complete
        assert publisher.writer.header.position.as_of == 68
        assert cache.metrics().as_of == 69
        followed(cache, ledger, publisher)
        # Those behind the first of several batches.
        for _ in range(40):
            foreign(ledger)
        for name, value in (("TAIL_ROWS_MAX", 4), ("TAIL_FEW_ROWS", 1), ("FOLD_EVENTS_PER_COMMIT", 1)):
            monkeypatch.setattr(limits, name, value)
        assert not publisher.follower.step().is_complete
        assert publisher.writer.header.position.as_of < 112
        assert cache.metrics().as_of == 112
        assert everything(cache) == replayed(ledger)


def test_an_overlay_of_another_history_is_found_under_the_mark(ledger: str, publisher: Publisher) -> None:
    with connect(ledger) as cache:
        followed(cache, ledger, publisher)
        foreign(ledger, "identity_adopt", "Echo", '{"name": "Echo", "confidence": 0.9}')
        assert cache.identity().name == "Echo"
        # The event that only this process has folded becomes another one, before the daemon sees it.
        ledgers.execute(ledger, "UPDATE events SET kind = 'user' WHERE id = 68")
        foreign(ledger)
        publisher.publish()
        assert cache.identity() == (None, cache.identity().traits, 69)
        assert everything(cache) == replayed(ledger)


def test_a_restore_between_the_mark_and_the_tail_is_read_from_its_first_event(
    ledger: str, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its mark, the published state is that of the head, but the overlay that it passed is looked for."""
    backup = ledgers.build(tmp_path / "backup.db", 0)
    fill(backup, 24)
    with connect(ledger) as cache:
        followed(cache, ledger, publisher)
        foreign(ledger)
        assert cache.metrics().as_of == 68
        foreign(ledger)
        publisher.publish()
        look = TailReader.read_holding

        def restore_first(self: TailReader, *arguments: Any) -> Any:
            monkeypatch.undo()
            restore(backup, ledger, keep=False)
            return look(self, *arguments)

        monkeypatch.setattr(TailReader, "read_holding", restore_first)
        assert cache.frame().as_of == 24
        assert everything(cache) == replayed(ledger)


def test_a_state_that_was_found_wrong_is_replayed_though_it_stands_at_the_head(
    ledger: str, publisher: Publisher
) -> None:
    with connect(ledger) as cache:
        followed(cache, ledger, publisher)
        ledgers.execute(ledger, "UPDATE events SET content = 'edited' WHERE kind = 'user' AND id < 60")
        foreign(ledger)
        publisher.publish()
        assert cache.metrics().as_of == 68
        assert not cache.verify().ok
        assert everything(cache) == replayed(ledger)
        cache._reader.begin_anew()
        assert everything(cache) == replayed(ledger)


def test_a_mark_of_an_empty_wal_or_of_another_file_proves_nothing(
    ledger: str, publisher: Publisher, statements: list[Position], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(ledger) as cache:
        followed(cache, ledger, publisher)
        foreign(ledger)
        ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)")
        publisher.publish()
        assert publisher.writer.header.head_mark == b""
        statements.clear()
        assert cache.metrics().as_of == 68
        assert len(statements) > 0
        foreign(ledger)
        publisher.publish()
        mark = publisher.writer.header.head_mark
        assert len(mark) == 64
        monkeypatch.setattr(cache._freshness, "_file", bytes(16))
        statements.clear()
        assert cache.metrics().as_of == 69
        assert len(statements) > 0


def test_without_the_mapped_mark_the_tail_is_always_read(
    ledger: str, publisher: Publisher, statements: list[Position]
) -> None:
    with connect(ledger, freshness="data_version") as cache:
        followed(cache, ledger, publisher)
        foreign(ledger)
        publisher.publish()
        statements.clear()
        assert cache.metrics().as_of == 68
        assert len(statements) > 0


# Transactions.


def test_a_map_is_resized_when_the_last_transaction_has_ended(ledger: str, publisher: Publisher) -> None:
    publisher.close()
    environment = open_reader(Instance.of(ledger).directory)
    assert environment is not None
    waited = threading.Event()

    def resize() -> None:
        environment.resize()
        waited.set()

    first, second = environment.begin(), environment.begin()
    thread = threading.Thread(target=resize, daemon=True)
    thread.start()
    environment.end(first)
    assert not waited.wait(0.1)
    environment.end(second)
    assert waited.wait(_TIMEOUT_S)
    thread.join()
    with environment.read() as records:
        assert records.get(b"h") is not None
    close(environment)


def test_a_read_whose_end_was_not_counted_keeps_no_map_from_growing(
    ledger: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_LOST_S", 0.05)
    publisher.close()
    environment = open_reader(Instance.of(ledger).directory)
    assert environment is not None
    # As after an exception between the two steps of its end, out of a signal handler.
    environment.begin().abort()
    kept = environment.begin()
    thread = threading.Thread(target=environment.resize, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    environment.end(kept)
    thread.join(_TIMEOUT_S)
    assert not thread.is_alive()
    with environment.read() as records:
        assert records.get(b"h") is not None
    close(environment)


def test_a_transaction_ends_whatever_comes_in_its_middle(ledger: str, publisher: Publisher) -> None:
    with connect(ledger) as cache:
        for error in (KeyboardInterrupt, StoreError("x"), TimeoutError):

            def fail(_: object, error: Any = error) -> NoReturn:
                raise error

            with contextlib.suppress(KeyboardInterrupt, StoreError, TimeoutError):
                cache._reader.with_snapshot(fail)
        environment = cache._reader.snapshots.locator.environment
        assert environment is not None
        assert environment._reads == 0
        with EventLog(ledger) as log:
            log.append("user", "x")
        assert everything(cache) == replayed(ledger)
