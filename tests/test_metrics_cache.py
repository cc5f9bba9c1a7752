"""The metrics cache: IAS, GAS and the stage, exact to the last bit.

The oracle is the specification, written down a second time and naively: each reading from the first event.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmm_shm.errors import ConfigError
from pmm_shm.folds.state import State
from pmm_shm.ledger import rows
from pmm_shm_client import Cache, EventLog, connect, get_or_compute_ias_gas
from tests.conftest import StartDaemon
from tests.support import answers, daemons, ledgers

FLAG = "PMM_USE_METRICS_CACHE"
TICK = ("autonomy_tick", "", {})
Event = tuple[str, str, dict[str, Any]]


@pytest.fixture
def cache(ledger: str) -> Iterator[Cache]:
    with connect(ledger) as cache:
        yield cache


def stats(cache: Cache) -> dict[str, Any]:
    return cache.stats()["metrics"]  # type: ignore[no-any-return]


def telemetry(ias: Any, gas: Any) -> dict[str, Any]:
    return {"telemetry": {"IAS": ias, "GAS": gas}}


def bits(pair: tuple[float, float]) -> bytes:
    """Equal for floats that are the same to the last bit."""
    return struct.pack("<2d", *pair)


def scores(cache: Any) -> tuple[float, float]:
    metrics = cache.metrics()
    return metrics.ias, metrics.gas


def reference(events: list[Event]) -> tuple[float, float]:
    """IAS and GAS as the specification has them, from JSON values that `float` accepts."""
    ias = gas = 0.0
    tick = 0
    last_tick = confident = name_before = None
    opened: dict[str, int] = {}
    violations = set()
    for kind, content, meta in events:
        text = content.strip().lower()
        if kind == "identity_adopt":
            name = str(meta.get("sanitized") or meta.get("name") or content or "").strip()
            if name and float(meta.get("confidence", 0.0)) >= 0.9:
                confident = tick
            if last_tick is not None:
                if name_before and name and tick - last_tick <= 5 and name_before.lower() != name.lower():
                    ias -= 0.08
                if tick - last_tick >= 5:
                    ias += float((tick - last_tick) // 5) * 0.03
            last_tick, name_before = tick, name
        elif kind == "commitment_open" and text:
            if text not in opened or tick - opened[text] > 20:
                gas += 0.07 * (1.0 + (0.5 - 0.5) * 0.2)
            opened[text] = tick
        elif kind == "commitment_close":
            gas += 0.12 * (1.0 + (0.5 - 0.5) * 0.3)
        elif kind == "reflection" and text:
            if ("identity" in text and len(text) > 20) or "my name" in text:
                ias += 0.01
        elif kind == "invariant_violation":
            key = (meta.get("code"), (meta.get("details") or {}).get("commitment_id"))
            if key not in violations:
                ias -= 0.005
                gas -= 0.005
            violations.add(key)
        elif kind == "autonomy_tick":
            tick += 1
            ias *= 0.9995
            gas *= 0.9995
            if confident is not None and tick > confident and (tick - confident) % 5 == 0:
                ias += 0.03
    read_gas = gas + (ias - 0.5) * 0.1
    read_ias = ias + (gas - 0.5) * 0.05
    return (max(0.0, min(read_ias, 1.0)), max(0.0, min(read_gas, 1.0))) if events else (0.0, 0.0)


# IAS and GAS.


def test_an_empty_ledger_reads_zero(ledger: str, cache: Cache) -> None:
    metrics, stage = cache.metrics(), cache.stage()
    assert (metrics.ias, metrics.gas, metrics.as_of) == (0.0, 0.0, 0)
    assert (stage.stage, stage.as_of) == ("S0", 0)
    assert stage.snapshot == {"IAS_mean": 0.0, "GAS_mean": 0.0, "count": 0, "window": 10}
    with EventLog(ledger) as log:
        assert get_or_compute_ias_gas(log) == (0.0, 0.0)


KINDS = st.one_of(
    st.just(TICK),
    st.just(TICK),
    st.tuples(
        st.just("identity_adopt"),
        st.sampled_from(["Ada", " ada ", "Eve", ""]),
        st.sampled_from([{}, {"confidence": 0.95}, {"confidence": "0.9"}, {"name": "Bo"}, {"sanitized": " Cy"}]),
    ),
    st.tuples(st.just("commitment_open"), st.sampled_from(["write", " Write ", "read", ""]), st.just({"cid": "a"})),
    st.tuples(st.just("commitment_close"), st.just(""), st.just({"cid": "a"})),
    st.tuples(
        st.just("reflection"),
        st.sampled_from(["my identity is growing", "identity", "My Name is Ada", "nothing", ""]),
        st.just({}),
    ),
    st.tuples(
        st.just("invariant_violation"),
        st.just(""),
        st.sampled_from([{"code": "x", "details": {"commitment_id": "1"}}, {"code": "y"}]),
    ),
    st.tuples(st.just("user"), st.just("hello"), st.just({})),
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(KINDS, min_size=1, max_size=40), min_size=1, max_size=4))
def test_scores_equal_the_specification_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Event]]
) -> None:
    path = str(tmp_path_factory.mktemp("property") / "ledger.db")
    events: list[Event] = []
    with EventLog(path) as log, connect(path) as cache:
        for batch in batches:
            log.append_many(batch)
            events += batch
            assert bits(scores(cache)) == bits(reference(events))
        assert bits(get_or_compute_ias_gas(log)) == bits(reference(events))


@pytest.mark.parametrize("name", ["case-1-002", "case-1-confidence", "case-1-novelty", "case-1-stages"])
def test_scores_equal_the_golden_ones_through_daemon_and_catch_up(
    ledger: str, start_daemon: StartDaemon, name: str
) -> None:
    pairs = list(answers.steps(answers.golden_case(name)))
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        for number, (events, expected) in enumerate(pairs):
            if number == len(pairs) // 2:
                daemon.freeze()
            answers.insert(ledger, events)
            assert bits(scores(cache)) == bits((expected["ias"], expected["gas"]))
            assert (cache.stage().stage, dict(cache.stage().snapshot)) == (
                expected["stage"],
                expected["stage_snapshot"],
            )


def test_one_event_more_costs_one_event(ledger: str, cache: Cache) -> None:
    with EventLog(ledger) as log:
        log.append_many([TICK, ("commitment_open", "x", {"cid": "a"})] * 500)
        cache.metrics()
        before = stats(cache)
        log.append_many([TICK])
        cache.metrics()
    assert stats(cache)["events_processed"] == before["events_processed"] + 1


def test_a_commitment_is_novel_again_after_twenty_ticks(cache: Cache) -> None:
    gains = []
    for ticks in (0, 20, 21):
        for _ in range(ticks):
            cache.append(*TICK)
        before = scores(cache)[1]
        cache.append("commitment_open", "  Write Tests ", {"cid": "a", "text": "x"})
        gains.append(scores(cache)[1] > before)
    assert gains == [True, False, True]


def test_a_violation_counts_once_per_key(cache: Cache) -> None:
    for _ in range(10):
        cache.append("commitment_close", "", {})
    steps = []
    for meta in ({"code": "x"}, {"code": "x", "details": "no object"}, {"code": "x", "details": {"commitment_id": 1}}):
        before = scores(cache)
        cache.append("invariant_violation", "", meta)
        steps.append(scores(cache) != before)
    assert steps == [True, False, True]


def test_scores_are_clamped_when_read_and_not_in_the_state(cache: Cache) -> None:
    events: list[Event] = [("commitment_close", "", {})] * 40
    for event in events:
        cache.append(*event)
    assert scores(cache)[1] == 1.0
    later: list[Event] = [TICK] * 2000
    with EventLog(cache.path) as log:
        log.append_many(later)
    assert bits(scores(cache)) == bits(reference(events + later))


@pytest.mark.parametrize("confidence", ["NaN", "1e999", None, [], {"x": 1}, True, 10**400])
def test_hostile_confidences_neither_raise_nor_tell_daemon_and_replay_apart(
    ledger: str, cache: Cache, confidence: Any
) -> None:
    cache.append("identity_adopt", "Ada", {"confidence": confidence})
    for _ in range(11):
        cache.append(*TICK)
    assert all(math.isfinite(score) for score in scores(cache))
    assert answers.everything(cache) == answers.replayed(ledger)


# Stage.


def stage_of(pairs: list[tuple[float, float]]) -> tuple[float, float, int]:
    ias = gas = 0.0
    for pair in pairs:
        ias, gas = ias + pair[0], gas + pair[1]
    return ias / float(len(pairs)), gas / float(len(pairs)), len(pairs)


def test_the_stage_window_holds_ten_ticks_filled_up_from_the_newest_reflections(cache: Cache) -> None:
    ticks: list[tuple[float, float]] = []
    reflections: list[tuple[float, float]] = []
    for number in range(36):
        pair = (number * 0.017, 0.9 - number * 0.013)
        if number % 3:
            cache.append("reflection", "", telemetry(*pair))
            reflections.append(pair)
        else:
            cache.append("autonomy_tick", "", telemetry(*pair))
            ticks.append(pair)
        window = ticks[-10:]
        window += reflections[len(window) - 10 :] if len(window) < 10 else []
        ias, gas, count = stage_of(window)
        expected = {"IAS_mean": ias, "GAS_mean": gas, "count": count, "window": 10}
        assert dict(cache.stage().snapshot) == expected


@pytest.mark.parametrize(
    ("pair", "stage"),
    [
        ((0.85, 0.75), "S4"),
        ((1.0, 1.0), "S4"),
        ((0.85, 0.74), "S0"),
        ((0.70, 0.55), "S3"),
        ((0.8499999, 0.7499999), "S3"),
        ((0.5, 0.35), "S2"),
        ((0.35, 0.2), "S1"),
        ((0.349, 0.2), "S0"),
        ((0.6, 0.3), "S0"),
        (("0.9", "0.8"), "S4"),
    ],
)
def test_stages_follow_the_means(cache: Cache, pair: tuple[Any, Any], stage: str) -> None:
    cache.append("autonomy_tick", "", telemetry(*pair))
    assert (cache.stage().stage, cache.stage().snapshot["count"], cache.stage().as_of) == (stage, 1, 1)


@pytest.mark.parametrize("bad", [None, [], {}, {"IAS": 1}, {"IAS": "x", "GAS": 1}, {"IAS": None, "GAS": 1}, "text"])
def test_unusable_telemetry_is_left_out(cache: Cache, bad: Any) -> None:
    cache.append("autonomy_tick", "", telemetry(0.5, 0.4))
    cache.append("autonomy_tick", "", {"telemetry": bad})
    assert dict(cache.stage().snapshot) == {"IAS_mean": 0.5, "GAS_mean": 0.4, "count": 1, "window": 10}


# Hits, misses, numbers.


def test_a_repeated_read_is_a_hit_and_an_append_a_miss(cache: Cache) -> None:
    event_id = cache.append("commitment_close", "", {})
    first = cache.metrics()
    assert cache.metrics() is first
    counted = stats(cache)
    assert (counted["cache_hits"], counted["cache_misses"], counted["recomputations"]) == (1, 1, 1)
    assert (counted["ias"], counted["gas"], counted["last_id"]) == (first.ias, first.gas, event_id)
    assert counted["hit_rate"] == 0.5
    cache.append(*TICK)
    assert cache.metrics().as_of == event_id + 1
    assert (stats(cache)["cache_misses"], stats(cache)["recomputations"]) == (2, 2)


def test_an_event_of_no_interest_is_a_miss_without_a_recomputation(cache: Cache) -> None:
    cache.append("commitment_close", "", {})
    before = cache.metrics()
    cache.append("debug", "", {})
    after = cache.metrics()
    assert (after.ias, after.gas, after.as_of) == (before.ias, before.gas, 2)
    assert stats(cache)["recomputations"] == 1


def test_metrics_and_projection_are_counted_apart(cache: Cache) -> None:
    fresh = stats(cache)
    assert fresh == {
        "cache_hits": 0,
        "cache_misses": 0,
        "hit_rate": 0.0,
        "caught_up": 0,
        "replayed": 0,
        "recomputations": 0,
        "events_processed": 0,
        "last_id": 0,
        "ias": 0.0,
        "gas": 0.0,
    }
    for _ in range(3):
        cache.metrics(), cache.stage()
    numbers = cache.stats()
    assert (numbers["metrics"]["cache_hits"], numbers["metrics"]["cache_misses"]) == (4, 2)
    assert (numbers["projection"]["cache_hits"], numbers["projection"]["cache_misses"]) == (0, 0)


def test_caches_and_processes_see_each_others_appends(ledger: str, cache: Cache) -> None:
    events: list[Event] = []
    code = (
        "import sys\n"
        "from pmm_shm_client import connect\n"
        "with connect(sys.argv[1]) as cache:\n"
        "    event_id, metrics = cache.append('commitment_close', '', {}), cache.metrics()\n"
        "    print(event_id, metrics.ias.hex(), metrics.gas.hex())\n"
    )
    with connect(ledger) as other:
        for _ in range(2):
            for writer in (cache, other):
                events.append(("commitment_open", f"text {len(events)}", {}))
                writer.append(*events[-1])
                assert bits(scores(cache)) == bits(scores(other)) == bits(reference(events))
            events.append(("commitment_close", "", {}))
            done = daemons.run_python(code, ledger)
            assert done.stderr == ""
            event_id, ias, gas = done.stdout.split()
            assert bits(scores(cache)) == bits((float.fromhex(ias), float.fromhex(gas))) == bits(reference(events))
            assert cache.metrics().as_of == other.stage().as_of == int(event_id) == len(events)


# Flags.


@pytest.mark.parametrize("flag", [None, "true", "false", "On", "0"])
def test_every_state_of_the_flag_gives_the_same_scores(
    ledger: str, monkeypatch: pytest.MonkeyPatch, flag: str | None
) -> None:
    if flag is not None:
        monkeypatch.setenv(FLAG, flag)
    events: list[Event] = []
    with EventLog(ledger) as log, connect(ledger) as cache:
        for event in [("commitment_open", "x", {}), TICK, ("identity_adopt", "Ada", {"confidence": 1}), *[TICK] * 6]:
            log.append(*event)
            events.append(event)
            expected = bits(reference(events))
            assert bits(get_or_compute_ias_gas(log)) == expected
            assert bits(scores(cache)) == bits(scores(cache.frame())) == expected


@pytest.mark.parametrize(("flag", "replays"), [(None, True), ("false", True), ("true", False)])
def test_the_drop_in_replays_unless_the_flag_is_on(
    ledger: str, monkeypatch: pytest.MonkeyPatch, flag: str | None, replays: bool
) -> None:
    from pmm_shm.folds.metrics import MetricsFold

    if flag is not None:
        monkeypatch.setenv(FLAG, flag)
    with EventLog(ledger) as log:
        log.append_many([TICK] * 30)
        get_or_compute_ias_gas(log)
        log.append(*TICK)
        folded = []
        apply = MetricsFold.apply_batch

        def watched(self: MetricsFold, events: Sequence[rows.Event], state: State) -> None:
            folded.extend(event.id for event in events)
            apply(self, events, state)

        monkeypatch.setattr(MetricsFold, "apply_batch", watched)
        get_or_compute_ias_gas(log)
        get_or_compute_ias_gas(log)
    assert folded == ([*range(1, 32)] * 2 if replays else [31])


def test_off_means_that_connect_replays_metrics_and_keeps_the_projection_cached(
    ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FLAG, "false")
    with connect(ledger) as cache:
        cache.append("commitment_close", "", {})
        for _ in range(3):
            assert bits(scores(cache)) == bits(reference([("commitment_close", "", {})]))
            cache.identity()
        assert stats(cache)["cache_hits"] == 0
        assert cache.stats()["projection"]["cache_hits"] > 0


def test_another_value_of_the_flag_is_an_error_that_names_it(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLAG, "perhaps")
    with pytest.raises(ConfigError, match=f"{FLAG}: expected true or false, got 'perhaps'"):
        connect(ledger)
    with EventLog(ledger) as log, pytest.raises(ConfigError, match=FLAG):
        get_or_compute_ias_gas(log)


def test_a_ledger_with_gaps_and_without_hashes_is_scored_too(tmp_path: Any) -> None:
    path = ledgers.build(tmp_path / "old.db", 0, hash_columns=False, journal="delete")
    for event_id in (5, 100, 10**15):
        ledgers.execute(
            path,
            "INSERT INTO events (id, ts, kind, content, meta) VALUES (?, '', 'commitment_close', '', '')",
            event_id,
        )
    with connect(path) as cache:
        assert bits(scores(cache)) == bits(reference([("commitment_close", "", {})] * 3))
        assert cache.metrics().as_of == 10**15
