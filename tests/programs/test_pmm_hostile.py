"""What PMM's own tests do to its objects: each test passes on the plain stand-in, and where it is launched."""

from __future__ import annotations

import datetime
import gc
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pmm_shm_pmm import ledgers
from pmm_shm_pmm.patching import Patcher
from tests.support import standin_package
from tests.support.launched import launched
from tests.support.standin_ab import append_as_another


@pytest.fixture(scope="module", params=["plain", "launched"], autouse=True)
def patcher(request: pytest.FixtureRequest) -> Iterator[Patcher | None]:
    if request.param == "launched":
        with launched(strict=False) as patcher:
            yield patcher
    else:
        with standin_package.importable():
            yield None


@pytest.fixture
def log(tmp_path: Path) -> Any:
    """Five events."""
    log = _open(tmp_path / "a.db")
    for number in range(5):
        log.append("user", f"m{number}", {"n": number})
    return log


def _open(path: Path) -> Any:
    return import_module("pmm.storage.eventlog").EventLog(str(path))


def _runtime(log: Any) -> Any:
    return import_module("pmm.runtime.loop").Runtime(log)


def _tracker_module() -> Any:
    return import_module("pmm.commitments.tracker")


def _tracker(log: Any) -> Any:
    return _tracker_module().CommitmentTracker(log)


def _ids(events: Any) -> list[int]:
    return [event["id"] for event in events]


# Attributes of a log.


def test_listeners_that_are_patched_come_back(log: Any) -> None:
    heard: list[int] = []
    log.register_append_listener(lambda event: heard.append(event["id"]))
    with mock.patch.object(log, "_append_listeners", []):
        log.append("user", "unheard")
    log.append("user", "heard")
    assert heard == [7]


def test_a_cache_or_a_connection_that_is_patched_comes_back(log: Any) -> None:
    log.read_all()
    with mock.patch.object(log, "_events_cache", None), mock.patch.object(log, "_cache_last_id", 0):
        assert _ids(log.read_all()) == [1, 2, 3, 4, 5]
    with mock.patch.object(log, "_conn", mock.MagicMock()):
        pass
    log.append("user", "next")
    assert _ids(log.read_all()) == [1, 2, 3, 4, 5, 6]


def test_a_log_has_the_attributes_of_pmm_s(log: Any) -> None:
    names = {"_append_listeners", "_cache_last_id", "_conn", "_events_cache", "_lock", "has_embeddings_index", "path"}
    assert vars(log).keys() - {"_pmm_shm"} == names
    assert not hasattr(object.__new__(type(log)), "_conn")


@pytest.mark.parametrize("where", ["object", "class"])
def test_a_read_all_of_a_test_is_what_is_read(log: Any, where: str) -> None:
    events = [{"id": 9, "ts": "", "kind": "commitment_open", "content": "", "meta": {"cid": "z", "text": "hello"}}]
    tracker, runtime = _tracker(log), _runtime(log)
    with mock.patch.object(log if where == "object" else type(log), "read_all", return_value=events):
        assert tracker._recent_open_cids(3) == [("z", 9)]
        assert tracker._is_duplicate_of_recent_open("hello")
        assert runtime._get_snapshot().last_event_id == 9
        assert runtime.memegraph.open_commitments_snapshot() == {}
        assert import_module("pmm.runtime.metrics").get_or_compute_ias_gas(log)[1] == 0.0
    assert tracker._recent_open_cids(3) == []


def test_reads_are_counted(log: Any) -> None:
    runtime = _runtime(log)
    with mock.patch.object(log, "read_all", wraps=log.read_all) as spy:
        runtime._get_snapshot()
        runtime._get_snapshot()
    assert spy.call_count == 1


def test_a_clock_that_is_stopped_gives_the_time(log: Any) -> None:
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime(2020, 1, 2, tzinfo=tz)

    with mock.patch.object(import_module("pmm.storage.eventlog"), "datetime", Stopped):
        log.append("user", "then")
    log.append("user", "now")
    times = [event["ts"][:10] for event in log.read_all()[-2:]]
    assert times[0] == "2020-01-02" != times[1]
    assert log.verify_chain()


