"""The functions that stand for PMM's, against the plain and slow ones of the stand-in, on random ledgers."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm_pmm.patching import Patcher
from tests.support import standin_package
from tests.support.launched import launched
from tests.support.pmm_events import cids, event, odd_event, projects, texts
from tests.support.profiles import examples
from tests.support.run_golden import make_ledger

_MODULES = (
    "pmm.storage.eventlog",
    "pmm.commitments.tracker",
    "pmm.commitments.restructuring",
    "pmm.runtime.recall",
    "pmm.runtime.scene_compactor",
    "pmm.runtime.memegraph",
    "pmm.runtime.loop",
)
Modules = dict[str, ModuleType]
_ODD_REASON = "a cid that is neither text nor a number"


class _Both(NamedTuple):
    plain: Modules
    launched: Modules
    patcher: Patcher
    folder: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Both]:
    with standin_package.importable():
        plain = {name.rpartition(".")[2]: import_module(name) for name in _MODULES}
    with launched(strict=False) as patcher:
        mine = {name.rpartition(".")[2]: import_module(name) for name in _MODULES}
        yield _Both(plain, mine, patcher, tmp_path_factory.mktemp("ledgers"))


_numbers = itertools.count()


def _ledger(folder: Path, events: list[Any], gap: int) -> Path:
    path = folder / f"{next(_numbers)}.db"
    made = [
        {
            "id": 1 + place + gap * (place > 3),
            "ts": f"2025-01-01T00:00:{place:02}.000001+00:00",
            "kind": kind,
            "content": content,
            "meta": meta,
        }
        for place, (kind, content, meta) in enumerate(events)
    ]
    make_ledger(path, made)
    return path


def _outcome(modules: Modules, path: Path, call: Callable[[Modules, Any], Any]) -> tuple[Any, Any]:
    copy = path.with_suffix(f".{next(_numbers)}.db")
    shutil.copyfile(path, copy)
    log = modules["eventlog"].EventLog(str(copy))
    count = len(log.read_all())
    try:
        result: Any = ("gives", call(modules, log))
    except Exception as error:
        result = ("raises", type(error).__name__)
    log._conn.close()
    with sqlite3.connect(copy) as connection:
        rows = connection.execute("SELECT kind, content, meta FROM events ORDER BY id").fetchall()[count:]
    connection.close()
    copy.unlink()
    if result[0] == "gives" and isinstance(result[1], str) and len(result[1]) == 32:
        rows = [tuple(part.replace(result[1], "<cid>") for part in row) for row in rows]
        result = ("gives", "<cid>")
    return json.loads(json.dumps(result)), rows


def _tracker(name: str, *args: Any, **kwargs: Any) -> Callable[[Modules, Any], Any]:
    return lambda modules, log: getattr(modules["tracker"].CommitmentTracker(log), name)(*args, **kwargs)


def _graph(name: str, *args: Any, **kwargs: Any) -> Callable[[Modules, Any], Any]:
    return lambda modules, log: getattr(modules["memegraph"].MemeGraphProjection(log), name)(*args, **kwargs)


_call = st.one_of(
    st.builds(lambda cid: _tracker("close_with_evidence", cid, "done", "d"), st.sampled_from(["a", "b", "7", 7])),
    st.builds(lambda text: _tracker("process_evidence", text), texts),
    st.builds(lambda text, project: _tracker("add_commitment", text, project=project), texts, projects),
    st.builds(lambda cid: _tracker("_resolve_project_for_cid", cid), cids),
    st.builds(
        lambda cid, project: _tracker("_assign_project_if_needed", cid, project), cids, st.sampled_from(["p", "q", ""])
    ),
    st.builds(lambda project: _tracker("_ensure_project_open", project), st.sampled_from(["p", "q", "", "r", 5])),
    st.builds(lambda n: _tracker("_recent_open_cids", n), st.integers(-1, 4)),
    st.builds(lambda text: _tracker("_is_duplicate_of_recent_open", text), texts),
    st.builds(lambda reply: _tracker("close_reflection_on_next", reply), st.sampled_from(["ok ", None, "x" * 300])),
    st.builds(
        lambda ttl: (
            lambda modules, log: modules["tracker"].CommitmentTracker(log).sweep_for_expired(log.read_all(), ttl)
        ),
        st.integers(-1, 4),
    ),
    st.builds(
        lambda ttl, end: (
            lambda modules, log: (
                modules["tracker"]
                .CommitmentTracker(log)
                .sweep_for_expired(
                    [event for event in log.read_all()[:end] if event["kind"] != "commitment_expire"], ttl
                )
            )
        ),
        st.integers(0, 2),
        st.integers(0, 20),
    ),
    st.builds(
        lambda threshold: (
            lambda modules, log: modules["restructuring"].CommitmentRestructurer(log).consolidate_similar(threshold)
        ),
        st.sampled_from([0.9, 0.5, 0.0, 1.0, 0.3]),
    ),
    st.builds(
        lambda text, n, seeds: (
            lambda modules, log: modules["recall"].suggest_recall(
                log.read_all(), text, max_items=n, semantic_seeds=seeds
            )
        ),
        st.sampled_from(["the REPORT, write it", "launch", "", "plan the alpha budget"]),
        st.integers(0, 4),
        st.one_of(st.none(), st.lists(st.sampled_from([1, 2, 3, "4", 5, 6, 9, 12, 15, "x"]), max_size=6)),
    ),
    st.builds(
        lambda threshold: (
            lambda modules, log: modules["scene_compactor"].maybe_compact(log.read_all(), threshold=threshold)
        ),
        st.integers(1, 9),
    ),
    st.just(
        lambda modules, log: modules["loop"].Runtime._ngram_repeat_telemetry_enabled(SimpleNamespace(eventlog=log))
    ),
    st.sampled_from([_graph("latest_stage"), _graph("stage_history"), _graph("open_commitments_snapshot")]),
    st.builds(lambda event_id: _graph("policy_updates_for_reflection", event_id), st.integers(0, 5)),
    st.builds(
        lambda topic, limit, least: _graph("graph_slice", topic, limit=limit, min_confidence=least),
        st.sampled_from(["identity", "my identity", "en", "x event", "nothing"]),
        st.integers(0, 3),
        st.sampled_from([0.6, 0.51, 0.7, 0.95]),
    ),
    st.just(lambda modules, log: modules["eventlog"].EventLog.verify_chain(log)),
)


def _same(both: _Both, events: list[Any], gap: int, calls: list[Callable[[Modules, Any], Any]]) -> None:
    path = _ledger(both.folder, events, gap)
    for call in calls:
        assert _outcome(both.launched, path, call) == _outcome(both.plain, path, call)
    path.unlink()


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(event, max_size=25), st.sampled_from([0, 5]), st.lists(_call, min_size=5, max_size=5))
def test_each_function_does_what_the_plain_one_does(
    both: _Both, events: list[Any], gap: int, calls: list[Callable[[Modules, Any], Any]]
) -> None:
    before = {label: sum(one.fallbacks.values()) for label, one in both.patcher.counts.items()}
    _same(both, events, gap, calls)
    after = {label: sum(one.fallbacks.values()) for label, one in both.patcher.counts.items()}
    # Only a function that raises as the plain one does may have asked it; and plain functions that import within
    # themselves get the launched ones, which do not know their lists.
    assert {label for label in after if after[label] != before.get(label, 0)} <= {
        "pmm.storage.projection:build_self_model",
        "pmm.runtime.metrics:compute_ias_gas",
        "pmm.runtime.recall:suggest_recall",
        "pmm.runtime.scene_compactor:maybe_compact",
    }


@settings(max_examples=examples(25), deadline=None)
@given(st.lists(odd_event, max_size=20), st.lists(_call, min_size=4, max_size=4))
def test_odd_ids_give_the_same(both: _Both, events: list[Any], calls: list[Callable[[Modules, Any], Any]]) -> None:
    _same(both, events, 0, calls)


_WORDS = """
write writes writing wrote written test tests tested testing box boxes ring rings report repor reports Report! a b as es
ing 名前 café naïve red used ledger ledgers x1 12 \u0130stanbul stra\u00dfe plan plane plans
"""
_word = st.sampled_from(_WORDS.split())
_phrase = st.lists(_word, max_size=8).map(" ".join)
_message = st.fixed_dictionaries(
    {"kind": st.sampled_from(["user", "response", "reflection", "other"]), "content": _phrase}
)
_item = st.fixed_dictionaries(
    {}, optional={"cid": st.sampled_from(["a", "b", "", 7, None]), "text": st.one_of(_phrase, st.none(), st.just(5))}
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_message, max_size=6), st.lists(_item, max_size=5), st.integers(-1, 4))
def test_evidence_is_that_of_the_plain_function(
    both: _Both, events: list[Any], items: list[Any], recent_window: int
) -> None:
    found = [
        modules["tracker"].CommitmentTracker(None).find_evidence(events, items, recent_window)
        for modules in (both.plain, both.launched)
    ]
    assert found[0] == found[1]
    assert [str(score) for _, score, _ in found[0]] == [str(score) for _, score, _ in found[1]]
