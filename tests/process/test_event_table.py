"""The tables of event vectors: whatever is put, replaced, removed and merged, a reader sees what a dict would hold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pmm_shm import limits
from pmm_shm.errors import InvalidVectorError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.tail import START, Position
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.event_table import BLOCK_PREFIX, TAIL_PREFIX, EventTableView, block_key, table_key, table_records
from pmm_shm.vectors.event_table_writer import EventTableWriter, VectorRows
from pmm_shm.vectors.nearest import nearest
from tests.support.nearest import check
from tests.support.profiles import examples

DIMENSION = 3
Row = tuple[int, tuple[float, ...]]


def rows_of(rows: dict[int, Row]) -> VectorRows:
    return VectorRows(
        np.array(list(rows), np.int64),
        np.array([source for source, _ in rows.values()], np.uint8),
        np.array([vector for _, vector in rows.values()], np.float32).reshape(-1, DIMENSION),
    )


def store(directory: str) -> StoreWriter:
    instance = Instance.of(Path(directory) / "ledger.db")
    instance.directory.mkdir(exist_ok=True)
    return StoreWriter(instance)


ids = st.integers(0, 60)
vectors = st.tuples(*[st.integers(-2, 2).map(float)] * DIMENSION)
some_rows = st.dictionaries(ids, st.tuples(st.integers(1, 3), vectors), max_size=25)


class Table(RuleBasedStateMachine):
    """One table against a dict; small blocks, so that everything is sealed and merged many times."""

    @initialize()
    def open(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._store = store(self._folder.name)
        self._table = EventTableWriter(self._store, "model", DIMENSION, block_bytes=16 * 4 * DIMENSION)
        self._model: dict[int, Row] = {}
        self._position = START

    def teardown(self) -> None:
        if hasattr(self, "_store"):
            self._store.close()
            self._folder.cleanup()

    @rule(rows=some_rows, removed=st.sets(ids, max_size=20), moves=st.booleans())
    def apply(self, rows: dict[int, Row], removed: set[int], moves: bool) -> None:
        if moves:
            self._position = Position(self._position.as_of + 1, b"anchor")
        self._table.apply(
            rows_of(rows), np.array(sorted(removed), np.int64), self._position if moves else None, ("user",)
        )
        for event_id in removed:
            self._model.pop(event_id, None)
        self._model.update(rows)

    @rule()
    def clear(self) -> None:
        self._table.clear()
        self._model.clear()
        self._position = START

    @rule()
    def restart(self) -> None:
        self._store.close()
        self._store = store(self._folder.name)
        self._table = EventTableWriter(self._store, "model", DIMENSION, block_bytes=16 * 4 * DIMENSION)

    @rule(wanted=st.sets(st.integers(-2, 62)))
    def look_up(self, wanted: set[int]) -> None:
        chosen = np.array(sorted(wanted), np.int64)
        expected = {event_id: self._model[event_id] for event_id in sorted(wanted) if event_id in self._model}
        assert self._table.sources_of(chosen).tolist() == [
            self._model[event_id][0] if event_id in self._model else 0 for event_id in chosen.tolist()
        ]
        found = self._table.rows_of(chosen)
        assert found.ids.tolist() == list(expected)
        assert found.sources.tolist() == [source for source, _ in expected.values()]
        assert [tuple(row) for row in found.vectors.tolist()] == [vector for _, vector in expected.values()]
        for source in (1, 2, 3):
            of_source = sorted(event_id for event_id, row in self._model.items() if row[0] == source)
            assert self._table.ids_of(source).tolist() == of_source

    @rule(query=vectors, k=st.integers(1, 70))
    def search(self, query: tuple[float, ...], k: int) -> None:
        ordered = sorted(self._model)
        matrix = np.array([self._model[event_id][1] for event_id in ordered], np.float32).reshape(-1, DIMENSION)
        with self._store.environment.read_mapped() as records:
            view = EventTableView(records, self._table.record)
            found = nearest([*view.blocks(), view.tail()], np.array(query), k)
        check(found, ordered, matrix, np.array(query), k)

    @invariant()
    def is_published(self) -> None:
        if not hasattr(self, "_table"):
            return
        with self._store.environment.read() as records:
            assert table_records(records) == [self._table.record]
        record = self._table.record
        assert record.rows == len(self._model)
        assert record.position == self._position
        assert record.tail <= limits.VECTOR_TAIL_ROWS
        # Nothing is left behind of blocks and rows that are gone.
        assert sum(1 for _ in self._keys(TAIL_PREFIX)) == record.tail
        assert {key[9:13] for key in self._keys(BLOCK_PREFIX)} == {
            block.number.to_bytes(4, "big") for block in record.blocks
        }
        assert all(block.dead * 4 <= block.rows for block in record.blocks)

    def _keys(self, prefix: bytes) -> Iterator[bytes]:
        with self._store.environment.read() as records, records.cursor() as cursor:
            if cursor.set_range(prefix):
                yield from (key for key, _ in cursor if key.startswith(prefix))


@pytest.mark.hypothesis
def test_a_table_is_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VECTOR_TAIL_ROWS", 3)
    monkeypatch.setattr("pmm_shm.vectors.event_table_writer._MERGE_BLOCKS", 3)
    run_state_machine_as_test(Table, settings=settings(max_examples=examples(60), stateful_step_count=30))  # type: ignore[no-untyped-call]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[StoreWriter]:
    made = store(str(tmp_path))
    yield made
    made.close()


def test_blocks_grow_so_that_there_are_few(writer: StoreWriter) -> None:
    table = EventTableWriter(writer, "model", DIMENSION)
    random = np.random.default_rng(1)
    for start in range(0, 70_000, 100):
        vectors = random.standard_normal((100, DIMENSION)).astype(np.float32)
        table.apply(VectorRows(np.arange(start, start + 100), np.ones(100, np.uint8), vectors))
    assert table.record.rows == 70_000
    assert len(table.record.blocks) <= 3 * 16


def test_models_lie_side_by_side(writer: StoreWriter) -> None:
    one, two = EventTableWriter(writer, "one", 2), EventTableWriter(writer, "two", 4)
    for table, dimension in ((one, 2), (two, 4)):
        vectors = np.full((300, dimension), dimension, np.float32)
        table.apply(VectorRows(np.arange(300), np.ones(300, np.uint8), vectors))
    one.clear()
    assert (one.record.rows, two.record.rows) == (0, 300)
    assert two.rows_of(np.array([299])).vectors.tolist() == [[4.0] * 4]
    with pytest.raises(InvalidVectorError, match="dimension 4"):
        EventTableWriter(writer, "two", 5)


def test_a_failed_commit_changes_nothing(writer: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    table = EventTableWriter(writer, "model", DIMENSION)
    rows = VectorRows(np.arange(300), np.ones(300, np.uint8), np.ones((300, DIMENSION), np.float32))
    table.apply(rows)
    before: Any = table.record

    def fails(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("pmm_shm.vectors.event_table_writer._Changes.finish", fails)
    with pytest.raises(RuntimeError):
        table.apply(rows.at(slice(0, 200)), np.array([250]))
    monkeypatch.undo()
    assert table.record == before
    assert table.ids_of(1).tolist() == list(range(300))


def test_no_commit_writes_more_than_one_block(writer: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a commit ends the follower can publish nothing."""
    transact, put = writer.transact, list[list[bytes]]()

    class Watched:
        def __init__(self, records: Any) -> None:
            self._records = records

        def put(self, key: bytes, value: Any) -> None:
            put[-1].append(bytes(key))
            self._records.put(key, value)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._records, name)

    def watched(name: str, write: Any) -> Any:
        put.append([])
        return transact(name, lambda records: write(Watched(records)))

    table = EventTableWriter(writer, "model", DIMENSION, block_bytes=1_024 * 4 * DIMENSION)
    monkeypatch.setattr(writer, "transact", watched)
    for start in range(0, 6_000, 600):
        table.apply(VectorRows(np.arange(start, start + 600), np.ones(600, np.uint8), np.ones((600, DIMENSION), "f4")))
    written = [{key[1:-1] for key in keys if key.startswith(b"e")} for keys in put]
    assert max(map(len, written)) == 1
    assert all(not (blocks and table_key("model") in keys) for keys, blocks in zip(put, written, strict=True))
    assert table.ids_of(1).tolist() == list(range(6_000))


