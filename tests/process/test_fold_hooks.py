"""A user's fold is explained, plotted, and shown in `status` like a built-in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from docs.examples.tool_use import ToolUse
from pmm_shm.errors import FoldError
from pmm_shm.folds.describing import description, explainable
from pmm_shm.folds.registry import built_in_folds
from pmm_shm.folds.state import State
from pmm_shm.folds.view_parts import numbers
from pmm_shm_cli.synthetic import generate
from pmm_shm_client import EventLog, connect
from tests.conftest import StartDaemon
from tests.support.command import run

NAME = "docs.examples.tool_use:ToolUse"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("hooks") / "agent.db")
    with EventLog(path) as log:
        for number in range(40):
            log.append("user", str(number))
            log.append("tool_call", "", {"tool": ("search", "browse", 7)[number % 3]})
    return path


def test_explain_lists_the_events_that_changed_a_key(ledger: str) -> None:
    found = json.loads(run("explain", ledger, "--fold", NAME, "calls.search", "--json").out)
    with EventLog(ledger) as log:
        searches = [event["id"] for event in log.read_all() if event["meta"].get("tool") == "search"]
    assert [step["event_id"] for step in found["steps"]] == searches
    assert [(step["before"], step["after"]) for step in found["steps"]][:2] == [(None, 1), (1, 2)]
    assert (found["value"], found["events"], found["steps"][0]["effect"]) == (len(searches), len(searches), "+1")
    part = json.loads(
        run("explain", ledger, "--fold", NAME, "calls.search", "--json", "--until", "20", "--limit", "2").out
    )
    assert [step["event_id"] for step in part["steps"]] == [one for one in searches if one <= 20][-2:]
    assert part["as_of"] == 20


def test_explain_without_a_key_lists_them(ledger: str) -> None:
    found = json.loads(run("explain", ledger, "--fold", NAME, "--json").out)
    assert found["subjects"] == {"calls.browse": 13, "calls.search": 14, "last": "search"}
    assert "calls.search" in run("explain", "--fold", NAME, env={"PMM_DB": ledger}).out
    assert "14" in run("explain", "--fold", NAME, "calls.search", env={"PMM_DB": ledger}).out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", "--fold", NAME, "calls.serch"), "did you mean calls.search?"),
        (("explain", "--fold", "absent", "x"), "no fold 'absent'"),
        (("explain", "--fold", NAME, "last", "--integer"), "--integer means something for commitment only"),
        (("plot", "--fold", NAME, "--key", "calls.serch"), "has no number 'calls.serch'; did you mean calls.search?"),
        (
            ("plot", "--fold", NAME, "--key", "calls"),
            "no number 'calls'; it is a table: choose among calls.browse, calls.search",
        ),
        (("plot", "--key", "x"), "--key needs --fold"),
        (("plot", "--fold", NAME, "--names"), "--names means nothing with --fold"),
        (("plot", "--fold", "recent"), "has no numbers"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], said: str, ledger: str, tmp_path: Path) -> None:
    output = ("-o", str(tmp_path / "x.svg")) if words[0] == "plot" else ()
    ended = run(words[0], ledger, *words[1:], *output)
    assert ended.code != 0
    assert said in ended.err


def test_plot_draws_the_numbers(ledger: str, tmp_path: Path) -> None:
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in files:
        found = json.loads(run("plot", ledger, "--fold", NAME, "-o", str(file), "--json").out)
        assert (found["keys"], found["stride"], found["as_of"]) == (["calls.browse", "calls.search"], 1, 80)
    assert files[0].read_bytes() == files[1].read_bytes()
    one = json.loads(run("plot", ledger, "--fold", NAME, "--key", "calls.search", "-o", str(files[0]), "--json").out)
    assert one["keys"] == ["calls.search"]


def test_status_shows_what_a_published_fold_describes(tmp_path: Path, start_daemon: StartDaemon) -> None:
    path = generate(tmp_path / "agent.db", 200, 1)
    start_daemon(path, "--fold", NAME)
    with connect(path, folds=[ToolUse], consistency="wait") as cache:
        cache.append("tool_call", "", {"tool": "search"})
        cache.fold("tool_use")
    assert "tool_use" not in run("status", path).out
    lines = run("status", path, "--fold", NAME).out.splitlines()
    assert [line.split(None, 1) for line in lines[-2:]] == [["tool_use", "last search"], ["calls:", "search 1"]]
    found = json.loads(run("status", path, "--fold", NAME, "--json").out)
    assert found["described"] == {"tool_use": {"calls": {"search": 1}, "last": "search"}}
    assert "search 1" in run("status", path, "--fold", NAME, "--verbose").out


def test_every_built_in_fold_can_be_described() -> None:
    for fold in built_in_folds():
        view = fold.view(State())
        assert isinstance(description(fold, view), dict)
        json.dumps(explainable(fold, view))


def test_a_hook_of_the_folds_own() -> None:
    class Hooked(ToolUse):
        def describe(self, view: Any) -> dict[str, Any]:
            return {"tools": len(view["calls"]), "best": {("a", 1): {"n": 1.5}}, "odd": {3}, "object": object()}

        def explain_keys(self, view: Any) -> dict[str, Any]:
            return {"calls": sum(view["calls"].values())}

    fold = Hooked()
    view = {"calls": {"x": 2, "y": 1}}
    assert description(fold, view) == {"tools": 2, "best": {"a, 1": {"n": 1.5}}, "odd": [3], "object": "(object)"}
    assert explainable(fold, view) == {"calls": 3}
    assert numbers({"a": 1, "b": True, "c": float("nan"), "d": "x", "e": 10**400, "f": 0.5}) == {"a": 1.0, "f": 0.5}
    with pytest.raises(FoldError, match="fold 'tool_use': `describe` fails: KeyError: 'calls'"):
        description(fold, {})
