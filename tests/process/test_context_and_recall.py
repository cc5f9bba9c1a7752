"""`pmm-shm context` and `recall` print what a worker gets from the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support.command import is_one_line, run

TEXT = "a flat tyre"


@pytest.fixture
def told(ledger: str) -> str:
    with connect(ledger) as cache:
        cache.append("identity_adopt", "Echo", {"name": "Echo"})
        cache.append("user", "My bicycle has a flat tyre.\nWhat now?", {})
        cache.append("response", "Take the wheel out, then find the hole in the tyre.", {})
        cache.append("user", "And the chess club \x1b[2J?", {})
    return ledger


def test_the_context_is_that_of_a_worker(told: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(told)
    assert run("embed", told).code == 0
    with connect(told) as cache:
        options = {"reflections": 3, "recall": 3, "messages": 1}
        expected = cache.context(TEXT, **options, recall_mode="auto")
        by_meaning = cache.context(TEXT, **options)
        short = cache.context(None, reflections=0, messages=1)
    seen = daemon.stats()["workers"]["seen"]
    assert "Recalled messages" in str(expected)
    assert run("context", told, TEXT, "--messages", "1") == (0, f"{expected}\n".replace("\x1b", "\\x1b"), "")
    assert by_meaning.recalled != expected.recalled
    assert run("context", told, TEXT, "--messages", "1", "--mode", "meaning").out == f"{by_meaning}\n".replace(
        "\x1b", "\\x1b"
    )
    assert run("context", told, "--reflections", "0", "--messages", "1").out == f"{short}\n".replace("\x1b", "\\x1b")
    found = json.loads(run("context", told, TEXT, "--messages", "1", "--json").out)
    assert (found["name"], found["as_of"], found["recall_problem"]) == ("Echo", 4, None)
    assert [one["id"] for one in found["recalled"]] == [one.id for one in expected.recalled]
    # It only looks on.
    assert daemon.stats()["workers"]["seen"] == seen


def test_one_word_beside_the_ledger_of_the_environment_is_the_text(told: str) -> None:
    options = "--messages", "1", "--json"
    named = run("context", told, TEXT, *options).out
    assert run("context", TEXT, *options, env={"PMM_DB": told}).out == named
    without = run("context", told, *options).out
    assert without != named
    assert run("context", *options, env={"PMM_DB": told}).out == without
    assert run("context", told, *options, env={"PMM_DB": told}).out == without


def test_recall_prints_whole_events_the_most_similar_first(told: str, start_daemon: StartDaemon) -> None:
    start_daemon(told)
    assert run("embed", told).code == 0
    with connect(told) as cache:
        expected = cache.recall(TEXT, 2, mode="auto")
    ran = run("recall", told, TEXT, "-k", "2")
    assert (ran.code, ran.err) == (0, "")
    titles = [line for line in ran.out.splitlines() if line.startswith("event ")]
    assert [int(title.split()[1]) for title in titles] == [hit.event_id for hit in expected]
    assert "    My bicycle has a flat tyre.\n    What now?\n" in ran.out
    found = json.loads(run("recall", TEXT, "-k", "2", "--json", env={"PMM_DB": told}).out)
    assert (found["model"], found["as_of"], found["is_complete"]) == (expected.model, 4, True)
    scores = ("similarity", "word_score", "found_by")
    assert found["events"] == [{**{one: getattr(hit, one) for one in scores}, **hit.event} for hit in expected]
    assert "\\x1b[2J" in run("recall", told, "chess club").out


def test_an_incomplete_recall_says_so(told: str) -> None:
    with connect(told) as cache:
        cache.append_many([("user", f"number {number}", None) for number in range(1_100)])
    ran = run("recall", told, "number 1099", "-k", "1")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "    number 1099")
    assert is_one_line(ran.err)
    assert "not all events were searched" in ran.err
    ran = run("recall", told, TEXT, "--model", "none-such")
    assert (ran.code, ran.out) == (2, "")
    assert is_one_line(ran.err)


@pytest.mark.parametrize("arguments", [["context"], ["recall", TEXT], ["recall"]])
def test_wrong_usage(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert is_one_line(ran.err)


def test_without_a_ledger(tmp_path: Path) -> None:
    for command in ("context", "recall"):
        ran = run(command, str(tmp_path / "none.db"), TEXT)
        assert (ran.code, ran.out) == (1, "")
        assert is_one_line(ran.err)
