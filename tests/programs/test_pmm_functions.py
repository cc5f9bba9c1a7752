"""What the functions that stand for PMM's do beyond single answers: races, laziness, work, and when they fall back."""

from __future__ import annotations

import datetime
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pmm_shm.errors import HeadMovedError, LedgerError
from pmm_shm.folds.state import State
from pmm_shm.ledger.new_events import event_hash
from pmm_shm_pmm import chain, projects
from pmm_shm_pmm.evidence import Texts, find_evidence
from pmm_shm_pmm.folds import FOLDS
from pmm_shm_pmm.patching import Patcher
from pmm_shm_pmm.shared_log import SharedLog
from tests.support.launched import launched
from tests.support.open_ledger import make_open_ledger
from tests.support.run_golden import make_ledger
from tests.support.standin_ab import append_as_another

_TRACKER = "pmm.commitments.tracker:CommitmentTracker."


@pytest.fixture(scope="module", autouse=True)
def patcher() -> Iterator[Patcher]:
    with launched(strict=False) as patcher:
        yield patcher


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Any]:
    log = _open(tmp_path / "a.db")
    yield log
    log._conn.close()


def _open(path: Path) -> Any:
    return import_module("pmm.storage.eventlog").EventLog(str(path))


def _tracker(log: Any) -> Any:
    return import_module("pmm.commitments.tracker").CommitmentTracker(log)


def _kinds(log: Any) -> list[str]:
    return [event["kind"] for event in log.read_all()]


# Two workers.


def test_two_workers_never_close_one_commitment_twice(log: Any, tmp_path: Path) -> None:
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t"})
    other = _open(tmp_path / "a.db")
    slow, fast = _tracker(log), _tracker(other)
    resolve = slow._resolve_project_for_cid

    def meanwhile(cid: str) -> Any:
        # Between the look and the append of one worker, the other closes it.
        assert fast.close_with_evidence("a", "done", "other") is True
        return resolve(cid)

    slow._resolve_project_for_cid = meanwhile
    assert slow.close_with_evidence("a", "done", "own") is False
    assert _kinds(log) == ["commitment_open", "commitment_close", "metrics_update"]
    other._conn.close()


def test_two_workers_never_open_the_same_commitment_twice(log: Any, tmp_path: Path) -> None:
    other = _open(tmp_path / "a.db")
    slow, fast = _tracker(log), _tracker(other)
    tag = slow._auto_project_id

    def meanwhile(text: str) -> Any:
        assert len(fast.add_commitment("write the report")) in (32, 0)
        return tag(text)

    slow._auto_project_id = meanwhile
    assert slow.add_commitment("Write the  report") == ""
    assert _kinds(log).count("commitment_open") == 1
    other._conn.close()