@pytest.mark.parametrize("first", ["read_all", "read_tail", "read_after_id"])
def test_what_was_read_is_there_after_the_close(log: Any, tmp_path: Path, first: str) -> None:
    options = {"read_all": {}, "read_tail": {"limit": 2}, "read_after_id": {"after_id": 1, "limit": 1}}
    getattr(log, first)(**options[first])
    log._conn.close()
    assert _ids(log.read_all()) == [1, 2, 3, 4, 5]
    assert _ids(log.read_tail(limit=2)) == [4, 5]
    assert _ids(log.read_after_id(after_id=3, limit=9)) == [4, 5]
    with pytest.raises(sqlite3.ProgrammingError):
        log.append("user", "x")
    never_read = _open(tmp_path / "b.db")
    never_read.append("user", "x")
    never_read.query()
    never_read._conn.close()
    with pytest.raises(sqlite3.ProgrammingError):
        never_read.read_all()


def test_a_list_outlives_its_file(tmp_path: Path) -> None:
    log = _open(tmp_path / "a.db")
    for number in range(5):
        append_as_another(tmp_path / "a.db", "user", f"m{number}", {})
    live, copy = log.read_all(), _runtime(log)._get_snapshot().events
    log._conn.close()
    for path in tmp_path.glob("a.db*"):
        path.unlink()
    for ledger in ledgers._ledgers.values():
        ledger._connection.close()
    assert _ids(live) == _ids(copy) == _ids(log.read_all()) == [1, 2, 3, 4, 5]
    assert import_module("pmm.storage.projection").build_identity(live)["name"] is None


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_file_is_deleted_between_tests_at_one_path(tmp_path: Path, is_closed: bool) -> None:
    for number in range(3):
        log = _open(tmp_path / "same.db")
        log.append("user", f"run {number}")
        assert [event["content"] for event in log.read_all()] == [f"run {number}"]
        assert _runtime(log)._get_snapshot().last_event_id == 1
        if is_closed:
            log._conn.close()
        for path in tmp_path.glob("same.db*"):
            path.unlink()


@pytest.mark.parametrize(
    "statement", ["DELETE FROM events WHERE id = 3", "UPDATE events SET content = 'x' WHERE id = 2"]
)
def test_a_log_that_is_made_anew_reads_what_was_edited(log: Any, statement: str) -> None:
    log.append("identity_adopt", "Ada", {"name": "Ada"})
    build_identity = import_module("pmm.storage.projection").build_identity
    assert build_identity(log.read_all())["name"] == "Ada"
    with log._conn:
        log._conn.execute(statement)
        log._conn.execute("""UPDATE events SET meta = '{"name": "Bea"}' WHERE id = 6""")
        log._conn.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('', 'note', '', '{}')")
    again = _open(Path(log.path))
    with sqlite3.connect(log.path) as connection:
        rows = connection.execute("SELECT id, content FROM events ORDER BY id").fetchall()
    assert [(event["id"], event["content"]) for event in again.read_all()] == rows
    assert build_identity(again.read_all())["name"] == "Bea"
    assert not again.verify_chain()


def test_a_list_that_was_read_before_an_edit_stays_as_it_was(log: Any) -> None:
    log.append("identity_adopt", "Ada", {"name": "Ada"})
    live = log.read_all()
    with log._conn:
        log._conn.execute("""UPDATE events SET content = 'Bea', meta = '{"name": "Bea"}' WHERE id = 6""")
        log._conn.execute("UPDATE events SET content = 'x' WHERE id = 2")
    assert import_module("pmm.storage.projection").build_identity(live)["name"] == "Ada"
    recall = import_module("pmm.runtime.recall").suggest_recall
    log.read_tail(limit=1)
    assert _ids_of(recall(live, "m1", semantic_seeds=[2])) == [2]
    assert live[-1]["content"] == "Ada"


