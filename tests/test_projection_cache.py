"""The projection cache: self-model, identity, commitments, directives and recent events, as one process reads them.

The oracle is a full replay of the ledger, and the golden answers, which this project did not compute.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmm_shm.errors import ConfigError, ProjectionInvariantError
from pmm_shm_client import Cache, EventLog, build_self_model_cached, connect
from tests.conftest import StartDaemon
from tests.support import answers, daemons, ledgers

FLAG = "PMM_USE_PROJECTION_CACHE"
OPEN = ("commitment_open", "", {"cid": "c1", "text": "write tests"})
CLOSE = ("commitment_close", "", {"cid": "c1"})
EVIDENCE = ("evidence_candidate", "", {"cid": "c1", "evidence_type": "done"})


@pytest.fixture
def cache(ledger: str) -> Iterator[Cache]:
    with connect(ledger) as cache:
        yield cache


def projection(cache: Cache) -> dict[str, Any]:
    return cache.stats()["projection"]  # type: ignore[no-any-return]


# Hits and misses.


def test_an_empty_ledger_has_the_starting_state(cache: Cache) -> None:
    traits = dict.fromkeys(("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism"), 0.5)
    start = {"identity": {"name": None, "traits": traits}, "commitments": {"open": {}, "expired": {}}}
    assert cache.self_model() == cache.self_model(strict=True) == start
    assert list(cache.self_model()["identity"]["traits"]) == list(traits)
    assert cache.identity().as_of == cache.commitments().as_of == cache.recent().as_of == 0
    assert (cache.directives(), cache.active_directives()) == ([], [])
    assert (cache.recent().reflections, cache.recent().messages, cache.recent().telemetry) == ((), (), None)


@pytest.mark.parametrize("freshness", ["auto", "data_version"])
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_repeated_read_is_a_hit_and_folds_nothing(tmp_path: Path, journal: str, freshness: Any) -> None:
    path = ledgers.build(tmp_path / "ledger.db", journal=journal)
    with connect(path, freshness=freshness) as cache:
        first = cache.identity()
        before = projection(cache)
        assert all(cache.identity() is first for _ in range(5))
        after = projection(cache)
        assert (before["cache_hits"], before["cache_misses"]) == (0, 1)
        assert (after["cache_hits"], after["cache_misses"]) == (5, 1)
        assert after["events_processed"] == before["events_processed"]
        assert after["hit_rate"] == pytest.approx(5 / 6)


def test_an_append_makes_the_next_read_a_miss_that_folds_only_what_is_new(cache: Cache) -> None:
    for number in range(20):
        cache.append("identity_adopt", f"name {number}", {})
    assert cache.identity().name == "name 19"
    before = projection(cache)
    event_id = cache.append("identity_adopt", "Ada", {})
    assert (cache.identity().name, cache.identity().as_of) == ("Ada", event_id)
    after = projection(cache)
    assert after["cache_misses"] == before["cache_misses"] + 1
    assert after["cache_hits"] == before["cache_hits"] + 1
    assert after["events_processed"] == before["events_processed"] + 1
    assert after["last_id"] == event_id


def test_an_event_that_no_projection_needs_moves_as_of_alone(cache: Cache) -> None:
    cache.append("identity_adopt", "Ada", {})
    before = cache.identity()
    event_id = cache.append("debug", "nothing of interest", {"any": 1})
    after = cache.identity()
    assert (after.name, after.as_of) == (before.name, event_id)
    assert cache.commitments().as_of == cache.recent().as_of == event_id


def test_stats_begin_at_zero_and_rates_stay_between_0_and_1(cache: Cache) -> None:
    fresh = projection(cache)
    assert fresh == {
        "cache_hits": 0,
        "cache_misses": 0,
        "hit_rate": 0.0,
        "caught_up": 0,
        "replayed": 0,
        "events_processed": 0,
        "last_id": 0,
        "verifications_passed": 0,
        "verifications_failed": 0,
        "cached": False,
    }
    cache.append(*OPEN)
    cache.self_model()
    cache.self_model()
    used = projection(cache)
    assert used["cached"] is True
    assert 0.0 < used["hit_rate"] < 1.0
    assert cache.stats()["daemon"] is None


# Incremental equals full replay.

METAS: dict[str, list[Any]] = {
    "identity_change": [{"name": "Bo"}, {}, {"name": 7}],
    "identity_adopt": [{"name": " Cy ", "confidence": 0.95}, {}, {"name": ""}, {"name": ["x"]}, {"sanitized": "Di"}],
    "identity_clear": [{}],
    "trait_update": [
        {"trait": "Openness", "delta": 0.03},
        {"trait": "n", "delta": "-0.5"},
        {"delta": {"o": 0.1, "C": -0.04, "nothing": 1}},
        {"trait": "e", "delta": None},
    ],
    "commitment_open": [
        {"cid": "a", "text": "one \ud800", "big": 1 << 70},
        {"cid": 7, "text": "two", "deep": {"x": [1, {"y": None}]}},
        {"cid": "7", "text": 3},
        {"cid": "b"},
        {"cid": [1], "text": "no"},
    ],
    "evidence_candidate": [{"cid": "a"}, {"cid": 7, "evidence_type": " DONE "}, {"cid": "7", "evidence_type": "other"}],
    "commitment_close": [{"cid": "a"}, {"cid": 7}, {"cid": "7"}],
    "commitment_expire": [{"cid": "a", "reason": "late"}, {"cid": 7}, {"cid": "7", "reason": ""}],
    "commitment_snooze": [{"cid": "a", "until_tick": "12"}, {"cid": 7, "until_tick": 3.9}, {"cid": "7"}],
    "invariant_violation": [{"code": "x", "details": {"commitment_id": 1}}, {"details": "none"}],
    "autonomy_tick": [{}, {"telemetry": {"IAS": 0.4, "GAS": "0.3"}, "stage": "S1"}, {"telemetry": {"IAS": []}}],
    "reflection": [{}, {"telemetry": {"IAS": 0.9, "GAS": 0.8}}],
    "autonomy_directive": [{"source": "User ", "origin_eid": "4"}, {"origin_eid": None}, {}],
    "user": [{}],
    "response": [{}],
    "debug": [{}],
}
CONTENTS = ("", "Be  kind", "be brief\nalways", "My Name changed to: Eve", "my identity grows every single day", "é")
EVENTS = st.sampled_from(sorted(METAS)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.sampled_from(CONTENTS), st.sampled_from(METAS[kind]))
)
PROPERTY = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@PROPERTY
@given(batches=st.lists(st.lists(EVENTS, min_size=1, max_size=12), min_size=1, max_size=4))
def test_reads_between_appends_equal_a_full_replay(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Any]]
) -> None:
    path = str(tmp_path_factory.mktemp("property") / "ledger.db")
    with EventLog(path) as log, connect(path) as cache:
        for batch in batches:
            log.append_many(batch)
            found = answers.everything(cache)
            assert found == answers.replayed(path)
            assert found == answers.everything(cache.frame())


@pytest.mark.parametrize("name", ["case-1-010", "case-1-cids", "case-1-order", "case-1-raw-meta", "case-1-names"])
def test_reads_between_appends_equal_the_golden_answers(ledger: str, cache: Cache, name: str) -> None:
    for events, expected in answers.steps(answers.golden_case(name)):
        answers.insert(ledger, events)
        assert answers.canonical(answers.as_golden(cache)) == answers.canonical(expected)


@pytest.mark.parametrize("name", ["case-1-031", "case-1-directive-window", "case-1-order"])
def test_a_catch_up_beyond_the_daemon_equals_the_golden_answers(
    ledger: str, start_daemon: StartDaemon, name: str
) -> None:
    """A stopped daemon's snapshot is the base; what came later lies over it."""
    pairs = list(answers.steps(answers.golden_case(name)))
    half = len(pairs) // 2
    for events, _ in pairs[:half]:
        answers.insert(ledger, events)
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        assert answers.canonical(answers.as_golden(cache)) == answers.canonical(pairs[half - 1][1])
        published = projection(cache)["events_processed"]
        daemon.freeze()
        for events, expected in pairs[half:]:
            answers.insert(ledger, events)
            assert answers.canonical(answers.as_golden(cache)) == answers.canonical(expected)
        assert published == 0
        daemon.thaw()
        daemon.wait_published(pairs[-1][0][-1]["id"])
        assert answers.canonical(answers.as_golden(cache)) == answers.canonical(pairs[-1][1])


