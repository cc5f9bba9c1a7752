"""PMM's folds, answered from the shared cache: equal to the golden data, fresh, and left to PMM where they must be."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pmm_shm_pmm import lists
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.patching import Patcher
from tests.support import golden_cases, run_golden
from tests.support.launched import launched

PARTS = ("log", "projection", "metrics", "stage", "directives")
FOLDS = (
    "pmm.storage.projection:build_self_model",
    "pmm.storage.projection:build_identity",
    "pmm.storage.projection:build_directives",
    "pmm.storage.projection:build_directives_active_set",
    "pmm.runtime.metrics:compute_ias_gas",
    "pmm.runtime.stage_tracker:StageTracker.infer_stage",
)
OPEN = ("commitment_open", "", {"cid": "a", "text": {"deep": [1]}})


@pytest.fixture(scope="module", autouse=True)
def patcher() -> Iterator[Patcher]:
    with launched(PARTS, strict=False) as patcher:
        yield patcher


@pytest.fixture(autouse=True)
def _fresh(patcher: Patcher) -> Iterator[None]:
    for counts in patcher.counts.values():
        counts.answered = 0
        counts.fallbacks.clear()
    yield
    projection()._global_projection_cache = None
    metrics()._global_metrics_cache = None
    config().USE_PROJECTION_CACHE = config().USE_METRICS_CACHE = False


def projection() -> Any:
    return importlib.import_module("pmm.storage.projection")


def metrics() -> Any:
    return importlib.import_module("pmm.runtime.metrics")


def config() -> Any:
    return importlib.import_module("pmm.config")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Any]:
    log = importlib.import_module("pmm.storage.eventlog").EventLog(str(tmp_path / "pmm.db"))
    yield log
    log._conn.close()


def add(log: Any, *events: tuple[str, str, dict[str, Any]]) -> None:
    for kind, content, meta in events:
        log.append(kind=kind, content=content, meta=meta)


def fallbacks(patcher: Patcher, label: str) -> dict[str, int]:
    return dict(patcher.counts[label].fallbacks)


def fold_all(events: Any) -> list[Any]:
    tracker = importlib.import_module("pmm.runtime.stage_tracker").StageTracker
    return [
        projection().build_self_model(events),
        projection().build_identity(events),
        projection().build_directives(events),
        projection().build_directives_active_set(events),
        metrics().compute_ias_gas(events),
        tracker.infer_stage(events),
    ]


# Golden data.


def recognised_at(events: Any, live: list[Any]) -> int | None:
    try:
        return lists.recognised(events)[1]
    except Fallback:
        return None


def is_ours(call: dict[str, Any]) -> bool:
    return str(call["call"]).startswith(("fold.", "metrics."))


@pytest.mark.parametrize("name", run_golden.names())
def test_calls_give_the_golden_answers(name: str, tmp_path: Path) -> None:
    found = run_golden.replay(name, tmp_path, as_of=recognised_at, skip=lambda call: not is_ours(call))
    assert list(map(str, found)) == []


def test_only_lists_that_are_not_the_log_fall_back(patcher: Patcher, tmp_path: Path) -> None:
    """The golden ledgers with lists of all kinds."""
    calls = []
    for name in run_golden.names():
        own = [call for call in run_golden.case(name)["calls"] if call["call"] == "fold.all"]
        if any(call["args"][0]["$list"][0] != "live" for call in own):
            calls += own
            (tmp_path / name).mkdir()
            run_golden.replay(name, tmp_path / name, as_of=recognised_at, skip=lambda call: not is_ours(call))
    assert len(calls) > 20
    others = sum(call["result"]["as_of"] is None for call in calls)
    tails = sum(call["args"][0]["$list"][0] == "tail" for call in calls)
    for label in FOLDS:
        found = fallbacks(patcher, label)
        assert set(found) <= {lists.NOT_THE_LOG, lists.NO_FRAME}
        # PMM's own functions call some of the others; a tail of the whole length may be read anew.
        if label in (FOLDS[3], FOLDS[5]):
            assert others <= found[lists.NOT_THE_LOG] <= others + tails
        assert patcher.counts[label].answered + sum(found.values()) >= len(calls)
        assert patcher.counts[label].answered > 10


@golden_cases.parametrised(golden_cases.CASES)
def test_each_prefix_of_the_golden_ledgers(case: golden_cases.Case, tmp_path: Path, patcher: Patcher) -> None:
    path = tmp_path / "ledger.db"
    golden_cases.make_ledger(path)
    log = importlib.import_module("pmm.storage.eventlog").EventLog(str(path))
    try:
        for golden, _ in golden_cases.steps(case, path):
            live = log.read_all()
            model, identity, directives, active, (ias, gas), (stage, snapshot) = fold_all(live)
            try:
                strict: Any = {"model": projection().build_self_model(live, strict=True)}
            except projection().ProjectionInvariantError as error:
                is_close = str(error).startswith("commitment_close without prior evidence_candidate (cid=")
                strict = {"violation": "close_without_evidence" if is_close else "identity"}
            got = {
                "self_model": model,
                "open_order": list(model["commitments"]["open"]),
                "closed_without_evidence": golden["closed_without_evidence"],
                "strict": strict,
                "ias": ias,
                "gas": gas,
                "stage": stage,
                "stage_snapshot": snapshot,
                "directives": directives,
                "directives_active": active,
            }
            golden_cases.assert_golden(got, golden, case.name)
            assert identity == model["identity"]
            assert list(snapshot) == ["IAS_mean", "GAS_mean", "count", "window"]
        assert all(not fallbacks(patcher, label) for label in FOLDS)
    finally:
        log._conn.close()


# What callers get.


def test_answers_are_fresh_and_their_entries_cannot_be_changed(log: Any, patcher: Patcher) -> None:
    expired = [("commitment_open", "", {"cid": "b", "text": "t"}), ("commitment_expire", "", {"cid": "b"})]
    add(log, OPEN, ("autonomy_directive", "be kind", {"source": "user"}), ("identity_adopt", "Ada", {}), *expired)
    live = log.read_all()
    before = copy.deepcopy(fold_all(live))
    model, identity, directives, active, _, (_, snapshot) = fold_all(live)
    identity["_recent_adopt"] = True
    identity["traits"]["openness"] = 7.0
    for entry in [*directives, *active]:
        entry["sources"].append("other")
        entry.clear()
    snapshot.clear()
    with pytest.raises(TypeError):
        model["commitments"]["open"]["a"]["text"]["deep"].append(2)
    for cid in model["commitments"]["open"]:
        log.append(kind="commitment_snooze", content="", meta={"cid": cid, "until_tick": 3})
    commitments = model["commitments"]
    for part in (model["identity"]["traits"], commitments["open"], commitments["expired"], commitments, model):
        part.clear()
    assert fold_all(live[:5]) == before
    model = projection().build_self_model(live)
    assert isinstance(model["commitments"]["open"]["a"], dict)
    assert model["commitments"]["open"]["a"]["snoozed_until"] == 3
    log.append(kind="identity_checkpoint", content="", meta={"commitments": model["commitments"]})
    assert json.loads(json.dumps(live[-1]["meta"]["commitments"])) == json.loads(json.dumps(model["commitments"]))
    assert all(not fallbacks(patcher, label) for label in FOLDS)


def test_a_name_that_is_an_object_is_the_callers_own(log: Any) -> None:
    add(log, ("identity_change", "", {"name": {"first": ["Ada"]}}))
    for answer in (
        projection().build_identity(log.read_all()),
        projection().build_self_model(log.read_all())["identity"],
    ):
        answer["name"]["first"].append("Eve")
    assert projection().build_identity(log.read_all())["name"] == {"first": ["Ada"]}


def test_an_empty_log_and_an_empty_list(log: Any, patcher: Patcher) -> None:
    assert fold_all([]) == fold_all(log.read_all())
    assert fold_all([])[4:] == [(0.0, 0.0), ("S0", {"IAS_mean": 0.0, "GAS_mean": 0.0, "count": 0, "window": 10})]
    assert projection().build_self_model([], strict=True) == projection().build_self_model([])
    assert all(not fallbacks(patcher, label) for label in FOLDS)


def test_strict_models(log: Any, patcher: Patcher) -> None:
    add(log, ("trait_update", "", {"trait": "openness", "delta": 0.2}), OPEN)
    live, label = log.read_all(), FOLDS[0]
    build = projection().build_self_model
    assert build(live, strict=True)["identity"]["traits"]["openness"] == 0.55
    assert build(live)["identity"]["traits"]["openness"] == 0.7
    assert build(live, strict=False, max_trait_delta="odd")["identity"]["traits"]["openness"] == 0.7
    assert fallbacks(patcher, label) == {}
    assert build(live, strict=True, max_trait_delta=0.1)["identity"]["traits"]["openness"] == 0.6
    assert sum(fallbacks(patcher, label).values()) == 1
    add(log, ("identity_adopt", "Ada", {}), ("identity_adopt", " ", {}), ("user", "hello", {}))
    with pytest.raises(
        ValueError, match=r"^identity reverted to None without identity_clear \(last_eid=5\)$"
    ) as caught:
        build(live, strict=True)
    assert type(caught.value) is projection().ProjectionInvariantError
    add(log, ("commitment_close", "", {"cid": "a"}), ("user", "hello", {}))
    text = r"^commitment_close without prior evidence_candidate \(cid=a, eid=6\)$"
    with pytest.raises(projection().ProjectionInvariantError, match=text) as caught:
        build(live, strict=True)
    assert caught.value.__context__ is None
    assert sum(fallbacks(patcher, label).values()) == 1


def test_warnings_are_heard_at_every_build(log: Any, patcher: Patcher) -> None:
    heard: list[Any] = []
    add(log, OPEN)
    projection().build_self_model(log.read_all(), on_warn=heard.append)
    assert (heard, fallbacks(patcher, FOLDS[0])) == ([], {})
    add(log, ("commitment_close", "", {"cid": "a"}))
    for _ in range(2):
        projection().build_self_model(log.read_all(), on_warn=heard.append)
    assert len(heard) == 2


def test_any_iterable_is_taken_for_metrics(log: Any, patcher: Patcher) -> None:
    add(log, ("commitment_open", "text", {"cid": "a", "text": "t"}), ("autonomy_tick", "", {}))
    wanted = metrics().compute_ias_gas(log.read_all())
    for other in (iter(log.read_all()), tuple(log.read_all()), log.read_all()[:]):
        assert metrics().compute_ias_gas(other) == wanted
    assert fallbacks(patcher, "pmm.runtime.metrics:compute_ias_gas") == {lists.NOT_THE_LOG: 2}


# Metrics that are stored in the log.


def stored(log: Any) -> list[Any]:
    return [event["meta"] for event in log.read_all() if event["kind"] == "metrics_update"]


def test_stored_metrics_are_used_until_something_is_newer(log: Any, patcher: Patcher) -> None:
    get = metrics().get_or_compute_ias_gas
    add(log, ("commitment_open", "text", {"cid": "a", "text": "t"}))
    first = get(log)
    assert stored(log) == [{"IAS": first[0], "GAS": first[1], "reason": "recomputed", "component": "metrics_system"}]
    assert get(log) == first
    add(log, ("user", "hello", {}), ("trait_update", "", {"trait": "o", "delta": 0.1}))
    assert get(log) == first
    assert len(stored(log)) == 1
    add(log, ("metrics_update", "", {"IAS": "0.25", "other": 1}))
    assert get(log) == (0.25, 0.0)
    count = 2
    for kind in (
        "commitment_open",
        "commitment_close",
        "commitment_expire",
        "identity_adopt",
        "reflection",
        "invariant_violation",
        "autonomy_tick",
    ):
        add(log, (kind, "content", {}))
        assert get(log) == metrics().compute_ias_gas(log.read_all())
        count += 1
        assert len(stored(log)) == count
        assert get(log) == metrics().compute_ias_gas(log.read_all())
        assert len(stored(log)) == count
    for odd in ("x", None, [1]):
        add(log, ("metrics_update", "", {"IAS": odd, "GAS": 0.5}))
        count += 2
        assert get(log) == metrics().compute_ias_gas(log.read_all())
        assert len(stored(log)) == count
    assert fallbacks(patcher, "pmm.runtime.metrics:get_or_compute_ias_gas") == {}


def test_metrics_are_returned_where_they_cannot_be_appended(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add(log, ("commitment_open", "text", {"cid": "a", "text": "t"}))

    def refuse(**event: Any) -> int:
        raise RuntimeError("read-only")

    monkeypatch.setattr(log, "append", refuse)
    assert metrics().get_or_compute_ias_gas(log) == metrics().compute_ias_gas(log.read_all())
    assert stored(log) == []


def test_helpers_are_those_that_the_module_has(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add(log, OPEN)
    monkeypatch.setattr(metrics(), "compute_ias_gas", lambda events: (len(events), 7.0))
    assert metrics().get_or_compute_ias_gas(log) == (1, 7.0)
    monkeypatch.setattr(projection(), "build_self_model", lambda events, **options: (len(events), options))
    options = {"strict": True, "max_trait_delta": 0.1, "on_warn": None}
    assert projection().build_self_model_cached(log, strict=True, max_trait_delta=0.1) == (2, options)


class _Failing(Exception):
    pass


def test_errors_of_pmm_leave_as_they_are(log: Any, patcher: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise _Failing

    add(log, OPEN)
    monkeypatch.setattr(metrics(), "compute_ias_gas", fail)
    monkeypatch.setattr(projection(), "build_self_model", fail)
    for call in (metrics().get_or_compute_ias_gas, projection().build_self_model_cached):
        with pytest.raises(_Failing):
            call(log)
    assert stored(log) == []
    assert fallbacks(patcher, "pmm.runtime.metrics:get_or_compute_ias_gas") == {}


class StandIn:
    """Not PMM's EventLog: it only has what the folds call."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def read_all(self) -> list[Any]:
        return self.events

    def append(self, kind: str, content: str, meta: Any) -> int:
        self.events.append({"id": len(self.events) + 1, "ts": "", "kind": kind, "content": content, "meta": meta})
        return len(self.events)