def test_blocks_that_no_record_names_are_replaced(writer: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that dies between the commits of an apply leaves a block behind."""
    table = EventTableWriter(writer, "model", DIMENSION)
    ones = VectorRows(np.arange(300), np.ones(300, np.uint8), np.ones((300, DIMENSION), np.float32))
    transact = writer.transact

    def dies(name: str, write: Any) -> Any:
        if name == "event_vectors.apply":
            raise KeyboardInterrupt
        return transact(name, write)

    monkeypatch.setattr(writer, "transact", dies)
    with pytest.raises(KeyboardInterrupt):
        table.apply(ones)
    monkeypatch.undo()
    assert writer.environment.get(block_key(table.record.tag, 0, b"v")) is not None
    for again in (table, EventTableWriter(writer, "model", DIMENSION)):
        assert (again.record.rows, again.ids_of(1).tolist()) == (0, [])
    twos = VectorRows(np.arange(400, 800), np.full(400, 2, np.uint8), np.full((400, DIMENSION), 2.0, np.float32))
    table.apply(twos)
    assert (table.ids_of(1).tolist(), table.ids_of(2).tolist()) == ([], list(range(400, 800)))
    assert table.rows_of(np.array([400])).vectors.tolist() == [[2.0] * DIMENSION]


def test_a_merge_pauses_and_may_be_given_up(writer: StoreWriter) -> None:
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1
        if is_stopping:
            raise KeyboardInterrupt

    is_stopping = False
    table = EventTableWriter(writer, "model", DIMENSION, pause=pause)
    parts = [
        VectorRows(np.arange(start, start + 300), np.ones(300, np.uint8), np.ones((300, DIMENSION), np.float32))
        for start in range(0, 1_200, 300)
    ]
    for part in parts[:3]:
        table.apply(part)
    before, is_stopping = pauses, True
    with pytest.raises(KeyboardInterrupt):
        table.apply(parts[3])
    assert (table.record.rows, len(table.record.blocks)) == (900, 3)
    is_stopping = False
    table.apply(parts[3])
    assert (table.record.rows, len(table.record.blocks)) == (1_200, 1)
    # One for each dimension of the new block, at least: a large block takes milliseconds.
    assert pauses > before + 2 * DIMENSION