def test_a_lazy_list_whose_log_was_edited_before_it_was_looked_at(tmp_path: Path) -> None:
    log = _open(tmp_path / "long.db")
    with log._conn:
        log._conn.executemany(
            "INSERT INTO events (id, ts, kind, content, meta) VALUES (?, '', 'user', 'x', '{}')",
            [(number,) for number in range(1, 701)],
        )
    live = log.read_all()
    with log._conn:
        log._conn.execute("UPDATE events SET content = 'z' WHERE id = 700")
    assert len(live) == len(log.read_all()) == 700
    assert log.append("user", "next") == 701
    assert [_ids(log.read_all())[-1], len(log.read_all())] == [701, 701]
    # No fold takes it for the new log at its place.
    assert import_module("pmm.storage.projection").build_identity(live)["name"] is None
    assert sum(event["content"] == "x" for event in live) in (699, 700)


def test_a_list_whose_last_event_a_test_replaces(log: Any) -> None:
    log.append("identity_adopt", "Ada", {"name": "Ada"})
    build_identity, events = import_module("pmm.storage.projection").build_identity, [*log.read_all()]
    assert build_identity(events)["name"] == "Ada"
    events[-1] = {**events[-1], "content": "Bea", "meta": {"name": "Bea"}}
    assert build_identity(events)["name"] == "Bea"


def test_rows_of_another_class(log: Any) -> None:
    log._conn.row_factory = sqlite3.Row
    log.append("user", "x")
    log.append("", "by PMM's own append")
    assert log.verify_chain()
    assert log.verify_chain()
    assert len(log.read_all()) == 7


def test_a_lock_of_another_kind(log: Any) -> None:
    log._lock = threading.Lock()
    assert log.append("user", "x") == 6
    assert log.read_all()[-1]["id"] == 6


# Functions of the tracker.


def test_a_tracker_over_an_append_of_a_test(log: Any) -> None:
    with mock.patch.object(type(log), "append", autospec=True, return_value=99) as append:
        assert len(_tracker(log).add_commitment("x y")) == 32
    assert [call.kwargs["kind"] for call in append.call_args_list] == ["commitment_open"]
    log.append("commitment_open", "o", {"cid": "a", "text": "t"})
    log.append = mock.Mock(side_effect=RuntimeError("full"))
    with pytest.raises(RuntimeError, match="full"):
        _tracker(log).add_commitment("z")
    _tracker(log)._ensure_project_open("p")
    _tracker(log)._assign_project_if_needed("a", "p")
    assert log.append.call_count == 4


def test_errors_of_a_helper_are_swallowed_where_pmm_does(log: Any) -> None:
    log.append("commitment_open", "o", {"cid": "a", "text": "t"})
    tracker = _tracker(log)
    with mock.patch.object(_tracker_module(), "build_self_model", side_effect=RuntimeError("broken")):
        assert tracker._resolve_project_for_cid("a") is None
        tracker._assign_project_if_needed("a", "p")
        tracker._ensure_project_open("q")
        for function in (lambda: tracker._recent_open_cids(2), lambda: tracker.process_evidence("x")):
            with pytest.raises(RuntimeError, match="broken"):
                function()
    assert [event["kind"] for event in log.read_all()[5:]] == ["commitment_open", "project_open"]


def _opened(log: Any, cid: Any, **meta: Any) -> None:
    log.append("commitment_open", "o", {"cid": cid, "text": f"text {cid}", **meta})


def _assign(log: Any, cid: Any, *projects: Any) -> None:
    for project in projects:
        log.append("project_assign", "", {"cid": cid, "project_id": project})


def test_the_project_of_a_commitment(log: Any) -> None:
    _opened(log, "own", project_id="p")
    _opened(log, "number", project_id=5)
    _opened(log, "none")
    _opened(log, 7)
    for cid in ("own", "number", "none", 7, "unknown"):
        _assign(log, cid, "first", "second", "", 5)
    resolve = _tracker(log)._resolve_project_for_cid
    assert [resolve(cid) for cid in ("own", "number", "none", 7, "7", "unknown", "never")] == [
        "p",
        *["second"] * 5,
        None,
    ]


def test_a_project_is_opened_once(log: Any) -> None:
    tracker = _tracker(log)
    for project in ("p", "p", "", None, 5, 5, "q"):
        tracker._ensure_project_open(project)
    assert [event["meta"]["project_id"] for event in log.read_all() if event["kind"] == "project_open"] == ["p", 5, "q"]