def test_two_workers_never_open_one_project_twice(log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, look, opened = _open(tmp_path / "a.db"), projects.has_project, []

    def meanwhile(*arguments: Any) -> bool:
        found = look(*arguments)
        if not opened:
            opened.append(1)
            _tracker(other)._ensure_project_open("p")
        return found

    monkeypatch.setattr(projects, "has_project", meanwhile)
    _tracker(log)._ensure_project_open("p")
    assert _kinds(log) == ["project_open"]
    other._conn.close()


def test_two_workers_never_close_one_project_twice(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t", "project_id": "p"})
    look, closed = projects._is_done, []

    def meanwhile(*arguments: Any) -> bool:
        found = look(*arguments)
        if not closed:
            closed.append(1)
            append_as_another(Path(log.path), "project_close", "", {"project_id": "p"})
        return found

    monkeypatch.setattr(projects, "_is_done", meanwhile)
    assert _tracker(log).close_with_evidence("a", "done", "text")
    assert _kinds(log).count("project_close") == 1


def test_two_workers_never_close_a_reflection_twice(log: Any, tmp_path: Path) -> None:
    for cid in ("a", "b"):
        log.append(kind="commitment_open", content="o", meta={"cid": cid, "text": "t", "reason": "reflection"})
    other = _open(tmp_path / "a.db")
    closed: list[int] = []

    def meanwhile(event: dict[str, Any]) -> None:
        if event["kind"] == "commitment_close" and not closed:
            closed.append(event["id"])
            _tracker(other).close_reflection_on_next("other")

    log.register_append_listener(meanwhile)
    _tracker(log).close_reflection_on_next("own")
    assert _kinds(log) == ["commitment_open"] * 2 + ["commitment_close"] * 2
    other._conn.close()


def test_pmms_own_append_has_the_write_lock_from_its_first_line(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            with closing(sqlite3.connect(log.path, timeout=0, isolation_level=None)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    found.append(str(error))
            return datetime.datetime(2020, 1, 1, tzinfo=tz)

    monkeypatch.setattr(import_module("pmm.storage.eventlog"), "datetime", Clock)
    assert log.append("user", "x") == 1
    assert found == ["database is locked"]


def test_errors_of_the_tests_own_helpers_leave_as_they_are(log: Any, patcher: Patcher) -> None:
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t"})
    tracker = _tracker(log)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("of a test")

    tracker.find_evidence = broken
    with pytest.raises(KeyError, match="of a test"):
        tracker.process_evidence("x")
    assert not patcher.counts[f"{_TRACKER}process_evidence"].fallbacks


def test_after_the_close_errors_of_metrics_are_swallowed(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t", "project_id": "p"})

    def broken(events: Any) -> Any:
        raise RuntimeError("no metrics")

    monkeypatch.setattr("pmm.runtime.metrics.compute_ias_gas", broken)
    assert _tracker(log).close_with_evidence("a", "done", "d") is True
    assert _kinds(log) == ["commitment_open", "commitment_close", "project_close"]


@pytest.mark.parametrize("other", ["none", "entry", "assigned", "number", "closed"])
@pytest.mark.parametrize("fails", [True, False])
def test_the_project_is_closed_even_where_our_read_fails(
    log: Any, monkeypatch: pytest.MonkeyPatch, fails: bool, other: str
) -> None:
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t", "project_id": "p"})
    if other == "closed":
        log.append(kind="project_close", content="", meta={"project_id": "p"})
    elif other != "none":
        meta = {
            "cid": 7 if other == "number" else "b",
            "text": "u",
            **({"project_id": "p"} if other == "entry" else {}),
        }
        log.append(kind="commitment_open", content="o", meta=meta)
        if other != "entry":
            for project in ("q", "p"):
                log.append(kind="project_assign", content="", meta={"cid": str(meta["cid"]), "project_id": project})
    fold = SharedLog.fold

    def broken(shared: SharedLog, name: str) -> Any:
        if fails and "commitment_close" in _kinds(log):
            raise LedgerError("unreadable for a moment")
        return fold(shared, name)

    monkeypatch.setattr(SharedLog, "fold", broken)
    assert _tracker(log).close_with_evidence("a", "done", "text") is True
    closes = [event["meta"] for event in log.read_all() if event["kind"] == "project_close"]
    assert closes == ([{"project_id": "p"}] if other in ("none", "closed") else [])


def test_where_the_second_look_fails_the_first_counts(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t", "project_id": "p"})
    calls = 0

    def broken(shared: SharedLog) -> int:
        nonlocal calls
        calls += 1
        raise LedgerError("unreadable for a moment")

    monkeypatch.setattr(SharedLog, "sync", broken)
    assert _tracker(log).close_with_evidence("a", "done", "text") is True
    assert len(_tracker(log).add_commitment("new", project="q")) == 32
    assert calls
    assert _kinds(log)[1:] == [
        "commitment_close",
        "metrics_update",
        "project_close",
        "project_open",
        "commitment_open",
    ]
    assert log.verify_chain()


@pytest.mark.parametrize("by_others", [True, False])
def test_an_append_that_is_never_the_next_one_is_made_all_the_same(
    log: Any, patcher: Patcher, monkeypatch: pytest.MonkeyPatch, by_others: bool
) -> None:
    write = SharedLog._write

    def too_late(shared: SharedLog, log: Any, kind: Any, content: Any, meta: Any, head: int | None = None) -> int:
        if head is not None:
            raise HeadMovedError("moved", head) if by_others else LedgerError("no")
        return write(shared, log, kind, content, meta)

    monkeypatch.setattr(SharedLog, "_write", too_late)
    before = dict(patcher.counts[f"{_TRACKER}add_commitment"].fallbacks)
    assert len(_tracker(log).add_commitment("new", project="q")) == 32
    assert _kinds(log) == ["project_open", "commitment_open"]
    assert _tracker(log).add_commitment("new") == ""
    assert dict(patcher.counts[f"{_TRACKER}add_commitment"].fallbacks) == before


def test_evidence_that_needs_an_artifact(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t"})
    monkeypatch.setattr("pmm.config.require_artifact_evidence", True, raising=False)
    tracker = _tracker(log)
    assert tracker.close_with_evidence("a", "done", "d") is False
    assert tracker.close_with_evidence("a", "done", "", "art") is False
    assert tracker.close_with_evidence("a", "done", "d", "art") is True


def test_an_embedder_of_a_test_is_asked_each_time(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = import_module("pmm.commitments.tracker"), []
    messages, items = [{"kind": "user", "content": "zz"}], [{"cid": "a", "text": "xy"}]
    tracker = _tracker(log)
    own = tracker.find_evidence(messages, items)

    def embed(text: str) -> list[float]:
        asked.append(text)
        return [1.0, float(len(asked))]

    with monkeypatch.context() as patch:
        patch.setattr(module, "_emb", embed)
        for _ in range(2):
            tracker.find_evidence(messages, items)
        assert asked == ["zz", "xy"] * 2
        patch.setattr(module, "_emb", lambda text: None)
        assert tracker.find_evidence(messages, items) == [("a", 0.0, "xy")]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_cos", lambda one, other: 0.25)
        assert tracker.find_evidence(messages, items) == [("a", 0.25, "xy")]
    assert tracker.find_evidence(messages, items) == own


def test_vectors_that_change_are_noticed() -> None:
    asked: list[str] = []
    turn = 0.5

    def embed(text: str) -> list[float]:
        asked.append(text)
        return [1.0, turn * len(text)]

    cosine = import_module("pmm.runtime.embeddings").cosine_similarity
    messages = [{"kind": "user", "content": "some words here"}]
    items = [{"cid": str(number), "text": "x" * number} for number in range(1, 6)]
    texts = Texts(embed, cosine)
    first = find_evidence(texts, embed, cosine, messages, items, 20)
    asked.clear()
    assert find_evidence(texts, embed, cosine, messages, items, 20) == first
    assert len(asked) == 2
    assert not texts.is_worn
    turn = 0.01
    changed = find_evidence(texts, embed, cosine, messages, items, 20)
    assert texts.is_worn
    assert changed == find_evidence(Texts(embed, cosine), embed, cosine, messages, items, 20) != first


# Falling back.


class _AppendOnly:
    """A test's own log."""

    def __init__(self) -> None:
        self.appended: list[str] = []

    def append(self, *, kind: str, content: str, meta: dict[str, Any]) -> int:
        self.appended.append(kind)
        return len(self.appended)

    def read_all(self) -> list[Any]:
        return []


def test_a_stand_in_for_the_log_is_pmms_own_affair(patcher: Patcher) -> None:
    fake = _AppendOnly()
    assert len(_tracker(fake).add_commitment("x y")) == 32
    assert fake.appended == ["commitment_open"]
    assert patcher.counts[f"{_TRACKER}add_commitment"].fallbacks["a stand-in for EventLog"] == 1


def test_assignments_without_an_id_or_a_project_are_in_no_project(log: Any) -> None:
    for meta in (
        {"cid": "None", "text": "t"},
        {"cid": "a", "text": "t", "project_id": "p"},
        {"cid": "b", "text": "t"},
        {"cid": "c", "text": "t", "project_id": "None"},
    ):
        log.append(kind="commitment_open", content="o", meta=meta)
    log.append(kind="project_assign", content="", meta={"project_id": "p"})
    log.append(kind="project_assign", content="", meta={"cid": "b", "project_id": None})
    tracker = _tracker(log)
    assert tracker._resolve_project_for_cid("None") == "p"
    assert tracker.close_with_evidence("a", "done", "d") is True
    assert tracker.close_with_evidence("c", "done", "d") is True
    closed = [event["meta"]["project_id"] for event in log.read_all() if event["kind"] == "project_close"]
    assert closed == ["p", "None"]


def _swept(log: Any, ttl_ticks: int) -> list[str]:
    tracker, events = _tracker(log), log.read_all()
    found = [one["cid"] for one in tracker.sweep_for_expired(events, ttl_ticks)]
    # The same of a list that is not the log, which is folded anew.
    assert [one["cid"] for one in tracker.sweep_for_expired(list(map(dict, events)), ttl_ticks)] == found
    return found


def test_a_snooze_counts_before_the_opening_too(log: Any) -> None:
    for until in (3, 1, "soon", 2):
        log.append(kind="commitment_snooze", content="", meta={"cid": "a", "until_tick": until})
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t"})
    swept = []
    for _ in range(4):
        log.append(kind="autonomy_tick", content="", meta={})
        swept.append(_swept(log, 1))
    assert swept == [[], [], [], ["a"]]


def test_a_snooze_without_a_tick_ends_with_the_first_tick(log: Any) -> None:
    for cid in ("a", "b"):
        log.append(kind="commitment_open", content="o", meta={"cid": cid, "text": "t"})
    log.append(kind="commitment_snooze", content="", meta={"cid": "a", "until_tick": "soon"})
    assert _swept(log, 0) == ["b"]
    log.append(kind="autonomy_tick", content="", meta={})
    assert _swept(log, 0) == ["a", "b"]


def test_only_ends_with_an_id_end_a_commitment(log: Any) -> None:
    for meta in ({}, {"cid": ""}, {"cid": "a"}, {"cid": 7}):
        log.append(kind="commitment_open", content="o", meta=meta)
    for cid in ("", None, 0):
        log.append(kind="commitment_close", content="", meta={"cid": cid})
    assert _swept(log, 0) == ["None", "", "a", "7"]
    log.append(kind="commitment_close", content="", meta={"cid": "7"})
    log.append(kind="commitment_expire", content="", meta={"cid": "a"})
    for cid in ("a", 7):
        log.append(kind="commitment_snooze", content="", meta={"cid": cid, "until_tick": 9})
        log.append(kind="commitment_open", content="o", meta={"cid": cid})
    assert _swept(log, 0) == ["None", ""]


def test_ids_that_do_not_rise_are_pmms_own_affair(log: Any, patcher: Patcher) -> None:
    for kind in ("commitment_open", "autonomy_tick"):
        log.append(kind=kind, content="x", meta={"cid": "a", "text": "t"})
    fallbacks = patcher.counts[f"{_TRACKER}sweep_for_expired"].fallbacks
    before = fallbacks["ids that do not rise"]
    assert _tracker(log).sweep_for_expired(list(reversed(log.read_all())), 0) == [{"cid": "a", "reason": "timeout"}]
    events = log.read_all()
    _tracker(log).sweep_for_expired([*events, events[-1]], 0)
    assert fallbacks["ids that do not rise"] == before + 2


def test_a_list_that_is_not_the_log_is_pmms_own_affair(log: Any, patcher: Patcher) -> None:
    for _ in range(3):
        log.append(kind="user", content="write the report", meta={})
    events = log.read_all()[-2:]
    recall, compact = import_module("pmm.runtime.recall"), import_module("pmm.runtime.scene_compactor")
    assert recall.suggest_recall(events, "report", semantic_seeds=[2])[0]["eid"] == 2
    assert compact.maybe_compact(events, threshold=2)["source_ids"] == [2, 3]
    for label in ("pmm.runtime.recall:suggest_recall", "pmm.runtime.scene_compactor:maybe_compact"):
        assert patcher.counts[label].fallbacks["a list that is not the log"] == 1


def test_replaced_helpers_of_the_consolidation_are_asked(log: Any) -> None:
    for cid in ("a", "b"):
        log.append(kind="commitment_open", content="x", meta={"cid": cid, "text": f"only {cid}"})
    restructurer = import_module("pmm.commitments.restructuring").CommitmentRestructurer(log)
    assert restructurer.consolidate_similar() == []
    restructurer._text_similarity = lambda one, other: 1.0
    assert [one["cids"] for one in restructurer.consolidate_similar()] == [["a", "b"]]


# The flag.


def test_the_flag_is_kept_for_the_newest_event(log: Any) -> None:
    enabled = import_module("pmm.runtime.loop").Runtime._ngram_repeat_telemetry_enabled
    holder = SimpleNamespace(eventlog=log)
    assert enabled(holder) is False
    log.append(kind="directive", content="on", meta={"name": "ngram_repeat_telemetry"})
    assert enabled(holder) is True
    assert holder._ngram_repeat_directive_cache == (1, True)
    holder._ngram_repeat_directive_cache = (1, False)
    assert enabled(holder) is False
    log.append(kind="user", content="", meta={})
    assert enabled(holder) is True


@pytest.mark.parametrize(
    ("content", "meta", "is_on"),
    [
        ("", {"value": None, "state": "Enabled"}, True),
        ("off", {"state": "yes"}, True),
        ("on", {"value": "off", "state": "on"}, False),
        (" YES ", {"value": "", "state": 0}, True),
        ("on", {"name": "ngram_repeat"}, False),
        ("", {"value": True}, True),
    ],
)
def test_the_first_value_of_a_directive_counts(log: Any, content: str, meta: dict[str, Any], is_on: bool) -> None:
    log.append(kind="directive", content=content, meta={"name": " Ngram_Repeat_Telemetry", **meta})
    enabled = import_module("pmm.runtime.loop").Runtime._ngram_repeat_telemetry_enabled
    assert enabled(SimpleNamespace(eventlog=log)) is is_on


# The graph.


@pytest.fixture
def graph(log: Any) -> Any:
    log.append(kind="identity_adopt", content="Echo", meta={"name": "Echo", "confidence": 0.9})
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t"})
    return import_module("pmm.runtime.memegraph").MemeGraphProjection(log)


def _builds() -> int:
    return int(import_module("pmm.runtime.memegraph").MemeGraphProjection.builds)


def test_a_graph_reads_and_registers_nothing_until_it_is_needed(graph: Any, log: Any) -> None:
    before = _builds()
    assert graph.latest_stage() is None
    assert graph.stage_history() == []
    assert list(graph.open_commitments_snapshot()) == ["a"]
    assert graph.policy_updates_for_reflection(1) == []
    assert len(graph.graph_slice("identity")) == 1
    assert isinstance(graph, import_module("pmm.runtime.memegraph").MemeGraphProjection)
    assert _builds() == before
    assert log._append_listeners == []
    assert graph.node_count == 2
    assert _builds() == before + 1
    assert log._append_listeners == [graph.on_event]
    log.append(kind="user", content="", meta={})
    assert graph.node_count == 3
    assert "_shm_eventlog" not in vars(graph)
    assert graph.eventlog is log
    assert len(graph.graph_slice("identity")) == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda graph: graph.neighbors(1),
        lambda graph: graph.rebuild(),
        lambda graph: setattr(graph, "mine", 1),
        lambda graph: vars(graph),
        lambda graph: graph.graph_slice("identity", min_confidence=0.5),
        lambda graph: graph.policy_updates_for_reflection("1"),
        lambda graph: getattr(graph, "no_such_name", None),
    ],
)
def test_anything_else_makes_the_graph(graph: Any, log: Any, use: Any) -> None:
    use(graph)
    assert len(log._append_listeners) == 1
    assert graph.neighbors(1) == ["adopts"]


def test_threads_that_need_it_at_once_make_one_graph(graph: Any, log: Any) -> None:
    before, counts = _builds(), []
    threads = [threading.Thread(target=lambda: counts.append(graph.node_count)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [2] * 8
    assert _builds() == before + 1
    assert len(log._append_listeners) == 1


def test_subclasses_and_graphs_of_other_logs_are_made_at_once(log: Any) -> None:
    original = import_module("pmm.runtime.memegraph").MemeGraphProjection
    subclass = type("Mine", (original,), {"builds": 0})
    subclass(log)
    assert subclass.builds == 1
    before = _builds()
    fake = SimpleNamespace(read_all=list, register_append_listener=lambda listener: None, _append_listeners=[])
    original(fake)
    assert _builds() == before + 1


def test_a_slice_looks_at_each_adoption_once(graph: Any, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, looked_at = import_module("pmm_shm_pmm.graph"), []
    edge = module._edge
    monkeypatch.setattr(module, "_edge", lambda event: looked_at.append(event["id"]) or edge(event))
    graph.graph_slice("identity")
    graph.graph_slice("identity")
    log.append(kind="identity_adopt", content="Ada", meta={"confidence": 0.95})
    assert [row["src_event_id"] for row in graph.graph_slice("identity")] == [3, 1]
    assert looked_at == [1, 3]


def test_of_equal_adoptions_the_first_is_first(graph: Any, log: Any) -> None:
    for _ in range(2):
        log.append(kind="identity_adopt", content="Ada", meta={"confidence": 0.9})
    assert [row["src_event_id"] for row in graph.graph_slice("identity", limit=2)] == [1, 3]


def test_open_commitments_are_in_the_order_of_first_sight(graph: Any, log: Any) -> None:
    for kind, cid in (("commitment_close", "c"), ("commitment_open", "b"), ("commitment_open", "c")):
        log.append(kind=kind, content="", meta={"cid": cid})
    assert list(graph.open_commitments_snapshot()) == ["a", "c", "b"]
    log.append(kind="commitment_expire", content="", meta={"cid": "a"})
    log.append(kind="commitment_open", content="", meta={"cid": "a"})
    assert list(graph.open_commitments_snapshot()) == ["a", "c", "b"]


def test_a_name_in_the_content_has_no_spaces_at_its_ends(graph: Any, log: Any) -> None:
    for content in (" Ada ", "Ada", "  "):
        log.append(kind="identity_adopt", content=content, meta={"confidence": 0.95})
    rows = graph.graph_slice("identity", limit=9)
    assert [row["src_event_id"] for row in rows] == [3, 4, 1]
    assert rows[0]["dst_digest"] == rows[1]["dst_digest"]


def test_a_confidence_that_is_no_number_makes_the_graph(graph: Any, log: Any) -> None:
    log.append(kind="identity_adopt", content="Ada", meta={"confidence": "nan"})
    graph.graph_slice("identity")
    assert len(log._append_listeners) == 1


def test_the_newest_stage_is_found_behind_many_without_one(graph: Any, log: Any) -> None:
    log.append(kind="stage_update", content="", meta={"to": "S1"})
    for _ in range(40):
        log.append(kind="stage_update", content="", meta={"to": ""})
    assert graph.latest_stage() == "S1"


# Work.


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("long") / "long.db"
    make_open_ledger(path, 6_000, 924)
    log = _open(path)
    yield log
    log._conn.close()


def test_no_function_walks_the_log(long_log: Any) -> None:
    looked_at = import_module("pmm.work").looked_at
    tracker, events = _tracker(long_log), long_log.read_all()
    opened = import_module("pmm.commitments.tracker").build_self_model(events)["commitments"]["open"]
    assert len(opened) == 924
    restructurer = import_module("pmm.commitments.restructuring").CommitmentRestructurer(long_log)
    graph = import_module("pmm.runtime.memegraph").MemeGraphProjection(long_log)
    long_log.verify_chain()
    looked_at.clear()
    assert tracker.sweep_for_expired(events)
    assert len(tracker.find_evidence(events[-9:], list(opened.values()))) == 924
    restructurer.consolidate_similar()
    assert len(graph.open_commitments_snapshot()) == 924
    graph.latest_stage()
    graph.graph_slice("identity")
    assert import_module("pmm.runtime.scene_compactor").maybe_compact(events) is not None
    import_module("pmm.runtime.recall").suggest_recall(events, "report", semantic_seeds=[3, 4])
    import_module("pmm.runtime.loop").Runtime._ngram_repeat_telemetry_enabled(SimpleNamespace(eventlog=long_log))
    assert long_log.verify_chain()
    assert not looked_at


def test_views_hold_what_is_open(long_log: Any) -> None:
    shared = import_module("pmm_shm_pmm.shared_log").log_of(long_log)
    ended = {event["meta"]["cid"] for event in long_log.read_all() if event["kind"] == "commitment_close"}
    expired = {event["meta"]["cid"] for event in long_log.read_all() if event["kind"] == "commitment_expire"}
    assert len(shared.fold("pmm_lives").live) == len(shared.fold("pmm_graph").open) == 924
    opens = shared.fold("pmm_opens")
    assert len(opens.current) == 924 + len(expired - ended)
    assert not opens.evidence


@pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.name)
def test_views_of_nothing(fold: Any) -> None:
    assert not any(fold().view(State())) if fold.name != "pmm_flags" else fold().view(State()) is False


# The chain.


@pytest.fixture
def chained(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "chained.db"
    events = [
        {"id": number, "ts": f"2025-01-01T00:00:0{number}+00:00", "kind": "user", "content": "x", "meta": {"n": number}}
        for number in range(1, 6)
    ]
    make_ledger(path, events)
    log = _open(path)
    assert log.verify_chain() is True
    import_module("pmm.work").looked_at.clear()
    yield log
    log._conn.close()


def _wholes() -> int:
    return int(import_module("pmm.work").looked_at["EventLog.verify_chain"])


def test_the_chain_is_verified_behind_the_last_row(chained: Any, tmp_path: Path) -> None:
    other = _open(tmp_path / "chained.db")
    assert chained.verify_chain() is True
    for log in (chained, other, chained):
        log.append(kind="user", content="y", meta={"a": [1, None]})
        assert chained.verify_chain() is True
    chained.append(kind="user", content="y", meta={})
    chained.insert_embedding_row(eid=9, digest="d", embedding_blob=b"x")
    assert chained.verify_chain() is True
    assert _wholes() == 0
    other._conn.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET content = 'z' WHERE id = 2",
        "UPDATE events SET meta = '{}' WHERE id = 1",
        "UPDATE events SET hash = NULL WHERE id = 5",
        "DELETE FROM events WHERE id = 3",
        "UPDATE events SET prev_hash = 'x' WHERE id = 1",
    ],
)
@pytest.mark.parametrize("appends", [0, 2])
@pytest.mark.parametrize("is_own", [True, False])
def test_a_changed_row_is_found(chained: Any, tmp_path: Path, statement: str, appends: int, is_own: bool) -> None:
    connection = chained._conn if is_own else sqlite3.connect(tmp_path / "chained.db")
    connection.execute(statement)
    connection.commit()
    for _ in range(appends):
        chained.append(kind="user", content="y", meta={})
    assert chained.verify_chain() is False
    assert chained.verify_chain() is False
    if not is_own:
        connection.close()


@pytest.mark.parametrize("column", ["ts", "kind", "content", "meta", "prev_hash", "hash"])
def test_a_wrong_new_row_is_found(chained: Any, tmp_path: Path, column: str) -> None:
    chained.append(kind="user", content="y", meta={"a": 1})
    row = chained._conn.execute("SELECT * FROM events WHERE id = 6").fetchone()
    names = ["id", "ts", "kind", "content", "meta", "prev_hash", "hash"]
    values = [7, *row[1:5], row[6], "0" * 64]
    # A second row appended in one transaction by another program, with one value that does not fit.
    with sqlite3.connect(tmp_path / "chained.db") as connection:
        digest = chained._hash_event(7, values[1], values[2], values[3], {"a": 1}, values[5])
        values[6] = digest
        values[names.index(column)] = '{"a": 2}' if column == "meta" else "changed"
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    connection.close()
    assert chained.verify_chain() is False
    assert _wholes() == 0


def test_several_rows_in_one_transaction_are_verified_in_whole(chained: Any, tmp_path: Path) -> None:
    from pmm_shm_client import connect

    with connect(tmp_path / "chained.db") as cache:
        cache.append_many([("user", "a", {}), ("user", "b", {})])
    assert chained.verify_chain() is True
    assert _wholes() == 7
    assert chained.verify_chain() is True
    assert _wholes() == 7


def test_a_new_row_that_continues_another_one_is_found(chained: Any, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "chained.db") as connection:
        hashes = [row[0] for row in connection.execute("SELECT hash FROM events ORDER BY id")]
        digest = event_hash("full", 6, "", "user", "x", {}, hashes[2])
        connection.execute("INSERT INTO events VALUES (6, '', 'user', 'x', '{}', ?, ?)", (hashes[2], digest))
    assert not chained.verify_chain()


def test_an_edit_beside_several_rows_in_one_commit_is_found(chained: Any, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "chained.db") as connection:
        connection.execute("UPDATE events SET content = 'z' WHERE id = 5")
        before = connection.execute("SELECT hash FROM events WHERE id = 5").fetchone()[0]
    # As many commits as rows.
    with sqlite3.connect(tmp_path / "chained.db") as connection:
        for number in (6, 7):
            digest = event_hash("full", number, "", "user", "x", {}, before)
            connection.execute("INSERT INTO events VALUES (?, '', 'user', 'x', '{}', ?, ?)", (number, before, digest))
            before = digest
    assert not chained.verify_chain()


def test_commits_are_counted_within_one_epoch(chained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = iter([1] * 4 + [2] * 4)
    monkeypatch.setattr(chain, "_commits", lambda log: (next(epochs), 7))
    assert chained.verify_chain()
    with sqlite3.connect(tmp_path / "chained.db") as connection:
        connection.execute("UPDATE events SET content = 'z' WHERE id = 2")
    # The count began anew, and happens to be the same.
    assert not chained.verify_chain()


def test_after_a_failed_audit_the_whole_chain_is_verified(chained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmm_shm_pmm.chain._audits_failed", lambda log: 1)
    assert chained.verify_chain() is True
    assert _wholes() == 5
    assert chained.verify_chain() is True
    assert _wholes() == 5


# Limits.


@pytest.mark.parametrize(("score", "closed"), [(0.7, ["a"]), (0.6999, []), (1, ["a"])])
def test_evidence_of_seven_tenths_closes(log: Any, score: float, closed: list[str]) -> None:
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "t"})
    tracker = _tracker(log)
    tracker.find_evidence = lambda events, items: [("a", score, "s"), ("b", 1.0, "s")]
    assert tracker.process_evidence("d") == closed


@pytest.mark.parametrize(
    ("kind", "content", "meta"),
    [
        ("user", "REPORT", {}),
        ("commitment_open", "REPORT", {"text": "x"}),
        ("commitment_open", "x", {"text": "REPORT"}),
    ],
)
def test_capitals_make_no_difference_to_a_recall(log: Any, kind: str, content: str, meta: dict[str, Any]) -> None:
    for _ in range(2):
        log.append(kind=kind, content=content, meta=meta)
    recall = import_module("pmm.runtime.recall").suggest_recall
    for events in (log.read_all(), log.read_all()[:]):
        assert recall(events, "RePort") == [{"eid": 1, "snippet": content}]


def test_capitals_make_no_difference_to_a_merge(log: Any) -> None:
    for cid, text in (("a", "Write THE report"), ("b", "write the Report"), ("c", "else")):
        log.append(kind="commitment_open", content="o", meta={"cid": cid, "text": text})
    restructurer = import_module("pmm.commitments.restructuring").CommitmentRestructurer(log)
    assert [merge["cids"] for merge in restructurer.consolidate_similar()] == [["a", "b"]]


def test_a_summary_of_one_event(log: Any, patcher: Patcher) -> None:
    log.append(kind="user", content="x", meta={})
    counts = patcher.counts["pmm.runtime.scene_compactor:maybe_compact"]
    before = counts.answered
    compact = import_module("pmm.runtime.scene_compactor").maybe_compact
    assert compact(log.read_all(), threshold=1)["source_ids"] == [1]
    assert counts.answered == before + 1


def test_words_that_say_nothing_are_no_overlap() -> None:
    from pmm_shm_pmm.recall import tokens

    silent = "I we YOU the a an to and of for on in it is are will shall can could should would today now"
    assert tokens(f"{silent} plan-2 caf\u00e9 then") == ["plan", "2", "caf", "then"]


@pytest.mark.parametrize(
    ("window", "least"),
    [
        ({"start": 1, "end": 3}, 4),
        ({"start": "x", "end": 3}, 1),
        ({"start": 1, "end": "x"}, 1),
        ({"end": 2}, 3),
        ({"start": 1}, 1),
        ({"start": 1, "end": None}, 1),
        ([3], 1),
    ],
)
def test_a_summary_begins_behind_the_newest_window(log: Any, window: Any, least: int) -> None:
    compact = import_module("pmm.runtime.scene_compactor").maybe_compact
    for _ in range(4):
        log.append(kind="user", content="x", meta={})
    log.append(kind="scene_compact", content="s", meta={"window": window})
    count = 5 - least + 1
    assert compact(log.read_all(), threshold=count)["source_ids"] == list(range(least, 6))
    assert compact(log.read_all(), threshold=count + 1) is None


def test_one_commitment_alone_is_compared_with_nothing(log: Any, patcher: Patcher) -> None:
    log.append(kind="commitment_open", content="x", meta={"cid": "a", "text": 5})
    restructurer = import_module("pmm.commitments.restructuring").CommitmentRestructurer(log)
    assert restructurer.consolidate_similar() == []
    log.append(kind="commitment_open", content="x", meta={"cid": True, "text": "t"})
    counts = patcher.counts["pmm.commitments.restructuring:CommitmentRestructurer.consolidate_similar"]
    before = sum(counts.fallbacks.values())
    with pytest.raises(AttributeError):
        restructurer.consolidate_similar()
    assert sum(counts.fallbacks.values()) == before + 1


@pytest.mark.parametrize(("later", "is_evidence"), [(49, False), (50, True)])
def test_a_reflection_counts_for_fifty_events(log: Any, later: int, is_evidence: bool) -> None:
    log.append(kind="commitment_close", content="", meta={"cid": "a", "source": "reflection"})
    log.append(kind="commitment_open", content="o", meta={"cid": "a", "text": "write the report"})
    for _ in range(later - 1):
        log.append(kind="user", content="", meta={})
    assert _tracker(log).process_evidence("write the report") == ["a"]
    assert ("evidence_candidate" in _kinds(log)) is is_evidence


def test_a_topic_is_stripped_and_a_source_must_exist(graph: Any, log: Any) -> None:
    assert graph.graph_slice("  Identity ")[0]["score"] == 1.3
    log.append(kind="policy_update", content="", meta={"src_id": -3})
    assert graph.policy_updates_for_reflection(-3) == []
    assert log._append_listeners == []
    graph.graph_slice("identity", limit=-1)
    assert len(log._append_listeners) == 1
