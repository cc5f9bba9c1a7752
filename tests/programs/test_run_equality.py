"""A launched PMM says and appends what a plain one does, whatever happens to the log: two stand-ins, side by side."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import pmm_ledger
from tests.support import run_golden, standin_ab, standin_package
from tests.support.profiles import examples
from tests.support.standin_ab import AgentProcess, Crew, Pair
from tests.support.standin_machine import BEGINNINGS, CACHES, CALLS, EVENTS, OFF, REPLIES, TEXTS, run


def test_two_plain_agents_agree() -> None:
    with standin_ab.pair(plain=True) as agents:
        run(agents, 20)


@pytest.fixture(scope="module", params=[OFF, {**OFF, **CACHES}, {}], ids=["no daemon", "caches of PMM", "daemon"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A plain agent and a launched one."""
    with standin_ab.pair(variables=request.param) as agents:
        yield agents


def test_a_launched_agent_does_what_a_plain_one_does(pair: Pair) -> None:
    run(pair, 60)


@pytest.fixture(scope="module")
def launched() -> Iterator[AgentProcess]:
    with AgentProcess("--launched", variables=OFF) as agent:
        yield agent


@pytest.mark.parametrize("name", run_golden.names())
def test_a_launched_agent_gives_the_golden_answers(launched: AgentProcess, name: str) -> None:
    assert launched.do("golden", name=name)["result"] == []


def test_no_golden_call_was_an_error_of_ours(launched: AgentProcess) -> None:
    report = launched.do("report")["result"]
    assert report["kept"] == {}
    reasons = {reason for reasons in report["fallbacks"].values() for reason in reasons}
    assert {reason for reason in reasons if reason.startswith("error")} == set()


def test_a_launched_message_looks_at_no_more_events_in_a_longer_log(launched: AgentProcess) -> None:
    """But for the two walks in `handle_user` itself, through the whole log."""
    looked_at = []
    for count in (2_000, 20_000):
        with run_golden.folder() as folder:
            launched.do("reset", path=str(pmm_ledger.make(folder / "pmm.db", count)))
            launched.do("message", text="hello", reply="hi", meanwhile=[])
            counts = launched.do("message", text="what is next", reply="I will see", meanwhile=[])["looked_at"]
            looked_at.append(sum(counts.values()) - counts["handle_user"])
            launched.do("leave")
    assert looked_at[0] == pytest.approx(looked_at[1], abs=50)


def test_a_difference_is_found(tmp_path: Path) -> None:
    root = tmp_path / "standin"
    shutil.copytree(standin_package.ROOT, root)
    loop = root / "pmm" / "runtime" / "loop.py"
    loop.write_text(loop.read_text(encoding="utf-8").replace("Unknown", "Nobody"), encoding="utf-8")
    agents = Pair(standin_ab.AgentProcess(), standin_ab.AgentProcess(root=root))
    with agents, run_golden.folder() as folder:
        agents.begin(folder, [])
        with pytest.raises(standin_ab.Difference, match="prompts"):
            agents.step(("message", "hello", "hi", []))


TURNS = st.tuples(
    st.integers(0, 2),
    st.one_of(
        st.tuples(st.just("message"), TEXTS, REPLIES, st.just([])),
        st.tuples(st.just("tick")),
        EVENTS.map(lambda event: ("append", *event)),
        CALLS.map(lambda call: ("call", *call)),
    ),
)


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew(3, variables=OFF) as workers:
        yield workers


def test_a_graph_that_was_made_answers_with_what_others_have_appended(crew: Crew) -> None:
    asked = ("call", "memegraph.graph_slice", ("identity",), {"limit": 0, "min_confidence": 0.4})
    turns: list[Any] = [(0, ("message", "hello", "", [])), (1, asked), (0, ("tick",)), (0, ("message", "hi", "", []))]
    with run_golden.folder() as folder:
        crew.live(folder, [], [*turns, (1, ("call", "memegraph.latest_stage", (), {}))])


@settings(max_examples=examples(60))
@given(name=st.sampled_from(BEGINNINGS), turns=st.lists(TURNS, min_size=5, max_size=25))
def test_three_launched_workers_are_as_three_in_one_process(crew: Crew, name: str, turns: Any) -> None:
    with run_golden.folder() as folder:
        crew.live(folder, run_golden.case(name)["events"], turns)