def test_an_assignment_is_made_once(log: Any) -> None:
    _opened(log, "own", project_id="p")
    _opened(log, "b")
    _opened(log, 7)
    _assign(log, 7, "before", "after")
    _assign(log, "b", "before", "after")
    tracker = _tracker(log)
    before = len(log.read_all())
    for cid, project in (
        ("own", "p"),
        ("b", "before"),
        (7, "before"),
        ("gone", "p"),
        ("", "p"),
        ("b", ""),
        ("b", None),
    ):
        tracker._assign_project_if_needed(cid, project)
    assert len(log.read_all()) == before
    for cid, project in (("own", "q"), ("b", "q"), (7, "q"), (7, "q"), ("b", "q")):
        tracker._assign_project_if_needed(cid, project)
    found = [(event["kind"], event["meta"]) for event in log.read_all()[before:]]
    assert found == [
        ("project_open", {"project_id": "q"}),
        *(("project_assign", {"cid": cid, "project_id": "q"}) for cid in ("own", "b", "7")),
    ]


@pytest.mark.parametrize(
    ("cid", "projects", "is_closed"),
    [
        ("b", ["p"], False),
        ("b", ["q", "p"], False),
        ("b", ["p", "q"], True),
        ("b", ["p", ""], True),
        ("b", ["p", 5], True),
        ("b", [], True),
        (7, ["p"], False),
        (7, ["p", "q"], True),
    ],
)
def test_a_project_with_other_open_commitments(log: Any, cid: Any, projects: list[Any], is_closed: bool) -> None:
    _opened(log, "a", project_id="p")
    _opened(log, cid)
    _assign(log, cid, *projects)
    assert _tracker(log).close_with_evidence("a", "done", "text")
    assert ("project_close" in [event["kind"] for event in log.read_all()]) is is_closed


@pytest.mark.parametrize("cid", ["b", 7])
def test_a_project_may_be_assigned_as_a_number(log: Any, cid: Any) -> None:
    _opened(log, "a", project_id="5")
    _opened(log, cid)
    _assign(log, cid, 5)
    assert _tracker(log).close_with_evidence("a", "done", "text")
    assert "project_close" not in [event["kind"] for event in log.read_all()]


def test_a_listener_hears_what_the_tracker_appends_at_once(log: Any) -> None:
    heard: list[str] = []
    log.register_append_listener(lambda event: heard.append(event["kind"]))
    _tracker(log)._ensure_project_open("p")
    assert heard == ["project_open"]


def test_commitments_of_one_tag_become_a_project(log: Any) -> None:
    tracker = _tracker(log)
    first = tracker.add_commitment("garden fence one")
    second = tracker.add_commitment("garden fences two")
    tracker._auto_project_id = lambda text: "mine"
    tracker.add_commitment("something else")
    tracker._auto_project_id = lambda text: None
    tracker.add_commitment("garden fence three")
    found = [(event["kind"], event["meta"].get("project_id")) for event in log.read_all()[5:]]
    assert found[:4] == [
        ("commitment_open", None),
        ("project_open", "garden-fence"),
        ("project_assign", "garden-fence"),
        ("commitment_open", "garden-fence"),
    ]
    assert found[4:] == [
        ("project_open", "mine"),
        ("project_assign", "mine"),
        ("project_assign", "mine"),
        ("commitment_open", "mine"),
        ("commitment_open", None),
    ]
    assert {first, second} <= {event["meta"].get("cid") for event in log.read_all()}


# The graph.


def test_a_slice_of_the_least_confidence_and_what_is_blocked(log: Any) -> None:
    for name, confidence in (("Ada", 0.9), ("Bea", 0.8)):
        log.append("identity_adopt", name, {"name": name, "confidence": confidence})
    graph = _runtime(log).memegraph
    rows = graph.graph_slice("identity", min_confidence=0.8)
    assert [row["src_event_id"] for row in rows] == [6, 7]
    assert len(graph.graph_slice("identity", min_confidence=0.81)) == 1
    for digest in ("src_digest", "dst_digest", "edge_digest"):
        left = graph.graph_slice("identity", min_confidence=0.8, recent_digest_blocklist=[rows[0][digest]])
        assert [row["src_event_id"] for row in left] == [7]


