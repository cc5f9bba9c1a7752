"""What is said to two agents of the stand-in for PMM, side by side: a Hypothesis machine, and what it draws from."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support import run_golden
from tests.support.profiles import examples
from tests.support.standin_ab import Pair

WORDS = (
    "identity",
    "report",
    "Report",
    "write",
    "tests",
    "launch",
    "SIGNAL",
    "名前",
    "naïve",
    "İx",
    "memory",
    "reviews",
)
CIDS = st.sampled_from(["a", "b", "c", "d", 7, "7"])
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
NUMBERS = st.sampled_from([0.0, 0.3, 0.5, 0.86, 0.9, 1, 2])


def _event(kind: str, content: st.SearchStrategy[str] = TEXTS, **meta: Any) -> st.SearchStrategy[Any]:
    """`(kind, content, meta)`; a key whose value is drawn as None is left out."""
    drawn = st.fixed_dictionaries(meta).map(lambda made: {key: made[key] for key in made if made[key] is not None})
    return st.tuples(st.just(kind), content, drawn)


TELEMETRY = st.fixed_dictionaries({"IAS": NUMBERS, "GAS": NUMBERS})
PROJECTS = st.sampled_from(["p", "q", "", None])
EVENTS = st.one_of(
    _event("user"),
    _event("response"),
    _event("reflection", telemetry=st.none() | TELEMETRY),
    _event("autonomy_tick", telemetry=TELEMETRY),
    _event("identity_adopt", name=TEXTS | st.none(), confidence=NUMBERS),
    _event("identity_clear"),
    _event("identity_change", content=TEXTS.map(lambda text: f"Name changed to: {text}")),
    _event("trait_update", trait=st.sampled_from(["o", "Openness", "x"]), delta=NUMBERS),
    _event(
        "commitment_open",
        cid=CIDS,
        text=TEXTS | st.none(),
        reason=st.sampled_from(["reflection", None]),
        project_id=PROJECTS,
    ),
    _event("commitment_close", cid=CIDS, source=st.sampled_from(["reflection", None])),
    _event("commitment_expire", cid=CIDS),
    _event("commitment_snooze", cid=CIDS, until_tick=st.integers(0, 30) | st.just("x")),
    _event("evidence_candidate", cid=CIDS, snippet=TEXTS),
    _event("project_open", project_id=PROJECTS),
    _event("project_assign", cid=CIDS, project_id=PROJECTS),
    _event("project_close", project_id=PROJECTS),
    _event("metrics_update", IAS=NUMBERS, GAS=NUMBERS),
    _event("invariant_violation", code=TEXTS),
    _event("stage_update", to=st.sampled_from(["S0", "S1", ""])),
    _event("policy_update", src_id=st.integers(0, 9)),
    _event("autonomy_directive", source=TEXTS),
    _event("directive", name=st.just("ngram_repeat_telemetry"), value=st.sampled_from(["on", "off", "x", None])),
    _event("scene_compact", window=st.fixed_dictionaries({"start": st.integers(0, 9), "end": st.integers(0, 9)})),
    _event("embedding_indexed", eid=st.integers(0, 9)),
)
# What no version of PMM writes on purpose. No cid that cannot be hashed and no confidence that is no number: there PMM
# raises.
_ODD = st.sampled_from([0, -1, True, "", "x", [], ["a"], {}, {"a": 1}, 1e400, 2**70, "\ud800", None])
ODD_EVENTS = st.one_of(
    _event("commitment_open", content=st.sampled_from(["", "\x00", "a\nb"]), cid=CIDS, text=_ODD, reason=_ODD),
    _event("commitment_close", cid=CIDS, source=_ODD),
    _event("commitment_expire", cid=CIDS, reason=_ODD),
    _event("commitment_snooze", cid=CIDS, until_tick=_ODD),
    _event("evidence_candidate", cid=CIDS, snippet=_ODD, evidence_type=_ODD),
    _event("identity_adopt", name=_ODD, sanitized=_ODD),
    _event("identity_change", name=_ODD),
    _event("trait_update", trait=_ODD, delta=_ODD),
    _event("trait_update", delta=st.dictionaries(st.sampled_from(["o", "E", "openness", "x"]), _ODD, max_size=3)),
    _event("autonomy_tick", telemetry=_ODD | st.fixed_dictionaries({"IAS": _ODD, "GAS": NUMBERS})),
    _event("metrics_update", IAS=_ODD, GAS=NUMBERS),
    _event("project_open", project_id=_ODD),
    _event("project_assign", cid=_ODD, project_id=_ODD),
    _event("stage_update", to=_ODD),
    _event("policy_update", src_id=_ODD, source_event_id=_ODD),
    _event("directive", name=_ODD, value=_ODD, state=_ODD),
    _event("autonomy_directive", source=_ODD, origin_eid=_ODD),
    _event("scene_compact", window=_ODD | st.fixed_dictionaries({"start": _ODD, "end": _ODD})),
)
LISTS = st.one_of(
    st.sampled_from([["live"], ["copy"], ["reversed"], ["equal"], ["kind", "autonomy_tick"], ["without", "user"]]),
    st.tuples(st.just("slice"), st.integers(-9, 9), st.none() | st.integers(-9, 99)),
    st.tuples(st.just("upto"), st.integers(0, 99)),
    st.tuples(st.just("tail"), st.integers(1, 20)),
)
REPLIES = st.one_of(
    TEXTS,
    TEXTS.map(lambda text: f"I will {text}"),
    TEXTS.map(lambda text: f"Done: {text}. I will review it"),
)


def _call(name: str, *args: Any, **kwargs: Any) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), st.tuples(*args), st.fixed_dictionaries(kwargs))


LIST = st.builds(lambda recipe: {"$list": list(recipe)}, LISTS)
ITEMS = st.lists(st.fixed_dictionaries({"cid": CIDS, "text": TEXTS | st.none()}), max_size=3)
CALLS = st.one_of(
    _call("fold.all", LIST),
    _call("tracker.find_evidence", LIST, ITEMS, recent_window=st.integers(-1, 5)),
    _call("tracker.process_evidence", TEXTS.map(lambda text: f"Done: {text}")),
    _call("tracker.close_with_evidence", CIDS, st.just("done"), TEXTS, artifact=TEXTS | st.none()),
    _call("tracker.add_commitment", TEXTS, source=TEXTS | st.none(), project=PROJECTS),
    _call("tracker._recent_open_cids", st.integers(-1, 5)),
    _call("tracker._is_duplicate_of_recent_open", TEXTS),
    _call("tracker._resolve_project_for_cid", CIDS),
    _call("tracker._ensure_project_open", PROJECTS),
    _call("tracker._assign_project_if_needed", CIDS, PROJECTS),
    _call("tracker.close_reflection_on_next", TEXTS),
    _call("tracker.sweep_for_expired", LIST, ttl_ticks=st.integers(0, 6)),
    _call("recall.suggest_recall", LIST, TEXTS, semantic_seeds=st.none() | st.lists(st.integers(0, 50), max_size=9)),
    _call("scene_compactor.maybe_compact", LIST, threshold=st.integers(1, 30)),
    _call("runtime._ngram_repeat_telemetry_enabled"),
    _call("memegraph.latest_stage"),
    _call("memegraph.stage_history"),
    _call("memegraph.open_commitments_snapshot"),
    _call("memegraph.policy_updates_for_reflection", st.integers(0, 9)),
    _call("memegraph.graph_slice", TEXTS, limit=st.integers(0, 5), min_confidence=st.sampled_from([0.4, 0.6, 0.9])),
    _call("memegraph.neighbors", st.integers(0, 30)),
    _call("restructurer.consolidate_similar", threshold=NUMBERS),
    _call("metrics.get_or_compute_ias_gas"),
    _call("eventlog.verify_chain"),
    _call("eventlog.read_tail", limit=st.integers(1, 9)),
    _call("eventlog.read_after_id", after_id=st.integers(-1, 60), limit=st.integers(0, 9)),
    _call("eventlog.query", limit=st.integers(0, 9)),
    _call("eventlog.get_event", st.integers(0, 60)),
)
OFF = {"PMM_SHM_DAEMON": "off"}
CACHES = {"PMM_USE_PROJECTION_CACHE": "1", "PMM_USE_METRICS_CACHE": "1"}


def _pmm_raises(events: list[Any]) -> bool:
    """Whether PMM's metrics raise: the one known deviation."""
    for event in events:
        if event["kind"] == "identity_adopt":
            try:
                float(event["meta"].get("confidence", 0.0))
            except (TypeError, ValueError):
                return True
    return False


