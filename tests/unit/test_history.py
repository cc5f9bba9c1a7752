"""The history of the scores: against a naive recomputation, however it is reached, in bounded space."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm import limits
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.history import NOT_TEXT, HistoryFold, HistoryView, NameChange, Point, StageChange
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.self_model import SelfModelFold
from pmm_shm.folds.stage import StageFold
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import RawRow
from pmm_shm_client import connect
from tests.support.answers import golden_case, insert
from tests.support.profiles import examples

POINTS_MAX, CHANGES_MAX = 8, 4


def telemetry(score: float) -> str:
    return json.dumps({"telemetry": {"IAS": score, "GAS": score - 0.12}})


def adoption(name: Any, confidence: float = 0.95) -> str:
    return json.dumps({"name": name, "confidence": confidence})


EVENTS = st.one_of(
    st.sampled_from([0.3, 0.4, 0.6, 0.75, 0.9]).map(lambda score: ("autonomy_tick", "", telemetry(score))),
    st.sampled_from([0.4, 0.9]).map(lambda score: ("reflection", "my name matters", telemetry(score))),
    st.sampled_from(["Echo", "Nova", " Echo ", "", 7, ["x"], "long " * 30]).map(
        lambda name: ("identity_adopt", "", adoption(name))
    ),
    st.sampled_from(["Name changed to: Vale", "nothing", ""]).map(lambda text: ("identity_change", text, "{}")),
    st.sampled_from(
        [
            ("identity_change", "", '{"name": {"first": NaN}}'),
            ("identity_clear", "", "{}"),
            ("autonomy_tick", "", "{}"),
            ("commitment_open", "write", "{}"),
            ("commitment_open", "read", "{}"),
            ("commitment_close", "", "{}"),
            ("invariant_violation", "", '{"code": "a"}'),
            ("reflection", "", "[broken"),
            ("user", "hello", "{}"),
        ]
    ),
)
GAPS = st.lists(st.sampled_from([1, 1, 1, 2, 3, 50, 1 << 40]), min_size=1, max_size=5)
CUTS = st.lists(st.sampled_from(["view", "flush"]), min_size=1, max_size=9)
LOGS = st.lists(EVENTS, max_size=60)
Log = list[tuple[str, str, str]]


def rows_of(log: Log, gaps: list[int]) -> list[RawRow]:
    """With gaps between the ids, which begin below zero."""
    event_id, rows = -40, []
    for number, (kind, content, meta) in enumerate(log):
        event_id += gaps[number % len(gaps)]
        rows.append((event_id, "ts", kind, content, meta))
    return rows


def small_limits() -> Any:
    return mock.patch.multiple(limits, HISTORY_POINTS_MAX=POINTS_MAX, HISTORY_CHANGES_MAX=CHANGES_MAX)


def naive(rows: list[RawRow]) -> HistoryView:
    """From the answers of the other folds behind every event, with no bound on what is remembered."""
    folds = [MetricsFold(), StageFold(), SelfModelFold()]
    engine, states = Engine(folds), {fold.name: State() for fold in folds}
    samples: list[tuple[int, float, float, str]] = []
    stages, names = [StageChange(0, "S0")], [NameChange(0, None)]
    ias, gas = 0.0, 0.0
    for row in rows:
        engine.apply([row], states)
        scores, stage, model = (fold.view(states[fold.name]) for fold in folds)
        name = model.name[: limits.HISTORY_NAME_CHARS_MAX] if isinstance(model.name, str) else NOT_TEXT
        name = None if model.name is None else name
        if stage.stage != stages[-1].stage:
            stages.append(StageChange(row[0], stage.stage))
        if name != names[-1].name:
            names.append(NameChange(row[0], name))
        if (scores.ias, scores.gas) != (ias, gas):
            ias, gas = scores
            samples.append((row[0], ias, gas, stage.stage))
    stride = 1
    while len({sample[0] // stride for sample in samples}) > limits.HISTORY_POINTS_MAX:
        stride *= 2
    numbers = dict.fromkeys(sample[0] // stride for sample in samples)
    groups = [[sample for sample in samples if sample[0] // stride == number] for number in numbers]
    changes_max = limits.HISTORY_CHANGES_MAX
    return HistoryView(
        tuple(point_of(group) for group in groups),
        stride,
        tuple(stages[1:][-changes_max:]),
        len(stages) - 1,
        tuple(names[1:][-changes_max:]),
        len(names) - 1,
    )


def point_of(group: list[tuple[int, float, float, str]]) -> Point:
    ids, ias, gas, stages = zip(*group, strict=True)
    return Point(
        *(ids[0], ids[-1], len(group), stages[-1]),
        *(ias[0], ias[-1], min(ias), max(ias)),
        *(gas[0], gas[-1], min(gas), max(gas)),
    )


class Stored:
    """A base that holds what was flushed to it, as LMDB would."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}

    def get(self, key: bytes, /) -> bytes | None:
        return self.records.get(key)

    def scan(self, prefix: bytes, /) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key, value) for key, value in self.records.items() if key.startswith(prefix)])

    def flush(self, state: State) -> None:
        for key, value in list(state.changes()):
            if value is None:
                self.records.pop(key, None)
            else:
                self.records[key] = value
        state.drop_overlay()