def test_the_order_of_commitments_survives_daemon_and_catch_up(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        for cid in ("b", "a", 7, "7"):
            cache.append("commitment_open", "", {"cid": cid, "text": str(cid)})
        daemon = start_daemon(ledger)
        assert list(cache.commitments().open) == ["b", "a", 7, "7"]
        daemon.freeze()
        cache.append("commitment_close", "", {"cid": "b"})
        cache.append("commitment_open", "", {"cid": "a", "text": "again"})
        cache.append("commitment_open", "", {"cid": "b", "text": "again"})
        assert list(cache.commitments().open) == ["a", 7, "7", "b"]
        daemon.thaw()
        cache.wait_for(7, 30.0)
        assert list(cache.commitments().open) == ["a", 7, "7", "b"]
        assert answers.everything(cache) == answers.replayed(ledger)


# Strict mode.


def test_strict_limits_each_delta_and_the_other_answer_does_not(cache: Cache) -> None:
    for delta in (0.2, -0.01, "0.04"):
        cache.append("trait_update", "", {"trait": "openness", "delta": delta})
    assert cache.self_model()["identity"]["traits"]["openness"] == 0.5 + 0.2 - 0.01 + 0.04
    assert cache.self_model(strict=True)["identity"]["traits"]["openness"] == 0.5 + 0.05 - 0.01 + 0.04
    assert (
        cache.self_model(strict=True, max_trait_delta=0.1)["identity"]["traits"]["openness"] == 0.5 + 0.1 - 0.01 + 0.04
    )
    assert cache.self_model(max_trait_delta=0.1) == cache.self_model()


@pytest.mark.parametrize("limit", [0.05, 0.1])
def test_strict_reports_the_first_close_without_evidence_before_the_identity(cache: Cache, limit: float) -> None:
    for event in (OPEN, EVIDENCE, CLOSE, ("commitment_open", "", {"cid": 7, "text": "x"})):
        cache.append(*event)
    assert cache.self_model(strict=True, max_trait_delta=limit)["commitments"]["open"] == {7: {"cid": 7, "text": "x"}}
    event_id = cache.append("commitment_close", "", {"cid": 7})
    cache.append("identity_adopt", "Ada", {})
    cache.append("identity_adopt", " ", {})
    for _ in range(2):
        with pytest.raises(ProjectionInvariantError, match="without prior evidence") as caught:
            cache.self_model(strict=True, max_trait_delta=limit)
        error = caught.value
        assert (error.violation, error.cid, error.event_id) == ("close_without_evidence", 7, event_id)
    assert cache.self_model()["identity"]["name"] is None


def test_strict_ends_an_identity_violation_with_the_next_adoption(cache: Cache) -> None:
    cache.append("identity_adopt", "Ada", {})
    cache.append("identity_adopt", "  ", {})
    with pytest.raises(ProjectionInvariantError) as caught:
        cache.self_model(strict=True)
    assert (caught.value.violation, caught.value.cid, caught.value.event_id) == ("identity", None, None)
    cache.append("identity_clear", "", {})
    assert cache.self_model(strict=True)["identity"]["name"] is None
    cache.append("identity_adopt", "Eve", {})
    assert cache.self_model(strict=True)["identity"]["name"] == "Eve"


# Warnings.


def unproven(cache: Cache, cid: str | int) -> int:
    cache.append("commitment_open", "", {"cid": cid, "text": "x"})
    return cache.append("commitment_close", "", {"cid": cid})


def test_on_warn_gets_each_close_without_evidence_once_per_cache(ledger: str, cache: Cache) -> None:
    seen: list[dict[str, Any]] = []
    first, second = unproven(cache, "a"), unproven(cache, 7)
    cache.self_model(on_warn=seen.append)
    cache.self_model(on_warn=seen.append)
    cache.frame().self_model(on_warn=seen.append)
    assert [one["meta"] for one in seen] == [
        {"cid": "a", "eid": first, "reason": "close_without_evidence"},
        {"cid": 7, "eid": second, "reason": "close_without_evidence"},
    ]
    assert all(one["kind"] == "projection_warn" and isinstance(one["content"], str) for one in seen)
    third = unproven(cache, "c")
    cache.frame().self_model(on_warn=seen.append)
    cache.self_model(on_warn=seen.append)
    assert [one["meta"]["eid"] for one in seen] == [first, second, third]
    with connect(ledger) as other:
        again: list[dict[str, Any]] = []
        other.self_model(on_warn=again.append)
        assert again == seen


def test_on_warn_is_not_told_of_closes_with_evidence_or_of_what_was_not_open(cache: Cache) -> None:
    seen: list[dict[str, Any]] = []
    for event in (OPEN, EVIDENCE, CLOSE, CLOSE, ("commitment_close", "", {"cid": "never"})):
        cache.append(*event)
    cache.self_model(on_warn=seen.append)
    assert seen == []


def test_an_exception_in_on_warn_never_reaches_the_reader(cache: Cache) -> None:
    unproven(cache, "a")

    def fail(_: dict[str, Any]) -> None:
        raise RuntimeError("the host's own problem")

    assert cache.self_model(on_warn=fail)["commitments"] == {"open": {}, "expired": {}}


def test_on_warn_reports_beyond_a_daemon_and_before_a_strict_read_raises(
    ledger: str, start_daemon: StartDaemon
) -> None:
    with connect(ledger) as cache:
        first = unproven(cache, "a")
        daemon = start_daemon(ledger)
        seen: list[dict[str, Any]] = []
        with pytest.raises(ProjectionInvariantError):
            cache.self_model(strict=True, on_warn=seen.append)
        daemon.freeze()
        second = unproven(cache, "b")
        cache.self_model(on_warn=seen.append)
        assert [one["meta"]["eid"] for one in seen] == [first, second]


# What is returned.


def test_returned_dicts_are_fresh(cache: Cache) -> None:
    cache.append("commitment_open", "", {"cid": "a", "text": "x", "deep": {"list": [1, {"k": []}]}})
    cache.append("autonomy_directive", "be kind", {"source": "user"})
    before = (cache.self_model(), cache.directives(), cache.active_directives())
    kept = copy.deepcopy(before)
    model, rows, active = cache.self_model(), cache.directives(), cache.active_directives()
    model["identity"]["traits"]["openness"] = 9.0
    model["commitments"]["open"]["a"]["deep"]["list"][1]["k"].append("mutated")
    model["commitments"]["open"]["b"] = {}
    del model["identity"]["name"]
    rows[0]["sources"].append("mutated")
    rows[0]["content"] = active[0]["content"] = "mutated"
    active[0]["sources"].clear()
    rows.clear()
    assert (cache.self_model(), cache.directives(), cache.active_directives()) == kept == before
    frame = cache.frame()
    frame.self_model()["commitments"]["open"]["a"]["deep"]["list"].clear()
    frame.directives()[0]["sources"].clear()
    assert (frame.self_model(), frame.directives(), frame.active_directives()) == kept


WRITES: list[Callable[[Any], Any]] = [
    lambda frame: frame.identity().traits.__setitem__("openness", 1.0),
    lambda frame: frame.commitments().open.__setitem__("b", {}),
    lambda frame: frame.commitments().open["a"].__setitem__("text", "y"),
    lambda frame: frame.commitments().open["a"].update(text="y"),
    lambda frame: frame.commitments().open["a"].__ior__({"text": "y"}),
    lambda frame: frame.commitments().open["a"]["deep"]["list"].append(2),
    lambda frame: frame.commitments().open["a"]["deep"]["list"][1].clear(),
    lambda frame: frame.commitments().open["a"]["deep"]["list"].sort(),
    lambda frame: frame.commitments().expired["e"].pop("text"),
    lambda frame: frame.stage().snapshot.__setitem__("count", 3),
    lambda frame: frame.recent().telemetry.ias.append(1),
    lambda frame: setattr(frame.identity(), "name", "Eve"),
    lambda frame: setattr(frame.metrics(), "ias", 1.0),
    lambda frame: setattr(frame.recent().messages[0], "content", "y"),
    lambda frame: setattr(frame.fold("self_model"), "name", "Eve"),
    lambda frame: frame.fold("self_model").strict_traits.__setitem__("openness", 1.0),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("of", ["cache", "frame"])
def test_views_are_immutable_all_the_way_down(ledger: str, cache: Cache, write: Callable[[Any], Any], of: str) -> None:
    cache.append("commitment_open", "", {"cid": "a", "text": "x", "deep": {"list": [1, {"k": 2}]}})
    cache.append("commitment_open", "", {"cid": "e", "text": "x"})
    cache.append("commitment_expire", "", {"cid": "e"})
    cache.append("user", "hello", {})
    cache.append("autonomy_tick", "", {"telemetry": {"IAS": [0.1], "GAS": 0.2}, "stage": "S0"})
    frame = cache.frame()
    with pytest.raises((TypeError, AttributeError)):
        write(cache if of == "cache" else frame)
    assert answers.everything(cache) == answers.everything(frame) == answers.replayed(ledger)


def test_a_view_keeps_its_content_when_the_log_goes_on(cache: Cache) -> None:
    cache.append(*OPEN)
    before = cache.commitments()
    frame = cache.frame()
    cache.append(*CLOSE)
    assert (list(before.open), before.as_of) == (["c1"], 1)
    assert list(frame.commitments().open) == ["c1"]
    assert not cache.commitments().open


# Recent, directives.


def test_recent_keeps_the_newest_32_reflections_and_64_messages(ledger: str, start_daemon: StartDaemon) -> None:
    kinds = ("user", "response", "user_message", "assistant_message")
    with EventLog(ledger) as log, connect(ledger) as cache:
        for number in range(70):
            log.append_many([("reflection", f"r{number}", {}), (kinds[number % 4], f"m{number}", {})])
        alone = cache.recent()
        assert [entry.content for entry in alone.reflections] == [f"r{n}" for n in range(38, 70)]
        assert [entry.content for entry in alone.messages] == [f"m{n}" for n in range(6, 70)]
        assert {entry.kind for entry in alone.messages} == set(kinds)
        daemon = start_daemon(ledger)
        assert cache.recent() == alone
        daemon.freeze()
        log.append_many([("user", "newest", {}), ("reflection", "newest", {})])
        assert [entry.content for entry in cache.recent().messages] == [f"m{n}" for n in range(7, 70)] + ["newest"]
        assert [entry.content for entry in cache.recent().reflections] == [f"r{n}" for n in range(39, 70)] + ["newest"]


def test_directives_count_and_rank(cache: Cache) -> None:
    for number in range(10):
        for _ in range(number + 1):
            cache.append("autonomy_directive", f"  rule   {number}\n", {"source": " USER " if number % 2 else None})
    rows, active = cache.directives(), cache.active_directives()
    assert [row["content"] for row in rows] == [f"rule {number}" for number in range(10)]
    assert [row["seen_count"] for row in rows] == list(range(1, 11))
    assert [row["sources"] for row in rows[:2]] == [[], ["user"]]
    assert [row["content"] for row in active] == [f"rule {number}" for number in range(9, 2, -1)]
    assert [row["score"] for row in active] == [3.0 * row["seen_count"] for row in active]


# Verification.


def test_verifications_are_counted_as_passed(ledger: str, cache: Cache, start_daemon: StartDaemon) -> None:
    cache.append(*OPEN)
    assert cache.verify()
    daemon = start_daemon(ledger)
    report = cache.verify()
    assert (report.ok, report.as_of, report.difference) == (True, 1, None)
    assert {"self_model", "metrics", "stage", "directives", "recent"} <= set(report.folds)
    assert cache.verify("self_model").folds == ("self_model",)
    daemon.stop()
    assert cache.verify().as_of == 1
    assert (projection(cache)["verifications_passed"], projection(cache)["verifications_failed"]) == (4, 0)


def test_an_edit_of_a_folded_row_fails_the_verification_and_is_mended(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        cache.append("identity_adopt", "Ada", {})
        cache.append("debug", "", {})
        daemon = start_daemon(ledger, "--verify-every", "0")
        ledgers.execute(ledger, "UPDATE events SET content = 'Eve' WHERE id = 1")
        # An edit of a past row is not followed: it is noticed by the verification.
        assert cache.identity().name == "Ada"
        report = cache.verify()
        assert not report
        assert "self_model" in str(report.difference)
        assert (projection(cache)["verifications_passed"], projection(cache)["verifications_failed"]) == (0, 1)
        daemons.until(lambda: daemon.stats()["rebuilds"] >= 2, "the rebuild after the failed verification")
        daemons.until(lambda: cache.identity().name == "Eve", "a memo of the wrong state goes")
        assert daemon.stats()["verifications_failed"] == 1
        assert cache.verify()


def test_an_edit_is_found_without_a_daemon_too(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        cache.append("identity_adopt", "Ada", {})
        cache.append("debug", "", {})
        start_daemon(ledger).stop()
        ledgers.execute(ledger, "UPDATE events SET content = 'Eve' WHERE id = 1")
        assert not cache.verify()
        assert projection(cache)["verifications_failed"] == 1


# Several caches.


def test_caches_see_each_others_appends(ledger: str) -> None:
    with connect(ledger) as one, connect(ledger) as other, EventLog(ledger) as log:
        for number, append in enumerate((one.append, other.append, log.append) * 3, 1):
            event_id = append("identity_adopt", f"name {number}", {})
            for reader in (one, other):
                assert (reader.identity().name, reader.identity().as_of) == (f"name {number}", event_id)


def test_processes_see_each_others_appends(ledger: str, cache: Cache) -> None:
    child = ledgers.python(
        "from pmm_shm_client import connect\n"
        "with connect(sys.argv[1]) as cache:\n"
        "    for line in sys.stdin:\n"
        "        name = cache.identity().name\n"
        "        print(name, cache.append('identity_adopt', line.strip(), {}), flush=True)\n",
        ledger,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        for number in range(10):
            cache.append("identity_adopt", f"parent-{number}", {})
            child.stdin.write(f"child-{number}\n")
            child.stdin.flush()
            name, event_id = child.stdout.readline().split()
            assert name == f"parent-{number}"
            assert (cache.identity().name, cache.identity().as_of) == (f"child-{number}", int(event_id))
    finally:
        child.communicate(timeout=30)


# Flags.


@pytest.mark.parametrize("flag", [None, "true", "1", "YES", "on", "false", "0", "No", "off", "", "  "])
def test_every_state_of_the_flag_gives_the_same_answers(
    ledger: str, monkeypatch: pytest.MonkeyPatch, flag: str | None
) -> None:
    if flag is not None:
        monkeypatch.setenv(FLAG, flag)
    with EventLog(ledger) as log, connect(ledger) as cache:
        for event in (OPEN, CLOSE, ("trait_update", "", {"trait": "o", "delta": 0.2})):
            log.append(*event)
            assert build_self_model_cached(log) == cache.self_model()
            assert answers.everything(cache) == answers.everything(cache.frame()) == answers.replayed(ledger)
        with pytest.raises(ProjectionInvariantError):
            build_self_model_cached(log, strict=True)
        with pytest.raises(ProjectionInvariantError):
            cache.self_model(strict=True)


def folded_by_the_drop_in(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many rows a second call of the drop-in function folds, after one append to a ledger of 50."""
    from pmm_shm.folds.engine import Engine

    log.append_many([("identity_adopt", str(number), {}) for number in range(50)])
    build_self_model_cached(log)
    log.append("identity_adopt", "last", {})
    folded = 0
    queue = Engine.queue

    def counted(self: Engine, rows: Any, *others: Any) -> int:
        nonlocal folded
        folded += len(rows)
        return queue(self, rows, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "queue", counted)
        assert build_self_model_cached(log)["identity"]["name"] == "last"
    return folded


@pytest.mark.parametrize(("flag", "expected"), [(None, 51), ("false", 51), ("true", 1)])
def test_the_drop_in_replays_unless_the_flag_is_on(
    ledger: str, monkeypatch: pytest.MonkeyPatch, flag: str | None, expected: int
) -> None:
    if flag is not None:
        monkeypatch.setenv(FLAG, flag)
    with EventLog(ledger) as log:
        assert folded_by_the_drop_in(log, monkeypatch) == expected


def test_the_drop_in_warns_at_each_replay_and_once_with_the_cache(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with EventLog(ledger) as log:
        log.append_many([OPEN, CLOSE])
        for flag, expected in (("false", 2), ("true", 1)):
            monkeypatch.setenv(FLAG, flag)
            seen: list[dict[str, Any]] = []
            for _ in range(2):
                build_self_model_cached(log, on_warn=seen.append)
            assert [one["meta"]["eid"] for one in seen] == [2] * expected


def test_the_drop_ins_cache_survives_the_closing_of_its_log(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLAG, "true")
    log = EventLog(ledger)
    for number in range(3):
        log.append("identity_adopt", f"name {number}", {})
        assert build_self_model_cached(log)["identity"]["name"] == f"name {number}"
        log.close()


def test_off_means_that_connect_replays(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLAG, "false")
    with connect(ledger) as cache:
        cache.append("identity_adopt", "Ada", {})
        assert [cache.identity().name for _ in range(3)] == ["Ada"] * 3
        assert projection(cache)["cache_hits"] == 0


@pytest.mark.parametrize("value", ["maybe", "2", "truee"])
def test_another_value_of_the_flag_is_an_error_that_names_it(
    ledger: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(FLAG, value)
    with pytest.raises(ConfigError, match=f"{FLAG}: expected true or false, got '{value}'"):
        connect(ledger)
    with EventLog(ledger) as log, pytest.raises(ConfigError, match=FLAG):
        build_self_model_cached(log)


def test_the_drop_in_creates_no_files(ledger: str) -> None:
    """With the flag unset nothing of the cache is there, on disk or in the process."""
    code = (
        "import sys\n"
        "from pmm_shm_client import EventLog, build_self_model_cached\n"
        "with EventLog(sys.argv[1]) as log:\n"
        "    log.append('identity_adopt', 'Ada', {})\n"
        "    print(build_self_model_cached(log)['identity']['name'])\n"
    )
    before = {entry.name for entry in Path(ledger).parent.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", code, ledger], env=daemons.environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("Ada\n", "")
    assert {entry.name for entry in Path(ledger).parent.iterdir()} == before