BEGINNINGS = tuple(name for name in run_golden.names() if not _pmm_raises(run_golden.case(name)["events"]))


def machine(agents: Pair) -> type[RuleBasedStateMachine]:
    """Whatever may happen to two agents."""

    class Life(RuleBasedStateMachine):
        @initialize(name=st.sampled_from(BEGINNINGS))
        def begin(self, name: str) -> None:
            self._folder = run_golden.folder()
            agents.begin(self._folder.__enter__(), run_golden.case(name)["events"])

        @rule(text=TEXTS, reply=REPLIES, meanwhile=st.lists(EVENTS | st.none(), max_size=2))
        def message(self, text: str, reply: str, meanwhile: Any) -> None:
            agents.step(("message", text, reply, meanwhile))

        @rule()
        def tick(self) -> None:
            agents.step(("tick",))

        @rule(event=ODD_EVENTS, is_foreign=st.booleans())
        def append_what_is_odd(self, event: Any, is_foreign: bool) -> None:
            agents.step(("foreign" if is_foreign else "append", *event))

        @rule(event=EVENTS)
        def append(self, event: Any) -> None:
            agents.step(("append", *event))

        @rule(event=st.sampled_from([(None, "x", {}), ("x", None, {})]))
        def append_nothing(self, event: Any) -> None:
            agents.step(("append", *event))

        @rule(events=st.lists(EVENTS, min_size=1, max_size=3))
        def others_append(self, events: Any) -> None:
            for event in events:
                agents.step(("foreign", *event))

        @rule(call=CALLS)
        def call(self, call: Any) -> None:
            agents.step(("call", *call))

        @rule()
        def restart(self) -> None:
            agents.step(("restart",))

        @rule()
        def look(self) -> None:
            agents.step(("state",))

        def teardown(self) -> None:
            try:
                agents.end()
            finally:
                self._folder.__exit__(None, None, None)

    return Life


def run(agents: Pair, count: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: machine(agents)(), settings=settings(max_examples=examples(count), stateful_step_count=20)
    )