@pytest.mark.parametrize("cached", [False, True])
def test_a_stand_in_for_the_log_is_left_to_pmm(patcher: Patcher, cached: bool) -> None:
    config().USE_PROJECTION_CACHE = config().USE_METRICS_CACHE = cached
    other = StandIn([{"id": 1, "ts": "", "kind": "identity_adopt", "content": "Ada", "meta": {}}])
    assert projection().build_self_model_cached(other)["identity"]["name"] == "Ada"
    metrics().get_or_compute_ias_gas(other)
    assert len(other.events) == (1 if cached else 2)
    for label in ("pmm.storage.projection:build_self_model_cached", "pmm.runtime.metrics:get_or_compute_ias_gas"):
        assert sum(fallbacks(patcher, label).values()) == 1


# PMM's two caches.

KEYS = ["cache_hits", "cache_misses", "hit_rate", "events_processed", "last_id"]


def test_the_projection_cache(log: Any, patcher: Patcher) -> None:
    config().USE_PROJECTION_CACHE = True
    assert projection()._global_projection_cache is None
    add(log, OPEN, ("trait_update", "", {"trait": "openness", "delta": 0.2}))
    model = projection().build_self_model_cached(log, strict=True, max_trait_delta=0.05)
    cache = projection()._global_projection_cache
    assert model["identity"]["traits"]["openness"] == 0.55
    model["commitments"]["open"]["a"]["text"]["deep"].append(2)
    model["identity"]["traits"].clear()
    # The first call's options count for all.
    again = projection().build_self_model_cached(log, strict=False)
    assert again == cache.get_model(log) == projection().build_self_model(log.read_all(), strict=True)
    assert cache.get_identity(log) == again["identity"]
    stats = cache.get_stats()
    assert list(stats) == [*KEYS, "verifications_passed", "verifications_failed", "cached"]
    assert list(stats.values()) == [3, 1, 0.75, 2, 2, 0, 0, True]
    add(log, ("identity_adopt", "Ada", {}))
    assert cache.get_identity(log)["name"] == "Ada"
    assert list(cache.get_stats().values()) == [3, 2, 0.6, 3, 3, 0, 0, True]
    cache.clear()
    assert list(cache.get_stats().values()) == [0, 0, 0.0, 0, 0, 0, 0, False]
    assert cache.get_model(log)["identity"]["name"] == "Ada"
    assert projection()._global_projection_cache is cache
    assert fallbacks(patcher, "pmm.storage.projection:build_self_model_cached") == {}
    add(log, ("commitment_close", "", {"cid": "a"}))
    with pytest.raises(projection().ProjectionInvariantError):
        projection().build_self_model_cached(log)
    other = StandIn([{"id": 4, "ts": "", "kind": "identity_adopt", "content": "Bea", "meta": {}}])
    assert projection().build_self_model_cached(other)["identity"]["name"] == "Bea"