@given(log=LOGS, gaps=GAPS, repeats=st.integers(1, 3))
@settings(max_examples=examples(150))
def test_a_replay_equals_the_naive_recomputation(log: Log, gaps: list[int], repeats: int) -> None:
    rows, fold = rows_of(log * repeats, gaps), HistoryFold()
    with small_limits():
        state = State()
        Engine([fold]).apply(rows, {fold.name: state})
        assert repr(fold.view(state)) == repr(naive(rows))


@given(log=LOGS, gaps=GAPS, repeats=st.integers(1, 3), cuts=CUTS)
@settings(max_examples=examples(150))
def test_flushed_and_patched_in_any_rhythm_it_is_the_same(
    log: Log, gaps: list[int], repeats: int, cuts: list[str]
) -> None:
    rows, fold = rows_of(log * repeats, gaps), HistoryFold()
    with small_limits():
        replay, stored = State(), Stored()
        state, engine = State(stored), Engine([fold])
        view = fold.view(state)
        for number, row in enumerate(rows):
            engine.apply([row], {fold.name: state})
            if cuts[number % len(cuts)] == "flush":
                stored.flush(state)
            elif number % 3 == 0:
                view = fold.patch(view, state, state.take_touched())
                assert view == fold.view(state)
        engine.apply(rows, {fold.name: replay})
        assert fold.patch(view, state, state.take_touched()) == fold.view(replay) == naive(rows)
        stored.flush(state)
        # What verification compares: the bytes, whatever the rhythm in which they were written.
        assert stored.records == {key: value for key, value in replay.changes() if value is not None}


@pytest.mark.parametrize("name", ["case-1-000", "case-1-029", "case-1-039", "case-1-stages"])
def test_golden_ledgers_end_where_the_metrics_stand(name: str, ledger: str) -> None:
    case = golden_case(name)
    insert(ledger, case["events"])
    with connect(ledger) as cache:
        history, metrics = cache.history(), cache.metrics()
        ends = [(point.ias_last, point.gas_last) for point in history.points]
        assert [(0.0, 0.0), *ends][-1] == (metrics.ias, metrics.gas)
        assert bool(ends) is (name in ("case-1-029", "case-1-039"))
        assert (history.stages[-1].stage if history.stages else "S0") == cache.stage().stage
        assert (history.names[-1].name if history.names else None) == cache.identity().name
        assert history.as_of == metrics.as_of
        assert cache.frame().history() == history


def test_an_empty_ledger_has_no_points(ledger: str) -> None:
    with connect(ledger) as cache:
        history = cache.history()
    assert (history.points, history.stride, history.stages, history.names, history.as_of) == ((), 1, (), (), 0)


def test_its_space_is_bounded() -> None:
    fold, state = HistoryFold(), State()
    engine = Engine([fold])
    sizes = []
    for start in range(0, 6_000, 1_000):
        # Ticks let the scores decay, closes raise them, and stage and name go to and fro.
        log = [
            ("autonomy_tick", "", telemetry(0.4 if number // 20 % 2 else 0.9))
            if number % 5
            else ("identity_change", f"name changed to: n{number}", "{}")
            if number % 200
            else ("commitment_close", "", "{}")
            for number in range(start, start + 1_000)
        ]
        engine.apply([(start + number, "", *row) for number, row in enumerate(log)], {"history": state})
        sizes.append(sum(len(key) + len(value) for key, value in state.changes() if value is not None))
    view = fold.view(state)
    assert limits.HISTORY_POINTS_MAX // 2 <= len(view.points) <= limits.HISTORY_POINTS_MAX
    assert view.stride > 1
    assert len(list(state.table("points").items())) == len(view.points) - 1
    for ring in ("stages", "names"):
        assert len(list(state.table(ring).items())) == limits.HISTORY_CHANGES_MAX
    assert len(view.stages) == len(view.names) == limits.HISTORY_CHANGES_MAX
    assert min(view.stage_count, view.name_count) > 4 * limits.HISTORY_CHANGES_MAX
    assert max(sizes) < 250_000
    # As many events again, and not more bytes.
    assert sizes[-1] < 1.3 * sizes[2]


def test_a_commit_writes_little(ledger: str) -> None:
    """One more sample does not write the other points."""
    fold, state, stored = HistoryFold(), State(), Stored()
    state.base = stored
    rows = [(number, "", "autonomy_tick" if number % 40 else "commitment_close", "", "{}") for number in range(700)]
    Engine([fold]).apply(rows, {"history": state})
    stored.flush(state)
    Engine([fold]).apply([(700, "", "autonomy_tick", "", "{}")], {"history": state})
    assert sum(len(key) + len(value or b"") for key, value in state.changes()) < 600