def test_a_text_that_is_an_object_is_the_callers_own(log: Any) -> None:
    log.append("commitment_open", "o", {"cid": "a", "text": {"x": [1]}})
    graph = _runtime(log).memegraph
    assert graph.open_commitments_snapshot()["a"]["text"] == {"x": [1]}
    graph.open_commitments_snapshot()["a"]["text"]["x"].append(2)


def test_stages_are_texts(log: Any) -> None:
    log.append("stage_update", "", {"from": 1, "to": 2})
    log.append("stage_update", "", {"from": 0, "to": "S1"})
    log.append("stage_update", "", {"from": "S1", "to": ""})
    graph = _runtime(log).memegraph
    assert graph.stage_history() == [(6, "1", "2"), (7, None, "S1")]
    assert graph.latest_stage() == "S1"


def test_odd_arguments(log: Any) -> None:
    log.append("commitment_open", "o", {"cid": 7, "text": "write report"})
    tracker = _tracker(log)
    assert tracker.process_evidence("write report done") == []
    assert tracker.process_evidence(5) == []
    assert tracker.close_reflection_on_next(5) is None
    assert tracker._resolve_project_for_cid([]) is None
    assert tracker.find_evidence((), []) == []
    assert tracker._recent_open_cids(-1) == []
    assert tracker._recent_open_cids(True) == [(7, 6)]
    assert tracker.sweep_for_expired(log.read_all(), "0") == [{"cid": "7", "reason": "timeout"}]
    with pytest.raises(TypeError):
        tracker.close_with_evidence([], "done", "d")
    with pytest.raises(TypeError):
        tracker.sweep_for_expired(log.read_all(), None)
    assert tracker.close_with_evidence(7, "done", "d")


def test_odd_seeds(log: Any) -> None:
    recall = import_module("pmm.runtime.recall").suggest_recall
    seeds = ([], [float("inf")], [None], ["1"], [True], iter([1, 2]), {1}, "12")
    found = [_ids_of(recall(log.read_all(), "m0 m1", semantic_seeds=seed)) for seed in seeds]
    assert found == [[], [], [], [1], [1], [1, 2], [1], [1, 2]]


@pytest.mark.parametrize("seeds", [None, [1, 2, 3, 4, 5]])
@pytest.mark.parametrize(("max_items", "found"), [(3, [1, 2, 3]), (9, [1, 2, 3, 4]), (0, [1]), (-1, [1])])
def test_the_newest_event_is_not_recalled_and_ties_are_in_order(
    log: Any, seeds: list[int] | None, max_items: int, found: list[int]
) -> None:
    recall = import_module("pmm.runtime.recall").suggest_recall
    text = "m0 m1 m2 m3 m4"
    assert _ids_of(recall(log.read_all(), text, max_items=max_items, semantic_seeds=seeds)) == found


def _ids_of(suggestions: Any) -> list[int]:
    return [one["eid"] for one in suggestions]


# What is left behind.


def test_logs_by_the_hundreds_are_left_to_the_garbage_collector(tmp_path: Path, patcher: Patcher | None) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for number in range(40):
            log = _open(tmp_path / f"{number}.db")
            log.append("user", "x")
            assert len(log.read_all()) == 1
        # Those of PMM's connections stay, too: 3 each.
        assert len(os.listdir("/proc/self/fd")) - before < 40 * 9.5
    finally:
        gc.enable()
    assert patcher is None or sum(one._connection.is_open for one in ledgers._ledgers.values()) <= 9
    with suppress(OSError):
        assert not any(path.name.startswith("40") for path in tmp_path.iterdir())
    assert {path.name.partition(".db")[2] for path in tmp_path.iterdir()} <= {"", "-wal", "-shm"}


def test_nothing_is_said_and_no_thread_stays(log: Any, capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    runtime = _runtime(log)
    runtime.handle_user("I will write the identity report")
    import_module("pmm.runtime.loop").AutonomyLoop(log, runtime).tick()
    assert threading.active_count() == before
    assert capfd.readouterr() == ("", "")