def test_the_projection_cache_and_warnings(log: Any) -> None:
    config().USE_PROJECTION_CACHE = True
    add(log, OPEN, ("commitment_close", "", {"cid": "a"}))
    heard: list[Any] = []
    projection().build_self_model_cached(log, on_warn=heard.append)
    assert len(heard) == 1


def test_the_metrics_cache(log: Any, patcher: Patcher) -> None:
    config().USE_METRICS_CACHE = True
    assert metrics()._global_metrics_cache is None
    add(log, ("commitment_open", "text", {"cid": "a", "text": "t"}))
    found = metrics().get_or_compute_ias_gas(log)
    assert (found, stored(log)) == (metrics().compute_ias_gas(log.read_all()), [])
    cache = metrics()._global_metrics_cache
    assert cache.get_metrics(log) == found
    stats = cache.get_stats()
    assert list(stats) == [*KEYS, "recomputations", "ias", "gas"]
    assert list(stats.values()) == [1, 1, 0.5, 1, 1, 1, *found]
    add(log, ("autonomy_tick", "", {}))
    assert cache.get_metrics(log) == metrics().compute_ias_gas(log.read_all()) != found
    assert list(cache.get_stats().values())[:6] == [1, 2, 1 / 3, 2, 2, 2]
    cache.clear()
    assert list(cache.get_stats().values()) == [0, 0, 0.0, 0, 0, 0, 0.0, 0.0]
    assert fallbacks(patcher, "pmm.runtime.metrics:get_or_compute_ias_gas") == {}


def test_the_caches_tell_two_logs_apart(log: Any, tmp_path: Path) -> None:
    config().USE_PROJECTION_CACHE = True
    other = importlib.import_module("pmm.storage.eventlog").EventLog(str(tmp_path / "other.db"))
    add(log, ("identity_adopt", "Ada", {}))
    add(other, ("identity_adopt", "Bea", {}))
    names = [projection().build_self_model_cached(one)["identity"]["name"] for one in (log, other, log)]
    assert names == ["Ada", "Bea", "Ada"]
    other._conn.close()


def test_the_flags_are_looked_up_at_each_call(log: Any, patcher: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    add(log, OPEN)
    projection().build_self_model_cached(log)
    assert projection()._global_projection_cache is None
    monkeypatch.setenv("PMM_USE_PROJECTION_CACHE", "true")
    importlib.reload(config())
    projection().build_self_model_cached(log)
    assert projection()._global_projection_cache is not None
    # A PMM without them decides itself.
    broken = ModuleType("pmm.config")
    monkeypatch.setitem(sys.modules, "pmm.config", broken)
    with pytest.raises(ImportError):
        projection().build_self_model_cached(log)
    assert sum(fallbacks(patcher, "pmm.storage.projection:build_self_model_cached").values()) == 1
