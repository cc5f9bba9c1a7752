"""The snapshot of PMM's runtime on the shared cache, and the short lists of a message."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.ledger.source.roles import SourceRole
from pmm_shm_pmm import autonomy, installing, sparse
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.lists import frame_of, log_behind, recognised
from pmm_shm_pmm.log import log_of
from pmm_shm_pmm.settings import RunSettings
from pmm_shm_pmm.sparse import SparseList
from tests.support import run_golden, standin_package
from tests.support.golden_cases import canonical
from tests.support.standin_ab import append_as_another

COUNT = 1_500
KINDS = ["user", "response", "reflection", "embedding_indexed", "note", "commitment_open"]


@pytest.fixture
def events() -> list[dict[str, Any]]:
    """A log whose rare kinds are all far from its end, and whose end is of one kind."""
    chance = random.Random(5)
    made: list[tuple[str, str, dict[str, Any]]] = []
    for number in range(COUNT):
        kind = chance.choice(KINDS) if number < 900 else "embedding_indexed"
        content = chance.choice(["", " ", "a plan of the garden", "my identity"]) if kind != "note" else "x"
        made.append((kind, content, {"cid": str(number), "text": content, "eid": number} if number % 3 else {}))
    made[20] = ("identity_adopt", "Ada", {"name": "Ada", "confidence": 0.9})
    made[30] = ("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": 0.25}})
    made[40] = ("scene_compact", "", {"window": {"start": 1, "end": 1_450}})
    made[50] = ("reflection", "the source of an insight", {})
    made[60] = ("insight_ready", "", {"from_event": 51})
    made[70] = ("model_switch", "", {})
    return [
        {"id": number, "ts": "2025-01-01T00:00:00+00:00", "kind": kind, "content": content, "meta": meta}
        for number, (kind, content, meta) in enumerate(made, 1)
    ]


@pytest.fixture
def path(tmp_path: Path, events: list[dict[str, Any]]) -> Path:
    run_golden.make_ledger(tmp_path / "log.db", events)
    return tmp_path / "log.db"


@pytest.fixture
def launched() -> Iterator[None]:
    with standin_package.importable():
        installing.install(RunSettings(starts_daemon=False), standin_package.hashes())
        yield
        installing.uninstall()


@pytest.fixture
def runtime(launched: None, path: Path) -> Any:
    return new_runtime(path)


def new_runtime(path: Path) -> Any:
    from pmm.runtime.loop import Runtime
    from pmm.storage.eventlog import EventLog

    return Runtime(EventLog(str(path)))


def during(runtime: Any, look: Callable[[Any], Any]) -> Any:
    """What `look` gives for the snapshot as `handle_user` gets it, while that runs."""
    found: list[Any] = []
    prompt = runtime._prompt

    def looks(snapshot: Any, events: Any) -> Any:
        found.append(look(snapshot))
        return prompt(snapshot, events)

    runtime._prompt = looks
    runtime.handle_user("hello")
    del runtime._prompt
    return found[0]


# The snapshot.


def test_a_snapshot_is_kept_until_an_event(runtime: Any) -> None:
    log = runtime.eventlog
    first = runtime._get_snapshot()
    assert runtime._get_snapshot() is first is runtime._snapshot_cache
    assert first.last_event_id == COUNT
    assert first.identity["name"] == "Ada"
    assert first.identity is not first.self_model["identity"]
    assert (first.ias, first.gas) == frame_of(first.events).metrics()[:2]
    log.append("user", "own")
    assert runtime._snapshot_cache is None
    assert runtime._get_snapshot().last_event_id == COUNT + 1
    append_as_another(Path(log.path), "identity_adopt", "Eve", {"name": "Eve", "confidence": 1.0})
    after = runtime._get_snapshot()
    assert (after.last_event_id, after.identity["name"]) == (COUNT + 2, "Eve")
    assert len(first.events) == COUNT
    assert first.events is not log.read_all()
    assert after.events[-1] is log.read_all()[-1]
    assert list(first.events) == list(log.read_all())[:COUNT]


def test_a_snapshot_that_a_test_has_put_there_stays(runtime: Any) -> None:
    runtime._snapshot_cache = mine = object()
    assert runtime._get_snapshot() is mine


def test_the_folds_are_looked_up_when_a_snapshot_is_made(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pmm.runtime.loop as loop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "build_identity", lambda events: {"name": f"of {len(events)}"})
        patch.setattr(loop.StageTracker, "infer_stage", staticmethod(lambda events: ("S9", {})))
        assert runtime._get_snapshot().identity == {"name": f"of {COUNT}"}
        assert runtime._get_snapshot().stage == "S9"
        runtime.eventlog.append("user", "x")

        def fails(events: Any) -> Any:
            raise KeyError("of a test")

        patch.setattr(loop, "compute_ias_gas", fails)
        with pytest.raises(KeyError, match="of a test"):
            runtime._get_snapshot()
    assert runtime._get_snapshot().stage == "S0"


def test_the_snapshot_of_an_empty_log(launched: None, tmp_path: Path) -> None:
    snapshot = new_runtime(tmp_path / "empty.db")._get_snapshot()
    assert (snapshot.events, snapshot.last_event_id) == ([], 0)


def test_a_runtime_on_something_else_is_pmm_s_own(runtime: Any) -> None:
    class Log:
        def read_all(self) -> list[Any]:
            return [{"id": 7, "ts": "", "kind": "user", "content": "x", "meta": {}}]

    runtime.eventlog = Log()
    assert runtime._get_snapshot().last_event_id == 7


def test_a_log_restored_in_place_has_another_snapshot(runtime: Any, tmp_path: Path) -> None:
    import sqlite3

    run_golden.make_ledger(
        tmp_path / "other.db",
        [
            {
                "id": number,
                "ts": "2025",
                "kind": "identity_adopt",
                "content": "",
                "meta": {"name": "Other", "confidence": 1},
            }
            for number in range(1, COUNT + 1)
        ],
    )
    before = runtime._get_snapshot()
    source, target = sqlite3.connect(tmp_path / "other.db"), sqlite3.connect(runtime.eventlog.path)
    source.backup(target)
    source.close()
    target.close()
    after = runtime._get_snapshot()
    assert (before.last_event_id, after.last_event_id) == (COUNT, COUNT)
    assert after.identity["name"] == "Other"


# Short lists.


def test_handle_user_gets_a_short_list_with_all_it_looks_at(runtime: Any, events: list[dict[str, Any]]) -> None:
    snapshot = during(runtime, lambda snapshot: snapshot)
    short = snapshot.events
    assert type(short) is SparseList
    assert snapshot.last_event_id == COUNT
    assert short == [event for event in events if event in short]
    assert len(short) < 260
    assert short[-200:] == events[-200:]

    def newest(count: int, is_wanted: Callable[[dict[str, Any]], bool]) -> tuple[Any, Any]:
        return [event for event in short if is_wanted(event)][-count:], [e for e in events if is_wanted(e)][-count:]

    for kind in ("autonomy_tick", "identity_adopt", "response", "model_switch", "scene_compact", "insight_ready"):
        mine, theirs = newest(1, lambda event, kind=kind: event["kind"] == kind)
        assert mine == theirs != []
    for count, is_wanted in (
        (3, lambda event: event["kind"] == "reflection"),
        (3, lambda event: event["kind"] == "reflection" and event["content"].strip()),
        (6, lambda event: event["kind"] in ("user", "response") and event["content"].strip()),
        (8, lambda event: event["kind"] != "embedding_indexed"),
    ):
        mine, theirs = newest(count, is_wanted)
        assert mine == theirs
        assert len(mine) == count
    assert events[50] in short


@pytest.mark.parametrize("kind", ["user", "response"])
def test_the_newest_messages_may_all_be_of_one_kind(launched: None, tmp_path: Path, kind: str) -> None:
    events = [
        {"id": number, "ts": "", "kind": "embedding_indexed", "content": "", "meta": {}} for number in range(1, COUNT)
    ]
    for number in range(3, 20):
        events[number] |= {"kind": kind, "content": "x" if number % 2 else " "}
    run_golden.make_ledger(tmp_path / "log.db", events)
    runtime = new_runtime(tmp_path / "log.db")
    said = [event["id"] for event in during(runtime, lambda snapshot: snapshot.events) if event["content"] == "x"]
    assert said[-6:] == [10, 12, 14, 16, 18, 20]


def test_others_get_the_whole_list(runtime: Any) -> None:
    from pmm.runtime.loop import AutonomyLoop

    def look(snapshot: Any) -> None:
        assert len(snapshot.events) < COUNT
        assert len(runtime._get_snapshot().events) == COUNT
        assert len(runtime._snapshot_cache.events) == COUNT

    during(runtime, look)
    assert len(runtime._get_snapshot().events) == len(runtime.eventlog.read_all())
    tick = runtime.eventlog.get_event(AutonomyLoop(runtime.eventlog, runtime).tick())
    assert tick["meta"]["is_whole"]
    assert tick["meta"]["ticks"] == 1


def test_folds_over_a_short_list_are_those_of_the_log(runtime: Any) -> None:
    import pmm.runtime.loop as loop

    def look(snapshot: Any) -> Any:
        whole = runtime._get_snapshot().events
        expected = [loop.build_identity(whole), loop.compute_ias_gas(whole), loop.build_directives(whole)]
        expected += [loop.suggest_recall(whole, "the garden plan"), loop.maybe_compact(whole, threshold=40)]
        expected += [loop.suggest_recall(whole, "the garden plan", semantic_seeds=[5, 300, 600, 1_490])]
        for events in (snapshot.events, list(snapshot.events), snapshot.events[:], pickle.loads(pickle.dumps(whole))):
            found = [loop.build_identity(events), loop.compute_ias_gas(events), loop.build_directives(events)]
            found += [loop.suggest_recall(events, "the garden plan"), loop.maybe_compact(events, threshold=40)]
            found += [loop.suggest_recall(events, "the garden plan", semantic_seeds=[5, 300, 600, 1_490])]
            assert found == expected
        # What falls back gets the whole list, too.
        long = loop.suggest_recall(whole, "the garden plan", max_items=True)
        assert loop.suggest_recall(list(snapshot.events), "the garden plan", max_items=True) == long != []
        copy = list(snapshot.events)
        assert log_behind(copy)[1] == log_behind(snapshot.events)[1] == COUNT
        for short in (copy, snapshot.events, copy[1:], copy[:-1]):
            with pytest.raises(Fallback):
                recognised(short)
        return snapshot.events, copy

    short, copy = during(runtime, look)
    # A copy means nothing once the message is answered.
    assert log_behind(short)[1] == COUNT
    with pytest.raises(Fallback):
        log_behind(copy)


def test_later_snapshots_of_a_message_have_its_events(runtime: Any) -> None:
    log = runtime.eventlog
    chat, found = runtime.chat, []

    class Chat:
        def generate(self, messages: Any) -> Any:
            for number in range(300):
                append_as_another(Path(log.path), "note", str(number), {})
            found.append(sparse._turns.current.snapshot(runtime._get_snapshot(), log_of(log).ledger.loaded).events)
            return chat.generate(messages)

    runtime.chat = Chat()
    runtime.handle_user("hello")
    assert [event["id"] for event in found[0] if event["id"] > COUNT] == list(range(COUNT + 1, COUNT + 305))


def test_a_short_log_is_given_whole(launched: None, tmp_path: Path) -> None:
    runtime = new_runtime(tmp_path / "short.db")
    assert type(during(runtime, lambda snapshot: snapshot.events)) is not SparseList


@pytest.mark.parametrize("name", ["suggest_recall", "build_identity"])
def test_with_a_fold_of_a_test_lists_are_whole(runtime: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import pmm.runtime.loop as loop

    original = getattr(loop, name)
    monkeypatch.setattr(loop, name, lambda *args, **kwargs: original(*args, **kwargs))
    assert during(runtime, lambda snapshot: len(snapshot.events)) == COUNT


@pytest.mark.parametrize("name", ["Runtime.handle_user", "Runtime._get_snapshot"])
def test_with_an_unknown_source_lists_are_whole(path: Path, name: str) -> None:
    known = {**standin_package.hashes(), f"pmm.runtime.loop:{name}": "another"}
    with standin_package.importable():
        installing.install(RunSettings(starts_daemon=False), known)
        assert during(new_runtime(path), lambda snapshot: len(snapshot.events)) == COUNT
        installing.uninstall()


@pytest.mark.parametrize("part", ["recall", "compactor", "projection", "lazy"])
def test_without_a_part_lists_are_whole(path: Path, part: str) -> None:
    with standin_package.importable():
        parts = RunSettings().parts - {part}
        installing.install(RunSettings(parts=parts, starts_daemon=False), standin_package.hashes())
        assert during(new_runtime(path), lambda snapshot: len(snapshot.events)) == COUNT
        installing.uninstall()


def test_messages_are_answered_as_without(path: Path, tmp_path: Path) -> None:
    def life(place: Path) -> Any:
        runtime = new_runtime(place)
        prompts: list[Any] = []
        chat = runtime.chat

        class Chat:
            def generate(self, messages: Any) -> Any:
                prompts.append(messages)
                return chat.generate(messages)

        runtime.chat = Chat()
        replies = [runtime.handle_user(text) for text in ("a plan", "my identity", "of the garden")]
        found = [(event["id"], event["kind"], event["content"], event["meta"]) for event in runtime.eventlog.read_all()]
        return canonical([prompts, replies, found[COUNT:]])

    import shutil

    shutil.copyfile(path, tmp_path / "plain.db")
    with standin_package.importable():
        plain = life(tmp_path / "plain.db")
    with standin_package.importable():
        installing.install(RunSettings(starts_daemon=False), standin_package.hashes())
        launched = life(path)
        installing.uninstall()
    assert launched == plain


# The autonomy of a replica.


class _AnyRole(SourceRole):
    """A role that nobody has, as long as `is_free`."""

    def __init__(self) -> None:
        self.is_free = True
        self.claims = 0
        self.claimed = threading.Event()

    def claim(self) -> bool:
        self.claims += 1
        if self.claims > 2:
            self.claimed.set()
        if self.claims == 2:
            raise RuntimeError("no server for a moment")
        return self.is_free

    def is_held(self, for_s: float = 0.0) -> bool:
        return self.is_free


def test_on_a_replica_the_lease_of_all_hosts_is_needed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROLE_LEASE_S", 0.01)
    role, ledger = _AnyRole(), str(tmp_path / "log.db")
    cache: Any = SimpleNamespace(role=lambda name: role)
    assert autonomy.holds_role(ledger, cache)
    # It is renewed between ticks, also after an error.
    assert role.claimed.wait(10)
    role.is_free = False
    assert not autonomy.holds_role(ledger, cache)
    assert autonomy.holds_lock(ledger)
    role.is_free = True
    monkeypatch.setattr(autonomy, "holds_lock", lambda ledger: False)
    assert not autonomy.holds_role(ledger, cache)


def test_elsewhere_the_lock_of_the_host_is_enough(runtime: Any) -> None:
    shared = log_of(runtime.eventlog)
    assert autonomy.holds_role(shared.path, shared.cache)
    assert autonomy._leases[shared.path] is None
